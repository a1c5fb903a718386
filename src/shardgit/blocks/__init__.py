"""Immutable blocks by content id, and the stores that keep them."""
