"""RETRO (Borgeaud et al. 2021, arXiv 2112.04426, algorithm 1): the decoder, and the whole.

    B batch, L tokens, C = L / M chunks, M chunk length, K neighbours, R = 2 M retrieved length,
    D decoder width, E encoder width, V vocabulary

Token ids of 0 are padding: never attended, in the decoder, the encoder or across. Chunk c of a
sequence is its tokens c M .. c M + M - 1; what it retrieves acts from its last token on.
"""

import itertools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P

from retro_jax.config import ModelConfig
from retro_jax.model.attention import Attention, Heads
from retro_jax.model.cross import (
    CrossAttention,
    chunked_cross_attention,
    cross_attention_once,
    statistics_of,
)
from retro_jax.model.einsum import product
from retro_jax.model.encoder import Encoder
from retro_jax.model.layers import (
    ROWS,
    FeedForward,
    Norm,
    constant,
    embedding,
    gather,
    look_up,
    remat,
    weight,
)
from retro_jax.model.ngrams import NGramMemory

PAD = 0


class Block(nnx.Module):
    """A decoder layer: self-attention, chunked cross-attention if it has one, feed-forward."""

    def __init__(self, config: ModelConfig, cca: bool):
        c, scale = config.decoder, (2 * config.decoder.layers) ** -0.5
        positions = "none" if c.positions == "learned" else c.positions
        kv_heads = c.kv_heads or c.heads
        heads = Heads(c.d, c.d, c.heads, kv_heads, c.head_size, positions, False, c.qk_norm)
        self.config = config
        self.attention_norm = Norm(c, c.d, nnx.Param)
        self.attention = Attention(config, heads, nnx.Param, scale)
        self.norm = Norm(c, c.d, nnx.Param)
        self.feed_forward = FeedForward(c, c.d, c.ffw or 4 * c.d, nnx.Param, scale)
        if cca:
            width, reading = config.encoder.d, config.reading
            at = "none" if reading.once else reading.positions
            heads = Heads(c.d, width, c.heads, c.heads, c.head_size, at, cross=True)
            self.cca = CrossAttention(config, heads, 0.0 if reading.cca_zero else scale)

    def __call__(self, h, real, encode, statistics: bool):
        """One layer.

        Args:
          h: [B, L, D].
          real: True where a token may be attended [B, L].
          encode: from h after self-attention (with `normed_chunk`, after the CCA's norm too) to what
            its CCA reads, (memory [B, C, K, R, E], mask [B, C, K, R]); or None for a layer that reads
            nothing.
          statistics: also measure the CCA.

        Returns:
          h, what was read, and the statistics (see `statistics_of`) or None.
        """
        before = h
        h, read, found = self.attended(h, real, encode, statistics)
        return h + self.feed_forward(self.fed(before, h)), read, found

    def attended(self, h, real, encode, statistics: bool):
        """All of a layer but its feed-forward; see `__call__`."""
        read, found = None, None
        y = self.attention_norm(h)[:, None]
        h = h + self.attention(y, y[:, :, None], real[:, None, None], causal=True)[0][:, 0]
        if encode is not None and hasattr(self, "cca"):
            read = encode(self.retrieving(h))
            reading = self.config.reading
            attend = cross_attention_once if reading.once else chunked_cross_attention
            y, mass = attend(self.cca, h, *read, reading.chunk, statistics)
            found = statistics_of(h, y, mass) if statistics else None
            h = h + y
        return h, read, found

    def fed(self, before, h):
        """What its feed-forward reads, of what the layer was given and what its attentions made of it."""
        return self.norm(before if self.config.decoder.parallel else h)

    def retrieving(self, h):
        """What the encoder is told of a chunk by its first CCA layer: h [B, L, D] -> [B, L, D]."""
        return self.cca.norm(h) if self.config.reading.normed_chunk else h


def stacks(config: ModelConfig) -> list[tuple[tuple[bool, ...], int]]:
    """The decoder's layers as runs of equal groups, [(has a CCA, for each layer of a group), times].

    Layers of a run are compiled once, their weights stacked. The first CCA layer is a run of its
    own, because the encoder reads the activations inside it. For 12 layers with CCA in 6, 9 and 12:
    5 x (plain), 1 x (cross), 2 x (plain, plain, cross).
    """
    reads = config.reading.cca_layers
    first, last = reads[0], reads[-1]
    runs = [((False,), first - 1), ((True,), 1)]
    for previous, layer in itertools.pairwise(reads):
        group = (False,) * (layer - previous - 1) + (True,)
        if len(runs) > 2 and runs[-1][0] == group:
            runs[-1] = (group, runs[-1][1] + 1)
        else:
            runs.append((group, 1))
    runs.append(((False,), config.decoder.layers - last))
    return [run for run in runs if run[1]]


def layer_names(config: ModelConfig) -> list[tuple[str, int]]:
    """For each layer, the prefix of its weights' names and its index in their stacks."""
    return [
        (f"stacks.{s}.{place}", time)
        for s, (group, times) in enumerate(stacks(config))
        for time in range(times)
        for place in range(len(group))
    ]


