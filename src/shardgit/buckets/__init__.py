"""Named objects in folders, object stores and memory."""
