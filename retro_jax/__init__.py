"""RETRO, the Retrieval-Enhanced Transformer (Borgeaud et al. 2021), in JAX and Flax."""

__version__ = "0.1.0"


def __getattr__(name: str):
    """`retro_jax.Generator` and `retro_jax.Request`, imported when they are asked for: JAX takes seconds."""
    if name == "Generator":
        from retro_jax.generate.generator import Generator

        return Generator
    if name == "Request":
        from retro_jax.generate.request import Request

        return Request
    raise AttributeError(f"module 'retro_jax' has no attribute {name!r}")
