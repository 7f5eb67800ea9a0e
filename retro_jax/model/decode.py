"""Token by token what `Retro` gives for a whole sequence, with caches of what it would compute again.

    B rows (sequences), J tokens that a row can have, M chunk length, K neighbours, R retrieved length,
    N heads of keys and values, A heads of queries for each, H head size, D width, V vocabulary

A row's chunks begin at its first token, whatever the other rows do, or at the padding before it. Kept of
a row are the keys and values of its self-attentions; of its last M tokens, what the first CCA layer's
self-attention gave, for the encoder; and of what it reads, the keys and values in every CCA layer. The last
token of a chunk is read twice: in a step in which the row stands still, which keeps what the encoder needs of
it, and, after `read` has encoded the chunk's neighbours, in the step that goes on. A row may read anew before
M more tokens have come: the M last tokens are then the chunk that retrieved.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from retro_jax.config import DecoderConfig, ModelConfig
from retro_jax.model import ngrams, on_cpu
from retro_jax.model.attend import beside
from retro_jax.model.cache import Cache, Fresh, Layer, Read, over_rows
from retro_jax.model.decoder import Decoder
from retro_jax.model.layers import ROWS, by_rows, gather
from retro_jax.model.positions import rotate, rotations
from retro_jax.model.retro import PAD, Block, Retro

PARTS = (8, 4, 2, 1)  # what a step reads of the rows' places: an eighth, a quarter, a half, or all


def start(net: Decoder, rows: int, length: int, k: int) -> Cache:
    """The cache of `rows` empty sequences of at most `length` tokens that read k neighbours; k = 0 is
    RETRO[OFF]."""
    c, reading = net.model.config.decoder, net.model.config.reading
    m, retrieved, dtype = reading.chunk, reading.retrieved, jnp.dtype(net.model.config.dtype)

    def zeros(*shape, heads=True):
        return jnp.zeros(shape, dtype, out_sharding=over_rows(len(shape), heads))

    layers = []
    for block in net.blocks:
        own = zeros(rows, c.kv_heads or c.heads, length, c.head_size)
        own = own.astype(jnp.float32) if on_cpu.is_slow(own) else own  # or each `put` would do it
        table = read = None
        if block.attention.heads.positions == "relative":
            table = _table(block.attention, length - 1 - np.arange(length), dtype)
        if k and hasattr(block, "cca"):
            near = zeros(rows, c.heads, k * retrieved, c.head_size)
            steps = 2 * m - 1 - np.arange(m + retrieved)
            relative = block.cca.attention.heads.positions == "relative"
            read = Read(near, near, _table(block.cca.attention, steps, dtype) if relative else None)
        layers.append(Layer(own, own, table, read))
    mask = jnp.zeros((rows, k, retrieved), bool, out_sharding=over_rows(3))
    none = jnp.zeros(rows, jnp.int32, out_sharding=over_rows(1))
    chunk, fed = zeros(rows, m, c.d, heads=False), zeros(rows, c.d, heads=False)
    recent = jnp.zeros((rows, ngrams.BEFORE), jnp.int32, out_sharding=over_rows(2))
    return Cache(tuple(layers), chunk, mask, none, none, none, fed, recent)


def prefill(net: Decoder, cache: Cache, tokens, count, neighbours):
    """Reads prompts into an empty cache, all in one pass.

    Args:
      tokens: [B, L], L at most J, PAD after a row's last, and before its first where its chunks are to
        end elsewhere. count: [B] how many each row has, padding before them included.
      neighbours: [B, ceil(L / M), K, R] of every complete chunk, PAD where there is none.

    Returns:
      Logits [B, V] of the token after each prompt, and the cache.
    """
    config, length = net.model.config, cache.layers[0].key.shape[2]
    c, m = config.decoder, config.reading.chunk
    table, real = gather(net.model.embedding, jnp.dtype(config.dtype)), tokens != PAD
    begin = jnp.argmax(real, axis=1).astype(jnp.int32)
    h = net.model.embed(table, tokens)
    if c.positions == "learned":
        h = h + _learned(net.model, jnp.arange(tokens.shape[1]) - begin[:, None], h.dtype)
    memory, seen, layers, angles = None, None, [], _angles(c, tokens.shape[1])

    def encode(h):
        nonlocal memory, seen
        if memory is None:
            memory, seen = net.model.encode(table, neighbours, h, real), h
        return memory

    reads = cache.mask.shape[1] > 0
    for number, (block, layer) in enumerate(zip(net.blocks, cache.layers), 1):
        if _remembers(config, number):
            h = h + net.model.memory(tokens, h)
        key, value = block.attention.keys_values(block.attention_norm(h))
        if angles is not None:
            key = rotate(key, *(a[:, None] for a in angles))
        room = ((0, 0), (0, 0), (0, length - tokens.shape[1]), (0, 0))
        kept = (jnp.pad(jnp.swapaxes(x, 1, 2), room) for x in (key, value))
        key, value = (x.astype(layer.key.dtype) for x in kept)
        layers.append(layer._replace(key=key, value=value))
        before = h
        h = block.attended(h, real, encode if reads else None, False)[0]
        fed = block.fed(before, h)
        h = h + block.feed_forward(fed)
    chunk, mask = cache.chunk, cache.mask
    if reads:
        own, found = memory
        last = jnp.minimum(jnp.maximum(count // m - 1, 0), own.shape[1] - 1)
        own, mask = pick(own, last), pick(found, last) & (count >= m)[:, None, None]
        layers = [_reading(b, x, own) for b, x in zip(net.blocks, layers)]
        # The place of token t is t % M: which of the last M tokens is at each place.
        last = (count - 1)[:, None]
        chunk = pick(seen, jnp.maximum(last - (last - jnp.arange(m)) % m, 0))
    logits = net.model.logits(net.model.norm(pick(h, count - 1)[:, None]))[:, 0]
    at = (count - ngrams.BEFORE)[:, None] + jnp.arange(ngrams.BEFORE)
    recent = jnp.where(at >= 0, pick(tokens, jnp.maximum(at, 0)), PAD)
    held = count // m * m, pick(fed, count - 1), recent
    return logits, Cache(tuple(layers), chunk, mask, count, begin, *held)


def step(net: Decoder, cache: Cache, tokens, active=None):
    """Reads one token of each row: tokens [B] -> logits of the next [B, V], and the cache.

    active: rows [B] that go on; the others stay where they are, so that their token can be read again. None: all.
    """
    config, t = net.model.config, cache.count
    c, m = config.decoder, config.reading.chunk
    table = gather(net.model.embedding, jnp.dtype(config.dtype))
    h = net.model.embed(table, tokens[:, None])  # [B, 1, D]
    if c.positions == "learned":
        h = h + _learned(net.model, (t - cache.begin)[:, None], h.dtype)
    chunk, mask, layers, first = cache.chunk, cache.mask, [], True
    length = cache.layers[0].key.shape[2]
    angles = _angles(c, length)
    if angles is not None:  # each row's own [B, 1, 1, half]
        angles = [jnp.asarray(a).at[t].get(out_sharding=ROWS)[:, None, None] for a in angles]
    before = t[:, None] - jnp.arange(length)  # how far back a key is [B, J]
    own = (before >= 0) & (before <= (t - cache.begin)[:, None])
    # Reading one row's places costs little compared with reading the weights: not worth a larger program.
    begun = jax.sharding.reshard(t, jax.P()).max() + 1 if len(t) > 1 else None
    # Query i since the chunk's end and key j are M - 1 + i - j apart, the table's entry M - i + j.
    apart = m - 1 - t + cache.point
    for number, (block, layer) in enumerate(zip(net.blocks, cache.layers), 1):
        if _remembers(config, number):
            h = h + net.model.memory(tokens[:, None], h, cache.recent)
        x, y = h, block.attention_norm(h)
        q = block.attention.queries(y)  # [B, 1, N, A, H]
        k, v = block.attention.keys_values(y)
        if angles is not None:
            k, q = rotate(k, *angles), rotate(q, *(a[:, :, None] for a in angles))
        key, value = (
            put(x, jnp.swapaxes(y, 1, 2), t) for x, y in ((layer.key, k), (layer.value, v))
        )
        layer = layer._replace(key=key, value=value)
        h = h + _attend_begun(block.attention, q, key, value, own, layer.table, t, begun)
        if layer.read is not None:
            if first:
                own_chunk = block.retrieving(h)
                first, chunk = False, put(chunk[:, None], own_chunk[:, None], t % m)[:, 0]
            q = block.cca.attention.queries(block.cca.norm(h))
            near = layer.read
            seen = jnp.reshape(mask, (len(t), -1), out_sharding=ROWS)
            a = block.cca.attention
            h = h + _attend(a, q, near.key, near.value, seen, near.table, apart, mask.shape[1])
        fed = block.fed(x, h)
        h = h + block.feed_forward(fed)
        layers.append(layer)
    logits = net.model.logits(net.model.norm(h))[:, 0]
    count = t + 1 if active is None else t + active
    newest = by_rows(tokens[:, None].astype(jnp.int32))
    recent = jnp.concatenate([by_rows(cache.recent[:, 1:]), newest], axis=1)
    if active is not None:
        recent = jnp.where(active[:, None], recent, cache.recent)
    held = count, cache.begin, cache.point, fed[:, 0], recent
    return logits, Cache(tuple(layers), chunk, mask, *held)


def read(net: Decoder, cache: Cache, fresh: Fresh) -> Cache:
    """Encodes new neighbours of some rows, which read them from their next token on.

    Those rows stood still in a step with that token before: the encoder needs what that step kept of it.
    """
    m, t = net.model.config.reading.chunk, cache.count

    def rows(x):
        return x.at[fresh.rows].get(out_sharding=ROWS)

    # The M last tokens in their order, and which of them there are.
    at = rows(t)[:, None] - (m - 1) + jnp.arange(m)
    h, real = pick(rows(cache.chunk), at % m), at >= rows(cache.begin)[:, None]
    table = gather(net.model.embedding, jnp.dtype(net.model.config.dtype))
    memory, found = net.model.encode(table, fresh.tokens[:, None], h, real)
    layers = [_reading(*x, memory[:, 0], fresh.rows) for x in zip(net.blocks, cache.layers)]
    mask = cache.mask.at[fresh.rows].set(found[:, 0], out_sharding=over_rows(3))
    point = cache.point.at[fresh.rows].set(rows(t) + 1, out_sharding=over_rows(1))
    return cache._replace(layers=tuple(layers), mask=mask, point=point)


def _remembers(config: ModelConfig, layer: int) -> bool:
    """Whether a memory of n-grams stands before a layer, counted from 1."""
    return config.memory is not None and layer == config.reading.cca_layers[0]


def _reading(block: Block, layer: Layer, memory, rows=None) -> Layer:
    """A layer that reads memories [b, K, R, E], of some rows or of all."""
    if layer.read is None:
        return layer
    key, value = (
        jnp.reshape(
            jnp.moveaxis(x, 3, 1),
            (len(x), x.shape[3], -1, x.shape[4]),
            out_sharding=over_rows(4, True),
        )
        for x in block.cca.attention.keys_values(memory)
    )
    if rows is not None:
        sharding = jax.typeof(layer.read.key).sharding
        key = layer.read.key.at[rows].set(key, out_sharding=sharding)
        value = layer.read.value.at[rows].set(value, out_sharding=sharding)
    return layer._replace(read=layer.read._replace(key=key, value=value))


def _attend(attention, q, key, value, mask, table, start, times: int = 1):
    """One query of each row to what it may read, and W_o: q [B, 1, N, A, H], key and value [B, N, S, H],
    mask [B, S] -> [B, 1, D].

    start: the entry of the table [N, A, T, H] that is the distance of a row's first key [B]; those of
    the next keys follow. times: keys are so many memories, at equal distances.
    """
    f32, q = {"preferred_element_type": jnp.float32}, q[:, 0]
    # Heads lie as the weights have them.
    where = jax.P(ROWS[0], jax.typeof(q).sharding.spec[1])
    key, value = (jax.sharding.reshard(x, where) for x in (key, value))
    scale, content, by_key = q.shape[-1] ** -0.5, q, 0
    if table is not None:
        u, w = attention.biases(q.dtype)
        by_distance = jnp.einsum("bnah,nath->bnat", (q + w) * scale, table, **f32)
        size = mask.shape[1] // times
        by_distance = jnp.pad(by_distance, ((0, 0), (0, 0), (0, 0), (0, size)))
        by_key = jnp.tile(_slices(by_distance, start, size), times)
        content = q + u
    logits = jnp.einsum("bnah,bnsh->bnas", content * scale, key, **f32) + by_key
    logits = jnp.where(mask[:, None, None], logits, -1e30)
    # Bounded, so that where no key is allowed every weight is 0.
    top = jnp.maximum(logits.max(-1, keepdims=True), -1e29)
    weights = jnp.exp(logits - top)
    total = jnp.maximum(weights.sum(-1), 1e-30)
    y = jnp.einsum("bnas,bnsh->bnah", weights.astype(value.dtype), value, **f32)
    y = y / total[..., None]
    nothing = attention.nothing(q)
    if nothing is not None:
        y = y * beside(nothing, top[..., 0] + jnp.log(total))[..., None]
    return attention.output(y.astype(q.dtype)[:, None], mask.any(-1)[:, None])


def _attend_begun(attention, q, key, value, mask, table, t, begun):
    """`_attend` of tokens at places t [B] to J places, of which the first J / part are read: the fewest that hold
    `begun` [] places. begun: None reads all."""
    length = mask.shape[1]

    def read(size: int):
        far = None if table is None else table[:, :, length - size :]
        near = key[:, :, :size], value[:, :, :size], mask[:, :size]
        return _attend(attention, q, *near, far, size - 1 - t)

    if begun is None:
        return read(length)
    sizes = [-(-length // part) for part in PARTS]
    which = (begun > np.array(sizes[:-1])).sum()
    return jax.lax.switch(which, [functools.partial(read, size) for size in sizes])


def _table(attention, steps, dtype):
    """Relative positions by distance, [N, A, S, H]."""
    return jnp.moveaxis(attention.relative(steps, dtype)[0], 0, 2)


def _learned(model: Retro, at, dtype):
    """Rows of the learned positions for places [B, L]; where there is padding any will do."""
    known = gather(model.positions, dtype)
    return known.at[jnp.clip(at, 0, known.shape[0] - 1)].get(out_sharding=ROWS)


def _angles(c: DecoderConfig, length: int):
    """Sine and cosine [L, half] by which rotary positions turn, or None where positions are others."""
    if c.positions != "rotary":
        return None
    return rotations(c, np.arange(length))


def put(kept, x, at):
    """x [B, N, 1, ...] at one place of each row of [B, N, J, ...]."""
    # All indices are named: a slice of one row would be updated in a copy of the whole cache, at each token.
    rows, heads = (np.arange(n) for n in kept.shape[:2])
    place = kept.at[rows[:, None], heads, at[:, None]]
    given = {"mode": "drop", "unique_indices": True, "indices_are_sorted": True}
    return place.set(x[:, :, 0].astype(kept.dtype), out_sharding=jax.typeof(kept).sharding, **given)


def _slices(x, start, size: int):
    """Of the last axis, `size` entries from another place for each row."""
    return jax.vmap(lambda x, at: jax.lax.dynamic_slice_in_dim(x, at, size, x.ndim - 1))(x, start)


def pick(x, at):
    """Entries of the second axis for each row: [B, C, ...], [B] -> [B, ...] or [B, n] -> [B, n, ...]."""
    return jax.vmap(lambda x, at: x.at[at].get(mode="promise_in_bounds"))(x, at)
