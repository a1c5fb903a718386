"""The shardgit command."""
