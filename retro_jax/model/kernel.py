"""What the kernels of attention share: how they are called, on one chip's part, and what a TPU can do to a block.

On a CPU a kernel is interpreted: slow, for tests.
"""

import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from retro_jax.errors import UserError

LANES = 128
MASKED, BOUND = -1e30, -1e29  # as in `attend`
VMEM = (
    64 * 1024**2
)  # bytes of a core's own memory that a kernel may take, of 128 (v5e, v6e) or 64 (v5p)


def check_chip(kind: str):
    """Raises UserError for a chip, by its `device_kind`, that the kernels are not for."""
    if kind != "cpu" and not kind.startswith(("TPU v5", "TPU v6")):
        raise UserError(
            f"config field model.attention = 'flash' is by kernels for TPUs (v5e, v5p, v6e), and not for {kind}; "
            "set it to reference, or for an NVIDIA GPU to cudnn"
        )


def platform() -> str:
    """Of the devices of the mesh in context: cpu, gpu or tpu; nothing where it has none."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device is not None else ""


def sharded(function, made, *given):
    """A function of one chip's part of each array; made: how its results are split."""
    return jax.shard_map(function, out_specs=made, check_vma=False)(*given)


def spec(x):
    """How an array is split over the mesh."""
    return jax.typeof(x).sharding.spec


def gradients(backward, given, *rest):
    """Gradients of (content, position, k, v), the sum over all chips of a table's, and None for the mask; backward: of
    one chip's part of them, and of the `rest`."""
    rows = spec(given[0])[0]

    def of_a_chip(*parts):
        dcontent, dposition, dk, dv = backward(*parts)
        if dposition is not None and rows:  # a table serves the rows of all chips
            dposition = dposition[0], jax.lax.psum(dposition[1], rows)
        return dcontent, dposition, dk, dv

    found = sharded(of_a_chip, jax.tree.map(spec, given), *given, *rest)
    return *jax.tree.map(lambda g, x: g.astype(x.dtype), found, given), None


def call(kernel, flops: int, transcendentals: int, given, **how):
    """Calls a kernel, compiled for a TPU, interpreted elsewhere. Of bytes each operand counts once, as it lies in
    memory. The first axis of the grid is of heads, which have nothing in common: a chip's cores may share them."""
    made = jax.tree.leaves(how["out_shape"])
    how["cost_estimate"] = pl.CostEstimate(
        flops=flops,
        bytes_accessed=sum(map(nbytes, (*given, *made))),
        transcendentals=transcendentals,
    )
    how["compiler_params"] = pltpu.CompilerParams(
        dimension_semantics=("parallel",) + ("arbitrary",) * (len(how["grid"]) - 1),
        vmem_limit_bytes=VMEM,
    )
    compiled, read = (pl.pallas_call(kernel, interpret=i, **how) for i in (False, True))
    return jax.lax.platform_dependent(*given, tpu=compiled, default=read)


def nbytes(x) -> int:
    """Bytes of an array whose last axis is filled up to whole lanes."""
    return math.prod(x.shape[:-1]) * -(-x.shape[-1] // LANES) * LANES * x.dtype.itemsize


def dot(a, b, over=(1, 0)):
    """A product in float32; over: the dimensions of each that are summed."""
    dims = ((over[0],), (over[1],)), ((), ())
    exact = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return jax.lax.dot_general(a, b, dims, exact, preferred_element_type=jnp.float32)


def column(row):
    """[1, I] -> [I, 1], by way of a square, which a TPU can transpose."""
    return jnp.broadcast_to(row, (LANES, row.shape[1])).T[:, :1]


def row(column):
    """[I, 1] -> [1, I]."""
    return jnp.broadcast_to(column, (column.shape[0], LANES)).T[:1]


def reversal(rows: int, dtype):
    """A matrix; a product with it has `rows` rows in the opposite order."""
    places = [jax.lax.broadcasted_iota(jnp.int32, (rows, rows), axis) for axis in (0, 1)]
    return (sum(places) == rows - 1).astype(dtype)


def normaliser(top, total):
    """The log sum exp of rows whose greatest logit is `top` and whose weights sum to `total`; where no key is
    allowed, 0: any finite number will do, as exp(-1e30 - 0) = 0."""
    return jnp.where(total > 0, top + jnp.log(jnp.maximum(total, 1e-30)), 0)
