"""The version of this shardgit."""

from importlib.metadata import PackageNotFoundError, version

try:
    VERSION = version("shardgit")
except PackageNotFoundError:  # run from a tree that was not installed
    VERSION = "0.0.0"
