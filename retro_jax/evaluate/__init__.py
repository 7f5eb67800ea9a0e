"""A checkpoint to numbers: log-probabilities under each retrieval condition, and what they say."""
