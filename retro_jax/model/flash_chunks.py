"""Attention of chunks to what they retrieved, and of the encoder, as one TPU kernel that never writes its logits.

The reference is `attend.softmax_read`: the same arguments, results and gradients. Queries and keys of a group are few
here, so that all logits of a head and group fit into the chip's own memory at once; a program of the kernel takes
some groups, one after the other. The gradient computes logits and softmax again, from queries, keys and values alone.

    B batch, G groups, K memories of a group, I queries, J keys of a memory, N heads, H head size
    W distances: I + J, filled up to whole lanes

A row of logits by distance becomes one by key when row i is rolled I - i lanes to the left; all memories of a group
share them. In FLOPs a group and head costs 2 I K J H for the content and 2 I W H for the positions.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from retro_jax.model import kernel
from retro_jax.model.attend import SAVED
from retro_jax.model.kernel import dot

_GROUPS = 8  # of a program, at most: to begin one takes as long as some groups
_BUDGET = (
    kernel.VMEM // 4
)  # bytes of what a program is given and gives; logits take as much and more
_ROWS = 16  # queries come in whole tiles of so many


def flash_read(q, k, v, relative, mask):
    """softmax(logits) v, and the logits' log sum exp.

    Args:
      q: queries [B, G, I, N, 1, H]: for each head of keys one of queries.
      k, v: keys and values [B, G, K, J, N, H].
      relative: (table [I + J, N, 1, H] in the order of `distances`, u [N, 1, H], w [N, 1, H]), or None.
      mask: True where a key may be attended [B, G, 1, 1, K, J].

    Returns:
      [B, G, I, N, 1, H], exactly 0 where the mask allows no key, and [N, B, G, I, 1] float32.
    """
    _, groups, queries, *_ = q.shape
    tall, wide = -queries % _ROWS, -k.shape[3] % kernel.LANES
    keys = k.shape[2] * (k.shape[3] + wide)
    more = -groups % _some(groups, queries + tall, keys, q)  # groups that attend to nothing

    def rows(x):  # [B, G, I, N, 1, H] -> [B, N, G, I, H]
        return jnp.pad(jnp.moveaxis(x.squeeze(4), 3, 1), _fill(0, 0, more, tall, 0))

    def columns(x):  # [B, G, K, J, N, H] -> [B, N, G, K, J, H]
        return jnp.pad(jnp.moveaxis(x, 4, 1), _fill(0, 0, more, 0, wide, 0))

    allowed = jnp.pad(mask[:, :, 0, 0].astype(jnp.float32), _fill(0, more, 0, wide))
    allowed = jax.sharding.reshard(allowed, jax.P(kernel.spec(q)[0]))  # as the rows are
    scale = q.shape[-1] ** -0.5
    if relative is None:
        content, position = rows(q * scale), None
    else:
        table, u, w = relative
        near = jnp.moveaxis(table.squeeze(2), 0, 1)
        # In front of it as many as were added to the queries: a row turns by whole tiles then, as a TPU wants it.
        fill = -(tall + near.shape[1]) % kernel.LANES
        near = jnp.pad(near, ((0, 0), (tall, fill), (0, 0)))
        content, position = rows((q + u) * scale), (rows((q + w) * scale), near)
    y, normaliser = _read(content, position, columns(k), columns(v), allowed)
    y = jnp.moveaxis(y[:, :, :groups, :queries], 1, 3)[:, :, :, :, None]
    return y, jnp.moveaxis(normaliser[:, :, :groups, 0, :queries], 1, 0)[..., None]


def _fill(*after: int):
    return [(0, n) for n in after]


def _some(groups: int, queries: int, keys: int, like) -> int:
    """How many groups a program takes: what it is given and gives, each of it twice, has to find room."""
    row = -(-like.shape[-1] // kernel.LANES) * kernel.LANES * like.dtype.itemsize
    of_group = 2 * (5 * queries + 4 * keys) * row  # in the backward pass
    return max(1, min(_GROUPS, groups, _BUDGET // of_group))


@jax.custom_vjp
def _read(content, position, k, v, mask):
    """[B, N, G, I, H] and the normaliser [B, N, G, 1, I]; position: (queries, table), or None."""
    return _read_saving(content, position, k, v, mask)[0]


def _read_saving(content, position, k, v, mask):
    split = kernel.spec(content)
    made = split, jax.P(*split[:3])
    found = kernel.sharded(_forward, made, content, position, k, v, mask)
    return tuple(checkpoint_name(x, SAVED) for x in found), (content, position, k, v, mask)


def _read_gradient(saved, given):
    *arrays, mask = saved
    return kernel.gradients(_backward, tuple(arrays), mask, *given)


_read.defvjp(_read_saving, _read_gradient)


def _specs(content, position, k):
    """BlockSpecs of what both passes take, for a grid (N, B, G / groups of a program): queries, the table of a head,
    keys, the mask, a number a query."""
    b, n, g, *row = content.shape
    some = _some(g, row[0], math.prod(k.shape[3:5]), content)
    rows = pl.BlockSpec((1, 1, some, *row), lambda n, b, g: (b, n, g, 0, 0))
    keys = pl.BlockSpec((1, 1, some, *k.shape[3:]), lambda n, b, g: (b, n, g, 0, 0, 0))
    mask = pl.BlockSpec((1, some, *k.shape[3:5]), lambda n, b, g: (b, g, 0, 0))
    number = pl.BlockSpec((1, 1, some, 1, row[0]), lambda n, b, g: (b, n, g, 0, 0))
    table = position and pl.BlockSpec((1, *position[1].shape[1:]), lambda n, b, g: (n, 0, 0))
    return rows, table, keys, mask, number, (n, b, g // some)


def _costs(content, position, k, contents: int, positions: int, turns: int = 0) -> tuple[int, int]:
    """FLOPs and exponentials of so many products of each kind; turns: of queries into the opposite order, and once of
    logits."""
    rows, keys = math.prod(content.shape[:4]), math.prod(k.shape[3:5])
    width, queries = content.shape[4], content.shape[3]
    pairs = contents * keys * width
    if position:
        pairs += positions * position[1].shape[1] * width
        pairs += turns * queries * width + (turns > 0) * queries * k.shape[4]
    return 2 * rows * pairs, rows * keys


def _forward(content, position, k, v, mask):
    rows, table, keys, masks, number, grid = _specs(content, position, k)
    numbers = *content.shape[:3], 1, content.shape[3]
    return kernel.call(
        functools.partial(_forward_kernel, position is not None),
        *_costs(content, position, k, 2, 1), (content, *(position or ()), k, v, mask),
        grid=grid, in_specs=[rows, *((rows, table) if position else ()), keys, keys, masks],
        out_specs=(rows, number), name="flash_chunks_forward",
        out_shape=tuple(jax.ShapeDtypeStruct(*x) for x in ((content.shape, v.dtype), (numbers, jnp.float32))),
    )  # fmt: skip


def _backward(content, position, k, v, mask, dy, dnormaliser):
    rows, table, keys, masks, number, grid = _specs(content, position, k)
    like = [content, k, v, *(position or ())]
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in like]
    if position:  # a table stays in the chip while all groups add to it
        shapes[-1] = jax.ShapeDtypeStruct(position[1].shape, jnp.float32)
    dcontent, dk, dv, *dposition = kernel.call(
        functools.partial(_backward_kernel, position is not None),
        *_costs(content, position, k, 5, 3, turns=2), (content, *(position or ()), k, v, mask, dy, dnormaliser),
        grid=grid, in_specs=[rows, *((rows, table) if position else ()), keys, keys, masks, rows, number],
        out_specs=(rows, keys, keys, *((rows, table) if position else ())), out_shape=tuple(shapes),
        name="flash_chunks_backward",
    )  # fmt: skip
    return dcontent, tuple(dposition) or None, dk, dv


def _weights(g, content, positions, k, mask):
    """Of group g of a program: for each memory exp(logits - top) [I, J], then top [I, 1], and their sums [I, 1]."""
    by_key = 0.0
    if positions:
        by_distance = dot(positions[0][0, 0, g], positions[1][0], (1, 1))
        left = by_distance.shape[1] - content.shape[3]
        by_key = pltpu.roll(by_distance, left, 1, stride=1, stride_axis=0)[:, : mask.shape[3]]
    logits = [
        jnp.where(
            mask[0, g, pl.ds(m, 1)] > 0, dot(content[0, 0, g], k[0, 0, g, m], (1, 1)) + by_key,
            kernel.MASKED,
        )
        for m in range(mask.shape[2])
    ]  # fmt: skip
    # Bounded, so that where no key is allowed every weight is exp(-1e30 + 1e29) = 0.
    tops = [x.max(1, keepdims=True) for x in logits]
    top = functools.reduce(jnp.maximum, tops, jnp.full_like(tops[0], kernel.BOUND))
    weights = [jnp.exp(x - top) for x in logits]
    return weights, top, sum(x.sum(1, keepdims=True) for x in weights)


def _forward_kernel(relative: bool, content, *refs):
    positions, refs = (refs[:2], refs[2:]) if relative else (None, refs)
    k, v, mask, y, normaliser = refs

    def one(g, none):
        weights, top, total = _weights(g, content, positions, k, mask)
        read = sum(dot(x.astype(v.dtype), v[0, 0, g, m]) for m, x in enumerate(weights))
        y[0, 0, g] = (read / jnp.maximum(total, 1e-30)).astype(y.dtype)
        normaliser[0, 0, g] = kernel.row(kernel.normaliser(top, total))
        return none

    jax.lax.fori_loop(0, content.shape[2], one, 0)


def _backward_kernel(relative: bool, content, *refs):
    positions, refs = (refs[:2], refs[2:]) if relative else (None, refs)
    k, v, mask, dy, dnormaliser, dcontent, dk, dv, *dpositions = refs
    low, rows = dy.dtype, content.shape[3]
    if relative:
        dqueries, dtable = dpositions
        turn, width = kernel.reversal(rows, low), dtable.shape[1]

        @pl.when((pl.program_id(1) == 0) & (pl.program_id(2) == 0))
        def _():
            dtable[...] = jnp.zeros_like(dtable)

    def one(g, none):
        weights, _, total = _weights(g, content, positions, k, mask)
        weights = [x / jnp.maximum(total, 1e-30) for x in weights]
        dweights = [dot(dy[0, 0, g], v[0, 0, g, m], (1, 1)) for m in range(len(weights))]
        along = sum((x * dx).sum(1, keepdims=True) for x, dx in zip(weights, dweights))
        more = kernel.column(dnormaliser[0, 0, g]) - along
        dlogits = [x * (dx + more) for x, dx in zip(weights, dweights)]
        found = 0.0
        for m, (x, dx) in enumerate(zip(weights, dlogits)):
            dv[0, 0, g, m] = dot(x.astype(low), dy[0, 0, g], (0, 0)).astype(dv.dtype)
            dk[0, 0, g, m] = dot(dx.astype(low), content[0, 0, g], (0, 0)).astype(dk.dtype)
            found += dot(dx.astype(low), k[0, 0, g, m])
        dcontent[0, 0, g] = found.astype(dcontent.dtype)
        if relative:
            # Back to distances: row i goes I - i to the right. Rows can go further and further only, so the last one
            # comes first.
            wide = dot(turn, sum(dlogits).astype(low))
            if fill := width - wide.shape[1]:
                wide = jnp.concatenate([wide, jnp.zeros((rows, fill), jnp.float32)], axis=1)
            by_distance = pltpu.roll(wide, 1, 1, stride=1, stride_axis=0).astype(low)
            turned = dot(turn, positions[0][0, 0, g]).astype(low)
            dtable[0] += dot(by_distance, turned, (0, 0))
            back = dot(by_distance, positions[1][0]).astype(low)
            dqueries[0, 0, g] = dot(turn, back).astype(dqueries.dtype)
        return none

    jax.lax.fori_loop(0, content.shape[2], one, 0)
