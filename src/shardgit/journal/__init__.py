"""What is small and mutable, behind one commit point."""
