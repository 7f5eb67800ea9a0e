"""RETRO (Borgeaud et al. 2021, arXiv 2112.04426, algorithm 1): decoder, encoder, the whole.

    B batch, L tokens, C = L / M chunks, M chunk length, K neighbours, R = 2 M retrieved length,
    D decoder width, E encoder width, V vocabulary

Token ids of 0 are padding: never attended, in the decoder, the encoder or across. Chunk c of a
sequence is its tokens c M .. c M + M - 1; what it retrieves acts from its last token on.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P

from retro_jax.config import ModelConfig
from retro_jax.model.attention import Attention, RetroParam, RmsNorm, gather, weight

PAD = 0


class FeedForward(nnx.Module):
    """GELU between d -> 4 d -> d."""

    def __init__(self, d: int, key: jax.Array, kind: type, out_scale: float):
        up, down = jax.random.split(key)
        self.up = weight(kind, up, (d, 4 * d), d, P("data", "model"))
        self.down = weight(kind, down, (4 * d, d), 4 * d, P("model", "data"), out_scale)

    def __call__(self, x):
        x = jax.nn.gelu(jnp.einsum("bgid,df->bgif", x, gather(self.up, x.dtype)))
        return jnp.einsum("bgif,fd->bgid", x, gather(self.down, x.dtype), out_sharding=P("data"))


class SelfAttention(nnx.Module):
    """Pre-norm self-attention inside each group, x [B, G, I, D]; the residual is the caller's."""

    def __init__(self, d, heads, head_size, key, kind, out_scale):
        self.norm = RmsNorm(d, kind)
        self.attention = Attention(d, d, heads, head_size, key, kind, out_scale, cross=False)

    def __call__(self, x, mask, causal: bool):
        h = self.norm(x)
        return self.attention(h, h[:, :, None], mask, offset=0, causal=causal)


class CrossAttention(nnx.Module):
    """Pre-norm cross-attention of a group to its memories; the residual is the caller's."""

    def __init__(self, d, memory, heads, head_size, key, kind, out_scale):
        self.norm = RmsNorm(d, kind)
        self.attention = Attention(d, memory, heads, head_size, key, kind, out_scale, cross=True)

    def __call__(self, x, memory, mask, offset: int):
        return self.attention(self.norm(x), memory, mask, offset)


def chunked_cross_attention(cross: CrossAttention, h, memory, mask, m: int):
    """CCA (equations 3 and 4): h [B, L, D], memory [B, C, K, R, E], mask [B, C, K, R] -> [B, L, D].

    The attending chunk of memory c is the last token of chunk c and the first M - 1 of chunk c + 1:
    positions c M + M - 1 .. c M + 2 M - 2. So the rows are moved M - 1 to the left, cut into chunks,
    attended, and moved back; the first M - 1 rows get exactly 0, and where a chunk has no neighbour
    its rows do too. Query i and key j are M - 1 + i - j apart (appendix B.1.2: -64..126 at M = 64).
    """
    batch, length, d = h.shape
    chunks = memory.shape[1]
    x = h[:, m - 1 :]  # no row at all where the sequence is shorter than a chunk
    x = jnp.pad(x, ((0, 0), (0, chunks * m - x.shape[1]), (0, 0))).reshape(batch, chunks, m, d)
    y = cross(x, memory, mask[:, :, None], offset=m - 1)
    y = y.reshape(batch, chunks * m, d)
    return jnp.pad(y, ((0, 0), (m - 1, 0), (0, 0)))[:, :length]


class Block(nnx.Module):
    """A decoder layer: self-attention, chunked cross-attention if it has one, feed-forward."""

    def __init__(self, config: ModelConfig, key: jax.Array, cca: bool):
        keys = jax.random.split(key, 3)
        c, scale = config, (2 * config.layers) ** -0.5
        self.attention = SelfAttention(c.d, c.heads, c.head_size, keys[0], nnx.Param, scale)
        self.norm = RmsNorm(c.d, nnx.Param)
        self.feed_forward = FeedForward(c.d, keys[1], nnx.Param, scale)
        if cca:
            self.cca = CrossAttention(
                c.d, c.encoder_d, c.heads, c.head_size, keys[2], RetroParam, scale
            )


class EncoderBlock(nnx.Module):
    """An encoder layer: self-attention in a neighbour, cross-attention to the chunk, feed-forward."""

    def __init__(self, config: ModelConfig, key: jax.Array, cross: bool):
        keys = jax.random.split(key, 3)
        c, scale = config, (2 * config.encoder_layers) ** -0.5
        heads, size, kind = c.encoder_heads, c.encoder_head_size, RetroParam
        self.attention = SelfAttention(c.encoder_d, heads, size, keys[0], kind, scale)
        self.norm = RmsNorm(c.encoder_d, kind)
        self.feed_forward = FeedForward(c.encoder_d, keys[1], kind, scale)
        if cross:
            self.cross = CrossAttention(c.encoder_d, c.d, heads, size, keys[2], kind, scale)


