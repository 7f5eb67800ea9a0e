"""Weights from files to their place in the mesh, a layer at a time."""

import functools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

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
        for (name, index), value in zip(at.values(), _one_ahead(given.read, at)):
            spec = kinds[name].sharding.spec
            if index is None:
                placed[name] = _spread(value, NamedSharding(mesh, spec))
            else:
                layer = _spread(value, NamedSharding(mesh, P(*spec[1:])))
                if index == 0:
                    shape = kinds[name].shape
                    placed[name] = _empty(shape, layer.dtype, NamedSharding(mesh, spec))
                placed[name] = _put(placed[name], layer, index)
            advance(1)
    return placed


def _one_ahead(read: Callable[[str], np.ndarray], names: Iterable[str]) -> Iterator[np.ndarray]:
    """Weights in turn, of which a thread reads the next one: to unpack a quantised one takes as long as to place it."""
    with ThreadPoolExecutor(1) as reader:
        ahead = None
        for name in names:
            now, ahead = ahead, reader.submit(read, name)
            if now:
                yield now.result()
        if ahead:
            yield ahead.result()


def _spread(value: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """An array, a view of a file perhaps, of which each device gets its part."""
    dtype = value.dtype if value.dtype == jnp.bfloat16 else np.dtype(np.float32)

    def part(index):
        return np.ascontiguousarray(value[index], dtype)

    return jax.make_array_from_callback(value.shape, sharding, part)


def _empty(shape: tuple[int, ...], dtype, sharding) -> jax.Array:
    # From the host: to compile a program that makes zeros takes longer.
    part = sharding.shard_shape(shape)
    return jax.make_array_from_callback(shape, sharding, lambda index: np.zeros(part, dtype))


@functools.partial(jax.jit, donate_argnums=0)
def _put(stack, layer, index):
    return jax.lax.dynamic_update_index_in_dim(stack, layer.astype(stack.dtype), index, 0)
