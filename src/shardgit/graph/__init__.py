"""Reachability: walks, negotiation, bitmaps."""
