"""An einsum of two arrays whose gradient never transposes the larger of them.

A matrix product runs fastest when its left side is [batch, rows, contracted] and its right side
[batch, contracted, columns]; anything else is copied into that order first. The gradient that JAX
derives for q k^T transposes the logits' gradient, [I, J], where it could transpose q, [I, H]: on a
CPU that copy takes longer than the product.
"""

import functools

import jax
import jax.numpy as jnp


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def product(spec: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """jnp.einsum(spec, a, b), float32; no letter may stand in one operand alone and be summed."""
    return jnp.einsum(spec, a, b, preferred_element_type=jnp.float32)


def _forward(spec, a, b):
    return product(spec, a, b), (a, b)


def _backward(spec, saved, g):
    (letters_a, letters_b), out = spec.split("->")[0].split(","), spec.split("->")[1]
    a, b = saved
    return (
        gradient(a, letters_a, (g.astype(b.dtype), out), (b, letters_b)),
        gradient(b, letters_b, (g.astype(a.dtype), out), (a, letters_a)),
    )


product.defvjp(_forward, _backward)


def gradient(x, letters: str, *operands):
    """The product of two (array, letters), summed over what `letters` lacks: of x's shape, sharding
    and dtype, and in the order that copies least."""

    def order(left, right):
        """What an order copies, in entries, and the order of its result."""
        (y, ys), (z, zs) = left, right
        batch = "".join(c for c in ys if c in zs and c in letters)
        summed = "".join(c for c in ys if c in zs and c not in letters)
        rows, columns = ("".join(c for c in s if c not in batch + summed) for s in (ys, zs))
        copied = y.size * (ys != batch + rows + summed) + z.size * (zs != batch + summed + columns)
        return copied, batch + rows + columns

    orders = [(order(*pair), pair) for pair in (operands, operands[::-1])]
    (_, result), ((y, ys), (z, zs)) = min(orders, key=lambda o: o[0][0])
    spec = jax.typeof(x).sharding.spec
    where = dict(zip(letters, (*spec, *(None,) * (x.ndim - len(spec)))))
    sharding = jax.P(*(where[c] for c in result))
    got = jnp.einsum(f"{ys},{zs}->{result}", y, z, out_sharding=sharding)
    return jnp.transpose(got, [result.index(c) for c in letters]).astype(x.dtype)
