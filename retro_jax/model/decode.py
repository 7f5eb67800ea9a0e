"""Token by token what `Retro` gives for a whole sequence, with caches of what it would compute again.

    B rows (sequences), J tokens that a row can have, M chunk length, K neighbours, R retrieved length,
    N heads of keys and values, A heads of queries for each, H head size, D width, V vocabulary

A row's chunks begin at its first token, whatever the other rows do. Kept of a row are the keys and values
of its self-attentions; of its chunk under way, what the first CCA layer's self-attention gave, for the
encoder; and of the last complete chunk the keys and values of its neighbours in every CCA layer. The
step that reads the last token of a chunk encodes that chunk's neighbours in mid-layer and goes on.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from retro_jax.config import ModelConfig
from retro_jax.model import functional
from retro_jax.model.layers import ROWS, gather
from retro_jax.model.positions import rotate, rotations
from retro_jax.model.retro import PAD, Block, Retro


class Read(NamedTuple):
    """What a CCA layer reads of each row."""

    key: jax.Array  # [B, K, R, N, H]
    value: jax.Array  # [B, K, R, N, H]
    table: jax.Array  # relative positions, from the farthest past on [M + R, N, 1, H]


class Layer(NamedTuple):
    """What a layer keeps."""

    key: jax.Array  # [B, J, N, H]
    value: jax.Array  # [B, J, N, H]
    table: jax.Array | None  # relative positions, by distance [J, N, A, H]
    read: Read | None  # of a CCA layer, if anything is retrieved


class Cache(NamedTuple):
    """The state of B sequences."""

    layers: tuple[Layer, ...]
    chunk: jax.Array  # [B, M, D] of the chunk under way, after the first CCA layer's self-attention
    mask: jax.Array  # [B, K, R] where a neighbour that is read has a token
    count: jax.Array  # [B] tokens read so far


class Fresh(NamedTuple):
    """Neighbours of the chunks that end with the token of a step."""

    rows: jax.Array  # [b] which sequences'; a row may be named twice
    tokens: jax.Array  # [b, K, R], PAD where there is none


class Decoder(NamedTuple):
    """The network with each layer's weights by themselves, in the dtype that they are used in: a step reads
    every weight once, and would copy it first out of a stack."""

    model: Retro  # without its layers
    blocks: tuple[Block, ...]


def decoder(config: ModelConfig, params: dict) -> Decoder:
    """The network whose weights are `params`, for decoding."""
    dtype, exact = jnp.dtype(config.dtype), (".scale", ".shift_bias", ".position")
    cast = {n: p if n.endswith(exact) else p.astype(dtype) for n, p in params.items()}
    model = functional.network(config, cast)
    blocks = []
    for stack in model.stacks:
        times = jax.tree.leaves(stack)[0].shape[0]
        for time in range(times):
            blocks += jax.tree.map(lambda w: w[time], stack)  # noqa: B023
    model.stacks = None
    return Decoder(model, tuple(blocks))


def start(net: Decoder, rows: int, length: int, k: int) -> Cache:
    """The cache of `rows` empty sequences of at most `length` tokens that read k neighbours; k = 0 is
    RETRO[OFF]."""
    c = net.model.config
    m, retrieved, dtype = c.chunk, c.retrieved, jnp.dtype(c.dtype)

    def zeros(*shape, heads=True):
        return jnp.zeros(shape, dtype, out_sharding=_rows(len(shape), heads))

    layers = []
    for block in net.blocks:
        own = zeros(rows, length, c.kv_heads or c.heads, c.head_size)
        table = read = None
        if block.attention.heads.positions == "relative":
            table = block.attention.relative(np.arange(length), dtype)[0]
        if k and hasattr(block, "cca"):
            near = zeros(rows, k, retrieved, c.heads, c.head_size)
            steps = 2 * m - 1 - np.arange(m + retrieved)
            read = Read(near, near, block.cca.attention.relative(steps, dtype)[0])
        layers.append(Layer(own, own, table, read))
    mask = jnp.zeros((rows, k, retrieved), bool, out_sharding=_rows(3))
    count = jnp.zeros(rows, jnp.int32, out_sharding=_rows(1))
    return Cache(tuple(layers), zeros(rows, m, c.d, heads=False), mask, count)


def prefill(net: Decoder, cache: Cache, tokens, count, neighbours):
    """Reads prompts into an empty cache, all in one pass.

    Args:
      tokens: [B, L], L at most J, PAD after a row's last. count: [B] how many each row has, at least 1.
      neighbours: [B, ceil(L / M), K, R] of every complete chunk, PAD where there is none.

    Returns:
      Logits [B, V] of the token after each prompt, and the cache.
    """
    c, m, length = net.model.config, net.model.config.chunk, cache.layers[0].key.shape[1]
    table, real = gather(net.model.embedding, jnp.dtype(c.dtype)), tokens != PAD
    h = net.model.embed(table, tokens)
    if c.positions == "learned":
        known = gather(net.model.positions, h.dtype)[: tokens.shape[1]]
        # Past the last position there is padding only.
        h = h + jnp.pad(known, ((0, tokens.shape[1] - known.shape[0]), (0, 0)))
    memory, seen, layers, angles = None, None, [], _angles(c, tokens.shape[1])

    def encode(h):
        nonlocal memory, seen
        if memory is None:
            memory, seen = net.model.encode(table, neighbours, h, real), h
        return memory

    reads = cache.mask.shape[1] > 0
    for block, layer in zip(net.blocks, cache.layers):
        key, value = block.attention.keys_values(block.attention_norm(h))
        if angles is not None:
            key = rotate(key, *(a[:, None] for a in angles))
        room = ((0, 0), (0, length - tokens.shape[1]), (0, 0), (0, 0))
        key, value = jnp.pad(key, room), jnp.pad(value, room)
        layers.append(layer._replace(key=key, value=value))
        h = block(h, real, encode if reads else None, False)[0]
    chunk, mask = cache.chunk, cache.mask
    if reads:
        own, found = memory
        last = jnp.maximum(count // m - 1, 0)
        own, mask = _pick(own, last), _pick(found, last) & (count >= m)[:, None, None]
        layers = [_reading(b, x, own) for b, x in zip(net.blocks, layers)]
        parts = -(-tokens.shape[1] // m) + 1
        seen = jnp.pad(seen, ((0, 0), (0, parts * m - seen.shape[1]), (0, 0)))
        seen = jnp.reshape(seen, (seen.shape[0], parts, m, seen.shape[2]), out_sharding=ROWS)
        chunk = _pick(seen, count // m)
    logits = net.model.logits(net.model.norm(_pick(h, count - 1)[:, None]))[:, 0]
    return logits, Cache(tuple(layers), chunk, mask, count)


def step(net: Decoder, cache: Cache, tokens, fresh: Fresh | None = None):
    """Reads one token of each row: tokens [B] -> logits of the next [B, V], and the cache.

    fresh: needed where a row's token is the last of a chunk, if that row is to read on.
    """
    c, m, t = net.model.config, net.model.config.chunk, cache.count
    table = gather(net.model.embedding, jnp.dtype(c.dtype))
    h = net.model.embed(table, tokens[:, None])  # [B, 1, D]
    if c.positions == "learned":
        h = h + gather(net.model.positions, h.dtype).at[t].get(out_sharding=ROWS)[:, None]
    chunk, mask, layers, first = cache.chunk, cache.mask, [], True
    length = cache.layers[0].key.shape[1]
    angles = _angles(c, length)
    if angles is not None:  # each row's own [B, 1, 1, half]
        angles = [jnp.asarray(a).at[t].get(out_sharding=ROWS)[:, None, None] for a in angles]
    before = t[:, None] - jnp.arange(length)  # how far back a key is [B, J]
    own, back = (before >= 0)[:, None], jnp.maximum(before, 0)
    # Query i of the chunk that reads and key j are M - 1 + i - j apart, the table's entry M - i + j.
    apart = (m - (t + 1) % m)[:, None] + jnp.arange(c.retrieved)
    for block, layer in zip(net.blocks, cache.layers):
        x, y = h, block.attention_norm(h)
        q = block.attention.queries(y)  # [B, 1, N, A, H]
        k, v = block.attention.keys_values(y)
        if angles is not None:
            k, q = rotate(k, *angles), rotate(q, *(a[:, :, None] for a in angles))
        key, value = _put(layer.key, k, t), _put(layer.value, v, t)
        layer = layer._replace(key=key, value=value)
        read = _attend(block.attention, q, key[:, None], value[:, None], own, layer.table, back)
        h = h + read
        if layer.read is not None:
            if first:
                first, chunk = False, _put(chunk, h, t % m)
                if fresh is not None:
                    memory, mask = _encode(net.model, table, chunk, mask, fresh)
            if fresh is not None:
                layer = _reading(block, layer, memory, fresh.rows)
            q = block.cca.attention.queries(block.cca.norm(h))
            near = layer.read
            h = h + _attend(block.cca.attention, q, near.key, near.value, mask, near.table, apart)
        h = h + block.feed_forward(block.norm(x if c.parallel else h))
        layers.append(layer)
    logits = net.model.logits(net.model.norm(h))[:, 0]
    return logits, Cache(tuple(layers), chunk, mask, t + 1)


def _encode(model: Retro, table, chunk, mask, fresh: Fresh):
    """Memories [b, K, R, E] of the fresh neighbours, and the mask [B, K, R] with theirs."""
    h = chunk.at[fresh.rows].get(out_sharding=ROWS)
    real = jnp.ones(h.shape[:2], bool, out_sharding=ROWS)
    memory, found = model.encode(table, fresh.tokens[:, None], h, real)
    return memory[:, 0], mask.at[fresh.rows].set(found[:, 0], out_sharding=_rows(3))


def _reading(block: Block, layer: Layer, memory, rows=None) -> Layer:
    """A layer that reads memories [b, K, R, E], of some rows or of all."""
    if layer.read is None:
        return layer
    key, value = block.cca.attention.keys_values(memory)
    if rows is not None:
        sharding = jax.typeof(layer.read.key).sharding
        key = layer.read.key.at[rows].set(key, out_sharding=sharding)
        value = layer.read.value.at[rows].set(value, out_sharding=sharding)
    return layer._replace(read=layer.read._replace(key=key, value=value))


def _attend(attention, q, key, value, mask, table, at):
    """One query of each row to its memories, and W_o: q [B, 1, N, A, H], key and value [B, K, J, N, H],
    mask [B, K, J] -> [B, 1, D]. at: [B, J] which entry of the table [S, N, A, H] is a key's distance."""
    f32, q = {"preferred_element_type": jnp.float32}, q[:, 0]
    scale, content, by_key = q.shape[-1] ** -0.5, q, 0
    if table is not None:
        u, w = attention.biases(q.dtype)
        by_distance = jnp.einsum("bnah,snah->bnas", (q + w) * scale, table, **f32)
        at = jnp.broadcast_to(at[:, None, None], (*by_distance.shape[:3], at.shape[1]))
        at = jax.sharding.reshard(at, jax.typeof(by_distance).sharding.spec)
        by_key = jnp.take_along_axis(by_distance, at, axis=-1)[:, :, :, None]  # [B, N, A, 1, J]
        content = q + u
    logits = jnp.einsum("bnah,bkjnh->bnakj", content * scale, key, **f32) + by_key
    logits = jnp.where(mask[:, None, None], logits, -1e30)
    # Bounded, so that where no key is allowed every weight is 0.
    weights = jnp.exp(logits - jnp.maximum(logits.max((-2, -1), keepdims=True), -1e29))
    total = jnp.maximum(weights.sum((-2, -1)), 1e-30)[..., None]
    y = jnp.einsum("bnakj,bkjnh->bnah", weights.astype(value.dtype), value, **f32)
    return attention.output((y / total).astype(value.dtype)[:, None], mask.any((-2, -1))[:, None])


def _angles(c: ModelConfig, length: int):
    """Sine and cosine [L, half] by which rotary positions turn, or None where positions are others."""
    if c.positions != "rotary":
        return None
    return rotations(np.arange(length), c.head_size, c.rotary_share, c.rotary_base)


def _put(kept, x, at):
    """x [B, 1, ...] at one place of each row of [B, J, ...]."""
    put = lambda kept, x, at: jax.lax.dynamic_update_slice_in_dim(kept, x, at, 0)  # noqa: E731
    return jax.vmap(put)(kept, x, at)


def _pick(x, at):
    """One entry of the second axis for each row: [B, C, ...], [B] -> [B, ...]."""
    return jax.vmap(lambda x, at: jax.lax.dynamic_index_in_dim(x, at, 0, keepdims=False))(x, at)


def _rows(rank: int, heads: bool = False) -> jax.P:
    """Rows over the mesh and, of arrays that end in [N, H], heads too."""
    return jax.P(ROWS[0], *(None,) * (rank - 3), "model", None) if heads else jax.P(ROWS[0])
