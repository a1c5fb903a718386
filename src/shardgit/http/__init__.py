"""The smart-HTTP edge."""
