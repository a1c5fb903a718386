"""What the store does for a caller: one fetch, one import, one read."""
