"""shardgit: the storage tier of a Git host."""
