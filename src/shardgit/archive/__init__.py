"""Archives of trees without I/O: tar and zip, and what attributes do to the files in them."""
