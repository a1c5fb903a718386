"""Pack formats: the Python face of the pack kernels."""
