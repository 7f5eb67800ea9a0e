"""An einsum of two arrays whose gradient never transposes the larger of them.

A matrix product runs fastest when its left side is [batch, rows, contracted] and its right side
[batch, contracted, columns]; anything else is copied into that order first. The gradient that JAX
derives for q k^T transposes the logits' gradient, [I, J], where it could transpose q, [I, H]; the one
for x W transposes the gradient of the result, where it could transpose x. On a CPU such a copy can
take longer than the product.
"""

import functools
from string import ascii_letters

import jax
import jax.numpy as jnp

from retro_jax.model import on_cpu


def project(x: jax.Array, w: jax.Array, over: int = 1, out_sharding=None) -> jax.Array:
    """x [..., D] times a weight [D, ...] -> [..., ...], in x's dtype.

    over: how many axes are summed, the last of x with the first of w.
    out_sharding: of the result, where summed axes are split over the mesh.
    """
    rows, width = x.ndim - over, x.ndim
    letters = ascii_letters[: rows + w.ndim]
    spec = f"{letters[:width]},{letters[rows:]}->{letters[:rows] + letters[width:]}"
    return product(spec, x, w, x.dtype, out_sharding)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 3, 4))
def product(spec: str, a: jax.Array, b: jax.Array, dtype=jnp.float32, out_sharding=None):
    """jnp.einsum(spec, a, b) in `dtype`; no letter may stand in one operand alone and be summed."""
    return _einsum(spec, a, b, dtype, out_sharding)


def _einsum(spec: str, a, b, dtype, out_sharding):
    if on_cpu.is_slow(a):
        return on_cpu.einsum(spec, a, b, dtype, out_sharding)
    return jnp.einsum(spec, a, b, preferred_element_type=dtype, out_sharding=out_sharding)


def _forward(spec, a, b, dtype, out_sharding):
    return product(spec, a, b, dtype, out_sharding), (a, b)


def _backward(spec, dtype, out_sharding, saved, g):
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

    def order(left, right, batch):
        """What an order copies, in entries, and the order of its result."""
        (y, ys), (z, zs) = left, right
        summed = "".join(c for c in ys if c in zs and c not in letters)
        rows, columns = ("".join(c for c in s if c not in batch + summed) for s in (ys, zs))
        copied = y.size * (ys != batch + rows + summed) + z.size * (zs != batch + summed + columns)
        return copied, batch + rows + columns

    both = [c for c in operands[0][1] if c in operands[1][1] and c in letters]
    batches = ["".join(sorted(both, key=s.index)) for _, s in operands]
    orders = [
        (order(*pair, batch), pair) for pair in (operands, operands[::-1]) for batch in batches
    ]
    (_, result), ((y, ys), (z, zs)) = min(orders, key=lambda o: o[0][0])
    spec = jax.typeof(x).sharding.spec
    where = dict(zip(letters, (*spec, *(None,) * (x.ndim - len(spec)))))
    sharding = jax.P(*(where[c] for c in result))
    got = _einsum(f"{ys},{zs}->{result}", y, z, jnp.result_type(y, z), sharding)
    if result != letters:
        # XLA would turn a transposed product back into the one that copies the larger array. (For
        # GPU and TPU it is right to: their products read both orders.)
        got = jax.lax.platform_dependent(
            got, cpu=jax.lax.optimization_barrier, default=lambda product: product
        )
    return jnp.transpose(got, [result.index(c) for c in letters]).astype(x.dtype)
