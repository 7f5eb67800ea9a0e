"""Chunks to neighbours: embedder, index, neighbour search, live retrieval."""
