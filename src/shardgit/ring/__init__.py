"""Which shard keeps which partition."""