class Retro(nnx.Module):
    """The language model; with `retrieval`, RETRO."""

    def __init__(self, config: ModelConfig, vocab: int, retrieval: bool = True):
        c, self.config = config.decoder, config
        self.embedding = embedding(nnx.Param, vocab, c.d)
        if c.positions == "learned":
            self.positions = weight(nnx.Param, (c.max_length, c.d), c.d, P(None, "data"))
        if not c.tied:
            self.readout = embedding(nnx.Param, vocab, c.d)
        if c.readout_bias:
            self.readout_bias = constant(nnx.Param, (vocab,), P("model"))
        self.stacks = nnx.List()
        for group, times in stacks(config):

            def blocks():
                return nnx.List(Block(config, retrieval and cca) for cca in group)  # noqa: B023

            self.stacks.append(jax.vmap(blocks, axis_size=times)())
        self.norm = Norm(c, c.d, nnx.Param)
        if retrieval:
            self.encoder = Encoder(config, vocab)
        if config.memory:
            self.memory = NGramMemory(config)

    def __call__(self, tokens, neighbours=None, statistics: bool = False):
        """The last layer's activations, from which `logits` predicts.

        Args:
          tokens: [B, L] ids, any L >= 1.
          neighbours: [B, C, K, R] ids with C = ceil(L / M), PAD where there is no token; None, or
            K = 0, is RETRO[OFF]: every chunked cross-attention is the identity. What an incomplete
            last chunk retrieves is not read.
          statistics: also measure every CCA.

        Returns:
          h [B, L, D] after the final norm; row t knows tokens 0 .. t and the neighbours of the
          chunks that are complete at t. And a dict of arrays that begin [P, ...], one row for each
          of P CCA layers (see `statistics_of`), or None without `statistics`.
        """
        c, dtype = self.config.decoder, jnp.dtype(self.config.dtype)
        off = neighbours is None or 0 in neighbours.shape
        table, real = gather(self.embedding, dtype), tokens != PAD
        h = self.embed(table, tokens)
        if 0 < c.max_length < tokens.shape[1]:
            raise ValueError(
                f"{tokens.shape[1]} tokens, but model.decoder.max_length = {c.max_length}"
            )
        if c.positions == "learned":
            h = h + gather(self.positions, dtype)[: tokens.shape[1]]
        memory, found = None, []
        remembers = self.config.memory is not None
        for (group, _), stack in zip(stacks(self.config), self.stacks):
            if any(group) and remembers:
                h, remembers = h + self.memory(tokens, h), False
            if any(group) and not off and memory is None:
                # The first CCA layer: the encoder reads what its self-attention gave. Not under
                # `remat`, which would run the encoder again; the encoder's own layers are.
                first = jax.tree.map(lambda w: w[0], stack)[0]

                def encode(h):
                    return self.encode(table, neighbours, h, real)

                h, memory, measured = first(h, real, encode, statistics)
                found.append(jax.tree.map(lambda x: x[None], measured))
                continue
            encode = (lambda h: memory) if memory is not None else None  # noqa: B023

            def run(h, layers, encode=encode):
                measured = None
                for layer in layers:
                    h, _, m = layer(h, real, encode, statistics)
                    measured = m or measured  # a group has one CCA layer at most
                return h, measured

            h, measured = jax.lax.scan(remat(self.config, run), h, stack)
            found.append(measured)
        found = [m for m in found if m is not None]
        joined = jax.tree.map(lambda *x: jnp.concatenate(x), *found) if found else None
        return self.norm(h), joined

    def logits(self, h):
        """h [B, L, D] -> [B, L, V] float32: row t predicts token t + 1."""
        table = gather(self.embedding if self.config.decoder.tied else self.readout, h.dtype)
        logits = product("bld,vd->blv", h, table)
        return logits + self.readout_bias[...] if self.config.decoder.readout_bias else logits

    def logit_of(self, h, targets):
        """The logits of one target [B, L] each: h [B, L, D] -> [B, L] float32."""
        table = gather(self.embedding if self.config.decoder.tied else self.readout, h.dtype)
        rows = look_up(table, targets)
        logit = jnp.einsum("bld,bld->bl", h, rows, preferred_element_type=jnp.float32)
        if self.config.decoder.readout_bias:
            logit = logit + look_up(self.readout_bias[...], targets)
        return logit

    def embed(self, table, ids):
        """Rows of the table for ids [...]: [..., D]."""
        rows = look_up(table, ids)
        return rows * rows.shape[-1] ** 0.5 if self.config.decoder.scale_embedding else rows

    def encode(self, table, neighbours, h, real):
        """Memories of all chunks, [B, C, K, R, E], or of the first one, and their mask; h [B, L, D], real [B, L]."""
        b, length, d = h.shape
        m = self.config.reading.chunk
        chunks = -(-length // m)
        integers = jnp.issubdtype(neighbours.dtype, jnp.integer)
        if neighbours.ndim != 4 or neighbours.shape[:2] != (b, chunks) or not integers:
            raise ValueError(
                f"neighbours of shape {neighbours.shape}, {neighbours.dtype}: must be integers [B, C, K, R], for {b} x "
                f"{length} tokens with C = {chunks} chunks of {m}: ({b}, {chunks}, K, R)"
            )
        if self.config.reading.once:
            chunks, neighbours, h, real = 1, neighbours[:, :1], h[:, :m], real[:, :m]
        fill = chunks * m - h.shape[1]
        # A batch of one: which of its axes of length 1 is the batch has to be said.
        rows = {"out_sharding": ROWS}
        h = jnp.reshape(jnp.pad(h, ((0, 0), (0, fill), (0, 0))), (b, chunks, m, d), **rows)
        real = jnp.reshape(jnp.pad(real, ((0, 0), (0, fill))), (b, chunks, m), **rows)
        if not self.config.encoder.share_embedding:
            table = gather(self.encoder.embedding, h.dtype)
        if self.config.reading.filled_chunk:
            h, real = jnp.where(real[..., None], h, 0), jnp.ones_like(real)
        mask = neighbours != PAD
        return self.encoder(self.embed(table, neighbours), mask, h, real), mask
