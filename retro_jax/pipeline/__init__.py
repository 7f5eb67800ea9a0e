"""Text to shards: the steps, their order, and what runs them (here, or on Apache Beam)."""
