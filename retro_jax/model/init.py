"""How weights start.

Every weight of one shape is drawn at once, whatever layer it belongs to: compiling a random draw
takes a CPU half a second, and a network has hundreds of weights but few shapes.
"""

import zlib

import jax
import jax.numpy as jnp
import numpy as np


def draw(leaves: dict, key: jax.Array) -> dict[str, jax.Array]:
    """Values for parameters {name: nnx.Param as `weight` or `constant` made it}, same shardings.

    A value depends on the key, the parameter's name and the layer, and on nothing else: not on the
    mesh, and not on what other parameters there are.
    """
    groups, values = {}, {}  # {(shape of a layer, its spec): {name: layers}}
    for name, leaf in leaves.items():
        if leaf.std and not leaf.like:
            stacked = name.startswith("stacks.")
            spec = tuple(jax.typeof(leaf[...]).sharding.spec)
            group = groups.setdefault((leaf.shape[stacked:], spec[stacked:]), {})
            group[name] = leaf.shape[0] if stacked else 1
        elif not leaf.like:
            values[name] = leaf[...] + leaf.fill
    for (shape, spec), layers in groups.items():
        rows, begin = _truncated_normal(key, shape, spec, layers), 0
        for name, count in layers.items():
            value = rows[begin : begin + count] if name.startswith("stacks.") else rows[begin]
            values[name] = value * leaves[name].std
            begin += count
    for name, leaf in leaves.items():
        if leaf.like:
            sibling = values[name.rpartition(".")[0] + "." + leaf.like]
            values[name] = start_like(leaf, sibling)
    return values


def _truncated_normal(key, shape, spec, layers: dict[str, int]) -> jax.Array:
    """Draws of variance 1 for every layer of every name, in their order: [layers, *shape]."""
    members = [(zlib.crc32(name.encode()), i) for name, n in layers.items() for i in range(n)]

    def one(seed):
        own = jax.random.fold_in(jax.random.fold_in(key, seed[0]), seed[1])
        sharding = jax.P(*spec)
        return jax.random.truncated_normal(
            own, -2.0, 2.0, shape, jnp.float32, out_sharding=sharding
        )

    # 0.8796 is the standard deviation of a standard normal cut at +-2.
    return jax.vmap(one)(np.array(members, np.uint32)) / 0.87962566


def start_like(leaf, sibling: jax.Array) -> jax.Array:
    """A parameter that starts with its sibling's values, laid out as its own shape wants them.

    `key` [.., D, N, H] like `query` [.., D, N, 1, H]; `out` [.., N, A, H, D] like `value`
    [.., D, N, H], transposed and the same for all A heads of queries of a value head.
    """
    sharding = jax.typeof(leaf[...]).sharding.spec
    if leaf.like == "query":
        return sibling[..., 0, :] * leaf.scale
    transposed = jnp.moveaxis(sibling, -3, -1)[..., None, :, :]
    return jnp.broadcast_to(transposed, leaf.shape, out_sharding=sharding) * leaf.scale
