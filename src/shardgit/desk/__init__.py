"""The desk of a worker: where the supervisor asks for what only a process with the store open knows."""
