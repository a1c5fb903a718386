"""The nodes of a cluster: who is there, and who does what one alone may do."""
