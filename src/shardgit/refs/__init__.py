"""Ref tables: immutable sorted snapshots with small overlays."""
