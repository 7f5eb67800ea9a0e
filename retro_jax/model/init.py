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
    groups = {}
    for name, leaf in leaves.items():
        if leaf.std and not leaf.like:
            stacked = name.startswith("stacks.")
            shape, spec = leaf.shape, tuple(jax.typeof(leaf[...]).sharding.spec)
            times = shape[0] if stacked else 1
            group = groups.setdefault((shape[stacked:], spec[stacked:]), [])
            group += [(name, layer) for layer in range(times)]
    drawn = {}
    for (shape, spec), members in groups.items():
        seeds = np.array([[zlib.crc32(name.encode()), layer] for name, layer in members], np.uint32)
        drawn |= _truncated_normal(key, shape, spec, members, seeds)
    values = {}
    for name, leaf in leaves.items():
        if name in drawn:
            value = drawn[name] if name.startswith("stacks.") else drawn[name][0]
            values[name] = value * leaf.std
        elif not leaf.like:
            values[name] = leaf[...] + leaf.fill
    for name, leaf in leaves.items():
        if leaf.like:
            sibling = values[name.rpartition(".")[0] + "." + leaf.like]
            values[name] = start_like(leaf, sibling)
    return values


def _truncated_normal(key, shape, spec, members, seeds) -> dict[str, jax.Array]:
    """Draws of variance 1 for members [(name, layer)] of one shape: {name: [layers, *shape]}."""

    def one(seed):
        own = jax.random.fold_in(jax.random.fold_in(key, seed[0]), seed[1])
        sharding = jax.P(*spec)
        return jax.random.truncated_normal(
            own, -2.0, 2.0, shape, jnp.float32, out_sharding=sharding
        )

    # 0.8796 is the standard deviation of a standard normal cut at +-2.
    rows = jax.vmap(one)(seeds) / 0.87962566
    drawn, begin = {}, 0
    for name in dict.fromkeys(name for name, _ in members):
        count = sum(member == name for member, _ in members)
        drawn[name] = rows[begin : begin + count]
        begin += count
    return drawn


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
