"""RETRO, the Retrieval-Enhanced Transformer (Borgeaud et al. 2021), in JAX and Flax."""

__version__ = "0.1.0"
