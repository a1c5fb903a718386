"""Backups: a store's journal and blocks at one moment, in a folder or an object store."""
