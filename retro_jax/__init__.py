"""RETRO, the Retrieval-Enhanced Transformer (Borgeaud et al. 2021), in JAX and Flax."""

import importlib

__version__ = "0.1.0"

# What `retro_jax.NAME` is; imported when it is asked for, because JAX takes seconds.
_NAMES = {
    "Generator": "retro_jax.generate.generator",
    "Request": "retro_jax.config",
    "Scorer": "retro_jax.evaluate.scorer",
    "WorkDir": "retro_jax.store.workdir",
}
__all__ = [*_NAMES, "__version__"]


def __getattr__(name: str):
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    raise AttributeError(f"module 'retro_jax' has no attribute {name!r}")
