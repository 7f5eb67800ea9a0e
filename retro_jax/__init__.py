"""RETRO, the Retrieval-Enhanced Transformer (Borgeaud et al. 2021), in JAX and Flax."""

import importlib

__version__ = "0.1.0"

# What `retro_jax.NAME` is; imported when it is asked for, because JAX takes seconds.
_NAMES = {
    "Generator": "retro_jax.generate.generator",
    "Request": "retro_jax.config",
    "Retriever": "retro_jax.databases.retriever",
    "Scorer": "retro_jax.evaluate.scorer",
    "UserError": "retro_jax.errors",
    "WorkDir": "retro_jax.store.workdir",
    "functional": "retro_jax.model",
    "load_params": "retro_jax.methods.params",
}
__all__ = [*_NAMES, "__version__"]


def __getattr__(name: str):
    if name in _NAMES:
        module = importlib.import_module(_NAMES[name])
        found = getattr(module, name, None)
        return found or importlib.import_module(f"{_NAMES[name]}.{name}")  # a module of it
    raise AttributeError(f"module 'retro_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
