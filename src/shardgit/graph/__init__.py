"""Reachability: what tips reach, exactly."""
