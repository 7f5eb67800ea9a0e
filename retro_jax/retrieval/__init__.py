"""Embedders, indexes, and the search for neighbours that leaks nothing."""
