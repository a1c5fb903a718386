"""python -m shardgit."""

from shardgit.cli.main import main

main()
