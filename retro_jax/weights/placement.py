"""Weights from files to their place in the mesh, a layer at a time."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from retro_jax import progress
from retro_jax.config import ModelConfig
from retro_jax.model import functional
from retro_jax.weights.pretrained import Pretrained, where


def place(given: Pretrained, model: ModelConfig, retrieval: bool, mesh) -> dict[str, jax.Array]:
    """The weights of a directory as the network's, each device holding its part and no more.

    Files are mapped into memory: of a weight that is split, what a process's devices do not hold is not
    read. bfloat16 stays bfloat16, everything else becomes float32.

    Args:
      model: the network that is to have them; its decoder is `given.model`'s.
      retrieval: whether the encoder and cross-attention are taken too, where the directory has them.
      mesh: in context.

    Raises:
      UserError: a weight cannot be read.
    """
    kinds = jax.eval_shape(lambda: functional.init(model, given.vocab, 0, retrieval))
    at, placed = where(model, kinds), {}
    with progress.bar(f"reading {given.path.name}", len(at)) as advance:
        for own, (name, index) in at.items():
            spec = kinds[name].sharding.spec
            if index is None:
                placed[name] = _spread(given.read(own), NamedSharding(mesh, spec))
            else:
                layer = _spread(given.read(own), NamedSharding(mesh, P(*spec[1:])))
                if index == 0:
                    shape = kinds[name].shape
                    placed[name] = _empty(shape, layer.dtype, NamedSharding(mesh, spec))
                placed[name] = _put(placed[name], layer, index)
            advance(1)
    return placed


def _spread(value: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """An array, a view of a file perhaps, of which each device gets its part."""
    dtype = value.dtype if value.dtype == jnp.bfloat16 else np.dtype(np.float32)

    def part(index):
        return np.ascontiguousarray(value[index], dtype)

    return jax.make_array_from_callback(value.shape, sharding, part)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _empty(shape, dtype, sharding):
    return jnp.zeros(shape, dtype, out_sharding=sharding)


@functools.partial(jax.jit, donate_argnums=0)
def _put(stack, layer, index):
    return stack.at[index].set(layer)
