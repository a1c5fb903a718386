"""The SSH edge."""
