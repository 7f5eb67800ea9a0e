"""Databases that change, and live retrieval from them."""
