"""Attention of a sequence to itself as one TPU kernel, which never writes its logits.

The reference is `attend.attend_causal`: the same arguments, results and gradients. There logits, their exponentials and
their gradients are arrays [I, J] that are written and read; here a block of them lives in the chip's own memory
(Dao et al. 2022, arXiv 2205.14135). New is what Transformer-XL's positions ask for: the logits by distance of a block,
[I, I + J], become logits by key when row i is rolled by i lanes, and the table has its gradient in the same pass.

    B batch, L tokens, N heads of keys and values, A heads of queries for each of them, H head size, S distances
    I queries of a block, J keys of a block; W = I + J distances between them

In FLOPs a block costs 2 I J H for the content and 2 I W H for the positions, W / J = 1.25 times as much.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from retro_jax.model import kernel
from retro_jax.model.attend import SAVED
from retro_jax.model.kernel import dot

QUERIES, KEYS = 128, 512  # of a block; a multiple of 128, of QUERIES


def flash_distances(length: int) -> np.ndarray:
    """The distances [S] of the table that `flash` takes, farthest first."""
    whole, keys = _padded(length)
    return whole - 1 - np.arange(whole + keys)


def _padded(length: int) -> tuple[int, int]:
    """The length in whole blocks, and the keys of one."""
    keys = min(KEYS, -(-length // QUERIES) * QUERIES)
    return -(-length // keys) * keys, keys


def flash(q, k, v, mask, relative):
    """Query i to keys 0 .. i.

    Args:
      q: queries [B, 1, L, N, A, H].
      k, v: keys and values [B, 1, 1, L, N, H].
      mask: True where a key may be attended [B, 1, 1, L].
      relative: (table [S, N, A, H] of `flash_distances`, u [N, A, H], w [N, A, H]), or None.

    Returns:
      [B, 1, L, N, A, H], exactly 0 where the mask allows no key.
    """
    length = q.shape[2]
    fill, scale = _padded(length)[0] - length, q.shape[-1] ** -0.5

    def rows(x):  # [B, 1, L, N, A, H] -> [B, N, A, L, H]
        return jnp.pad(jnp.moveaxis(x[:, 0], 1, 3), ((0, 0),) * 3 + ((0, fill), (0, 0)))

    def columns(x):  # [B, 1, 1, L, N, H] -> [B, N, L, H]
        return jnp.pad(jnp.moveaxis(x[:, 0, 0], 1, 2), ((0, 0),) * 2 + ((0, fill), (0, 0)))

    allowed = jnp.pad(mask[:, 0].astype(jnp.float32), ((0, 0), (0, 0), (0, fill)))
    allowed = jax.sharding.reshard(allowed, jax.P(kernel.spec(q)[0]))  # as the rows are
    if relative is None:
        content, position = rows(q * scale), None
    else:
        table, u, w = relative
        content, position = (
            rows((q + u) * scale),
            (rows((q + w) * scale), jnp.moveaxis(table, 0, 2)),
        )
    y = _read(content, position, columns(k), columns(v), allowed)
    return jnp.moveaxis(y[:, :, :, :length], 3, 1)[:, None]


@jax.custom_vjp
def _read(content, position, k, v, mask):
    """softmax(logits) v -> [B, N, A, L, H]; position: (queries, table), or None."""
    return _read_saving(content, position, k, v, mask)[0]


def _read_saving(content, position, k, v, mask):
    made = (kernel.spec(content),) * 2
    y, normaliser = kernel.sharded(_forward, made, content, position, k, v, mask)
    y, normaliser = checkpoint_name(y, SAVED), checkpoint_name(normaliser, SAVED)
    return y, (content, position, k, v, mask, y, normaliser)


def _read_gradient(saved, dy):
    content, position, k, v, mask, y, normaliser = saved
    along = (dy.astype(jnp.float32) * y.astype(jnp.float32)).sum(-1).reshape(normaliser.shape)
    return kernel.gradients(_backward, (content, position, k, v), mask, dy, normaliser, along)


_read.defvjp(_read_saving, _read_gradient)


def _call(of, contents: int, positions: int, turns: int, given, **how):
    """Calls a kernel; contents, positions: how many products of a block of each kind it has; turns: of its logits into
    the opposite order."""
    rows, keys = given[0], _padded(given[0].shape[3])[1]
    blocks = sum(-(-(i + 1) * QUERIES // keys) for i in range(rows.shape[3] // QUERIES))
    pairs = contents * keys + positions * (QUERIES + keys)
    queries = int(np.prod(rows.shape[:3])) * blocks * QUERIES
    flops = 2 * queries * (rows.shape[4] * pairs + turns * QUERIES * keys)
    return kernel.call(of, flops, queries * keys, given, **how)


def _specs(content, position, k):
    """BlockSpecs of what both passes take, for a grid (N, B, A, blocks): a block of queries; all keys of a head; the
    table of a head; the mask of a sequence; a number a query."""
    *_, queries, width = content.shape
    blocks = queries // QUERIES
    row = pl.BlockSpec((1, 1, 1, QUERIES, width), lambda n, b, a, i: (b, n, a, i, 0))
    column = pl.BlockSpec((1, 1, *k.shape[2:]), lambda n, b, a, i: (b, n, 0, 0))
    mask = pl.BlockSpec((1, 1, queries), lambda n, b, a, i: (b, 0, 0))
    number = pl.BlockSpec((1, 1, 1, blocks, QUERIES), lambda n, b, a, i: (b, n, a, 0, 0))
    table = position and pl.BlockSpec(
        (1, 1, *position[1].shape[2:]), lambda n, b, a, i: (n, a, 0, 0)
    )
    return row, column, table, mask, number, (k.shape[1], k.shape[0], content.shape[2], blocks)


def _forward(content, position, k, v, mask):
    row, column, table, masks, number, grid = _specs(content, position, k)
    made = jax.ShapeDtypeStruct(content.shape, v.dtype)
    numbers = jax.ShapeDtypeStruct((*content.shape[:3], grid[3], QUERIES), jnp.float32)
    return _call(
        functools.partial(_forward_kernel, relative=position is not None),
        2, 1 if position else 0, 0, (content, *(position or ()), k, v, mask),
        grid=grid, in_specs=[row, *((row, table) if position else ()), column, column, masks],
        out_specs=(row, number), out_shape=(made, numbers), name="flash_forward",
    )  # fmt: skip


def _backward(content, position, k, v, mask, dy, normaliser, along):
    row, column, table, masks, number, grid = _specs(content, position, k)
    given = [row, *((row, table) if position else ()), column, column, masks, row, number, number]
    float32 = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    out = [row, column, column]
    shapes = [
        jax.ShapeDtypeStruct(content.shape, content.dtype),
        float32(k.shape),
        float32(v.shape),
    ]
    if position:
        # A table stays in the chip while all sequences add to it: all of its heads, as A is inside B.
        _, heads, *rest = position[1].shape
        out += [row, pl.BlockSpec((1, heads, *rest), lambda n, b, a, i: (n, 0, 0, 0))]
        shapes += [jax.ShapeDtypeStruct(content.shape, content.dtype), float32(position[1].shape)]
    dcontent, dk, dv, *dposition = _call(
        functools.partial(_backward_kernel, relative=position is not None),
        5, 3 if position else 0, 1 if position else 0, (content, *(position or ()), k, v, mask, dy, normaliser, along),
        grid=grid, in_specs=given, out_specs=tuple(out), out_shape=tuple(shapes), name="flash_backward",
    )  # fmt: skip
    return dcontent, tuple(dposition) or None, dk, dv


class _Block:
    """A block of queries and its keys, a block of them at a time."""

    def __init__(self, content, positions, k, mask):
        self.i, self.content, self.k, self.mask = pl.program_id(3), content[0, 0, 0], k, mask
        self.queries, self.table = positions or (None, None)
        self.whole = k.shape[2]
        self.keys = _padded(self.whole)[1]
        self.blocks = (self.i * QUERIES + QUERIES + self.keys - 1) // self.keys

    def at(self, j):
        """Where the keys of block j are."""
        return pl.ds(pl.multiple_of(j * self.keys, self.keys), self.keys)

    def near(self, j):
        """Where the distances between these queries and the keys of block j are, farthest first."""
        start = self.whole - QUERIES - self.i * QUERIES + j * self.keys
        return pl.ds(pl.multiple_of(start, QUERIES), QUERIES + self.keys)

    def logits(self, j):
        """[I, J] float32, the masked ones -1e30."""
        logits = dot(self.content, self.k[0, 0, self.at(j)], (1, 1))
        if self.table is not None:
            by_distance = dot(self.queries[0, 0, 0], self.table[0, 0, self.near(j)], (1, 1))
            # Query i has key 0 at I - 1 - i, so its row goes that far to the left.
            left = by_distance.shape[1] - (QUERIES - 1)
            logits += pltpu.roll(by_distance, left, 1, stride=1, stride_axis=0)[:, : self.keys]
        query = self.i * QUERIES + jax.lax.broadcasted_iota(jnp.int32, logits.shape, 0)
        key = j * self.keys + jax.lax.broadcasted_iota(jnp.int32, logits.shape, 1)
        allowed = (key <= query) & (self.mask[0, :, self.at(j)] > 0)
        return jnp.where(allowed, logits, kernel.MASKED)


def _forward_kernel(content, *refs, relative):
    positions, refs = (refs[:2], refs[2:]) if relative else (None, refs)
    k, v, mask, y, normaliser = refs
    block = _Block(content, positions, k, mask)

    def step(j, carried):
        top, total, read = carried
        logits = block.logits(j)
        # Bounded, so that where no key is allowed every weight is exp(-1e30 + 1e29) = 0.
        above = jnp.maximum(top, logits.max(1, keepdims=True))
        weights, before = jnp.exp(logits - above), jnp.exp(top - above)
        values = v[0, 0, block.at(j)]
        read = read * before + dot(weights.astype(values.dtype), values)
        return above, total * before + weights.sum(1, keepdims=True), read

    rows, width = block.content.shape
    none = jnp.zeros((rows, 1), jnp.float32)
    begin = none + kernel.BOUND, none, jnp.zeros((rows, width), jnp.float32)
    top, total, read = jax.lax.fori_loop(0, block.blocks, step, begin)
    y[0, 0, 0] = (read / jnp.maximum(total, 1e-30)).astype(y.dtype)
    normaliser[0, 0, 0, pl.ds(block.i, 1)] = kernel.row(kernel.normaliser(top, total))


def _backward_kernel(content, *refs, relative):
    positions, refs = (refs[:2], refs[2:]) if relative else (None, refs)
    k, v, mask, dy, normaliser, along, dcontent, dk, dv, *dpositions = refs
    block, b, a = _Block(content, positions, k, mask), pl.program_id(1), pl.program_id(2)

    @pl.when((a == 0) & (block.i == 0))
    def _():
        dk[...], dv[...] = jnp.zeros_like(dk), jnp.zeros_like(dv)

    if relative:
        dqueries, dtable = dpositions

        @pl.when((b == 0) & (block.i == 0))
        def _():
            dtable[0, a] = jnp.zeros(dtable.shape[2:], jnp.float32)

    given = dy[0, 0, 0]
    low = given.dtype
    if relative:
        turn = kernel.reversal(QUERIES, low)
        turned = dot(turn, block.queries[0, 0, 0]).astype(low)
    normal, inner = (kernel.column(x[0, 0, 0, pl.ds(block.i, 1)]) for x in (normaliser, along))

    def step(j, carried):
        at = block.at(j)
        weights = jnp.exp(block.logits(j) - normal)
        dlogits = (weights * (dot(given, v[0, 0, at], (1, 1)) - inner)).astype(low)
        dv[0, 0, at] += dot(weights.astype(low), given, (0, 0))
        dk[0, 0, at] += dot(dlogits, block.content, (0, 0))
        of_content = carried[0] + dot(dlogits, k[0, 0, at])
        if not relative:
            return (of_content,)
        # Back to distances: row i goes I - 1 - i to the right. Rows can go further and further only, so the last one
        # comes first.
        near, zeros = block.near(j), jnp.zeros((QUERIES, QUERIES), jnp.float32)
        wide = jnp.concatenate([dot(turn, dlogits), zeros], axis=1)
        by_distance = pltpu.roll(wide, 0, 1, stride=1, stride_axis=0).astype(low)
        dtable[0, a, near] += dot(by_distance, turned, (0, 0))
        return of_content, carried[1] + dot(by_distance, block.table[0, 0, near])

    zero = jnp.zeros(block.content.shape, jnp.float32)
    found = jax.lax.fori_loop(0, block.blocks, step, (zero,) * (1 + relative))
    dcontent[0, 0, 0] = found[0].astype(dcontent.dtype)
    if relative:
        dqueries[0, 0, 0] = dot(turn, found[1].astype(low)).astype(dqueries.dtype)