class Encoder(nnx.Module):
    """Encodes each neighbour alone, conditioned on the chunk that retrieved it."""

    def __init__(self, config: ModelConfig, vocab: int, key: jax.Array):
        keys = jax.random.split(key, config.encoder_layers + 1)
        if not config.share_embedding:
            self.embedding = embedding(RetroParam, keys[-1], vocab, config.encoder_d)
        self.layers = nnx.List(
            [
                EncoderBlock(config, keys[i], i + 1 in config.encoder_ca_layers)
                for i in range(config.encoder_layers)
            ]
        )
        self.norm = RmsNorm(config.encoder_d, RetroParam)

    def __call__(self, e, mask, h, h_mask):
        """Neighbours to memories.

        Args:
          e: embedded neighbours [B, C, K, R, E].
          mask: True where a neighbour has a token [B, C, K, R].
          h: the chunks' activations [B, C, M, D], after self-attention of the first CCA layer.
          h_mask: True where a chunk has a token [B, C, M].

        Returns:
          [B, C, K, R, E].
        """
        b, c, k, r, width = e.shape
        m = h.shape[2]
        e = e.reshape(b, c * k, r, width)
        own = mask.reshape(b, c * k, r)[:, :, None, None]
        # Each of the K neighbours of a chunk reads the same M activations.
        chunk = jnp.broadcast_to(h[:, :, None], (b, c, k, m, h.shape[-1]))
        chunk = chunk.reshape(b, c * k, m, h.shape[-1])[:, :, None]
        chunk_mask = jnp.broadcast_to(h_mask[:, :, None], (b, c, k, m))
        chunk_mask = chunk_mask.reshape(b, c * k, m)[:, :, None, None]
        for layer in self.layers:
            e = e + layer.attention(e, own, causal=False)
            if hasattr(layer, "cross"):
                e = e + layer.cross(e, chunk, chunk_mask, offset=0)
            e = e + layer.feed_forward(layer.norm(e))
        return self.norm(e).reshape(b, c, k, r, width)


def embedding(kind: type, key: jax.Array, vocab: int, d: int):
    """A table [V, D] of standard deviation 1 / sqrt(D), so that a tied readout starts near 1."""
    return weight(kind, key, (vocab, d), d, P("model", "data"))


def look_up(table: nnx.Param, ids, dtype) -> jax.Array:
    """ids [...] -> rows [..., D] of length about sqrt(D)."""
    rows = gather(table, dtype).at[ids].get(out_sharding=P("data"))
    return rows * rows.shape[-1] ** 0.5


class Retro(nnx.Module):
    """The language model; with `retrieval`, RETRO. The readout is tied to the embedding."""

    def __init__(self, config: ModelConfig, vocab: int, key: jax.Array, retrieval: bool = True):
        keys = jax.random.split(key, config.layers + 2)
        self.config = config
        self.embedding = embedding(nnx.Param, keys[-1], vocab, config.d)
        self.layers = nnx.List(
            [
                Block(config, keys[i], retrieval and i + 1 in config.cca_layers)
                for i in range(config.layers)
            ]
        )
        self.norm = RmsNorm(config.d, nnx.Param)
        if retrieval:
            self.encoder = Encoder(config, vocab, keys[-2])

    def __call__(self, tokens, neighbours=None):
        """Logits of the next token.

        Args:
          tokens: [B, L] ids, any L >= 1.
          neighbours: [B, C, K, R] ids with C = ceil(L / M), PAD where there is no token; None, or
            K = 0, is RETRO[OFF]: every chunked cross-attention is the identity. What an incomplete
            last chunk retrieves is not read.

        Returns:
          [B, L, V] float32; row t predicts token t + 1 from tokens 0 .. t and from the neighbours
          of the chunks that are complete at t.
        """
        dtype = jnp.dtype(self.config.dtype)
        length = tokens.shape[1]
        off = neighbours is None or neighbours.shape[2] == 0
        real = tokens != PAD
        causal = jnp.tril(jnp.ones((length, length), bool))
        # Padding sees itself, so that no row is without a key.
        visible = causal & (real[:, None, :] | jnp.eye(length, dtype=bool))
        mask = visible[:, None, :, None]  # [B, 1, L, 1, L]
        h = look_up(self.embedding, tokens, dtype)
        memory = None
        for layer in self.layers:
            h = h + layer.attention(h[:, None], mask, causal=True)[:, 0]
            if hasattr(layer, "cca") and not off:
                if memory is None:
                    memory, memory_mask = self._encode(neighbours, h, real, dtype)
                h = h + chunked_cross_attention(
                    layer.cca, h, memory, memory_mask, self.config.chunk
                )
            h = h + layer.feed_forward(layer.norm(h)[:, None])[:, 0]
        h = self.norm(h)
        table = gather(self.embedding, dtype)
        return jnp.einsum("bld,vd->blv", h, table, preferred_element_type=jnp.float32)

    def _encode(self, neighbours, h, real, dtype):
        """Memories of all chunks, [B, C, K, R, E], and their mask; h [B, L, D], real [B, L]."""
        b, length, d = h.shape
        chunks, m = neighbours.shape[1], self.config.chunk
        if chunks != -(-length // m):
            raise ValueError(
                f"neighbours of {chunks} chunks for {length} tokens; {-(-length // m)} are needed"
            )
        fill = chunks * m - length
        h = jnp.pad(h, ((0, 0), (0, fill), (0, 0))).reshape(b, chunks, m, d)
        real = jnp.pad(real, ((0, 0), (0, fill))).reshape(b, chunks, m)
        own = self.encoder
        table = self.embedding if self.config.share_embedding else own.embedding
        mask = neighbours != PAD
        return own(look_up(table, neighbours, dtype), mask, h, real), mask
