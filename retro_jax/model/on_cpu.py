"""What XLA does slowly with bfloat16 on a CPU, asked for in another way.

Its fast products of bfloat16 give float32 and have two rows or more: those that give bfloat16 take twice as long, and
those of one row ten times (`benchmarks/real.py --products`). To look something up in an array, or to put it into one,
it makes float32 of all of the array; so bits are looked up, and caches are float32 (model/decode.py).
"""

import functools
import math

import jax
import jax.numpy as jnp

from retro_jax.model import kernel


def is_slow(x: jax.Array) -> bool:
    """Whether an array is bfloat16, and the mesh in context one of CPUs."""
    return x.dtype == jnp.bfloat16 and kernel.platform() == "cpu"


def einsum(spec: str, a, b, dtype, out_sharding) -> jax.Array:
    """jnp.einsum(spec, a, b) in `dtype`."""
    (left, right), out = spec.split("->")[0].split(","), spec.split("->")[1]
    rows = [c for c in left if c not in right]
    given = {"preferred_element_type": jnp.float32, "out_sharding": out_sharding}
    if not rows or math.prod(a.shape[left.index(c)] for c in rows) > 1:
        return jnp.einsum(spec, a, b, **given).astype(dtype)
    two = jnp.concatenate([a, a], axis=left.index(rows[0]))
    if right[-1] in out:
        made = jnp.einsum(spec, two, b, **given)
        return jax.lax.slice_in_dim(made, 0, 1, axis=out.index(rows[0])).astype(dtype)
    # A table whose rows are what is summed over: it would be turned first, all of it.
    turned = [c for c in right if c in out] + rows
    made = jnp.einsum(f"{right},{left}->{''.join(turned)}", b, two, **given)
    made = jax.lax.slice_in_dim(made, 0, 1, axis=turned.index(rows[0])).astype(dtype)
    return jnp.transpose(made, [turned.index(c) for c in out])


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def look_up(table, ids, out_sharding) -> jax.Array:
    """table.at[ids].get(out_sharding=out_sharding)."""
    bits = jax.lax.bitcast_convert_type(table, jnp.uint16)
    return jax.lax.bitcast_convert_type(bits.at[ids].get(out_sharding=out_sharding), table.dtype)


def _forward(table, ids, out_sharding):
    return look_up(table, ids, out_sharding), (table, ids)


def _backward(out_sharding, saved, g):  # integers have no gradient: that of what they are
    table, ids = saved
    return *jax.vjp(lambda t: t.at[ids].get(out_sharding=out_sharding), table)[1](g), None


look_up.defvjp(_forward, _backward)
