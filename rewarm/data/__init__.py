"""Text -> tokens -> shards -> batches."""
