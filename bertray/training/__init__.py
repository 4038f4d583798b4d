"""Exactly-once training as plain arithmetic and plain torch: order, token shards, steps, checkpoints. No Ray here."""
