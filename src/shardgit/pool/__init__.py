"""Object namespaces: segments, index pieces, manifests and object reads."""
