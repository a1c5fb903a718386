"""Work on the store itself: verify, settle, compact, gc, rebalance, backup."""
