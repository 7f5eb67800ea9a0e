"""Shards to a checkpoint: mesh, batches, train step, loop."""
