"""What decoding keeps of each row, and how rows are copied.

B rows, J tokens that a row can have, M chunk length, K neighbours, R retrieved length, N heads of keys and
values, A heads of queries for each, H head size, D width
"""

from typing import NamedTuple

import jax

from retro_jax.model.layers import ROWS


class Read(NamedTuple):
    """What a CCA layer reads of each row."""

    key: jax.Array  # [B, N, K R, H]
    value: jax.Array  # [B, N, K R, H]
    table: jax.Array | None  # relative positions, from the farthest past on [N, 1, M + R, H]


class Layer(NamedTuple):
    """What a layer keeps."""

    key: jax.Array  # [B, N, J, H]: what a head reads lies together
    value: jax.Array  # [B, N, J, H]
    table: jax.Array | None  # relative positions, from the farthest past on [N, A, J, H]
    read: Read | None  # of a CCA layer, if anything is retrieved


class Cache(NamedTuple):
    """The state of B sequences."""

    layers: tuple[Layer, ...]
    # [B, M, D] of the last M tokens, token t at t % M, after the first CCA layer's self-attention
    chunk: jax.Array
    mask: jax.Array  # [B, K, R] where a neighbour that is read has a token
    count: jax.Array  # [B] tokens read so far, the padding before the first included
    begin: jax.Array  # [B] how much of that is padding
    point: jax.Array  # [B] what `count` was when the chunk that is read of ended
    fed: jax.Array  # [B, D] what the last feed-forward read of the last token
    recent: jax.Array  # [B, 2] the last tokens, for a memory of n-grams


class Fresh(NamedTuple):
    """Neighbours of what ends with a row's next token: of M tokens, or as many as there are."""

    rows: jax.Array  # [b] which sequences'; a row may be named twice
    tokens: jax.Array  # [b, K, R], PAD where there is none
    distances: jax.Array | None = None  # [b, K]


def last_unread(cache: Cache) -> Cache:
    """The cache as it was before each row's last token, so that the next step reads that token again. What is kept for
    a memory of n-grams is not taken back."""
    return cache._replace(count=cache.count - 1)


def emptied(state, rows):
    """A state, or a cache, whose rows [n] hold nothing any more, so that no step reads their places."""
    where = jax.typeof(state.count).sharding
    return state._replace(count=state.count.at[rows].set(0, out_sharding=where))


def place(cache: Cache, rows, other: Cache, source) -> Cache:
    """The cache with its rows [n] replaced by rows `source` [n] of another one, or of itself."""

    def held(layer: Layer) -> tuple:  # tables of positions are the same for all rows
        read = layer.read and (layer.read.key, layer.read.value)
        return layer.key, layer.value, read

    layers = []
    for layer, from_ in zip(cache.layers, other.layers):
        key, value, read = replaced(held(layer), rows, held(from_), source)
        if read:
            read = layer.read._replace(key=read[0], value=read[1])
        layers.append(layer._replace(key=key, value=value, read=read))
    return Cache(tuple(layers), *replaced(cache[1:], rows, other[1:], source))


def replaced(arrays, rows, others, source):
    """A pytree of arrays [B, ...] with rows [n] replaced by rows `source` [n] of others."""

    def put(x, y):
        return x.at[rows].set(
            y.at[source].get(out_sharding=jax.typeof(y).sharding),
            out_sharding=jax.typeof(x).sharding,
        )

    return jax.tree.map(put, arrays, others)


def over_rows(rank: int, heads: bool = False) -> jax.P:
    """Rows over the mesh and, of arrays [B, N, ...], heads too."""
    return jax.P(ROWS[0], "model" if heads else None) if rank > 1 else jax.P(ROWS[0])
