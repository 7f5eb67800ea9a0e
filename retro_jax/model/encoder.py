"""The encoder of neighbours (Borgeaud et al. 2021, algorithm 1, ENCODER).

B batch, C chunks, M chunk length, K neighbours, R retrieved length, D decoder width, E width
"""

import jax.numpy as jnp
from flax import nnx

from retro_jax.config import ModelConfig
from retro_jax.model.attention import Attention, Heads
from retro_jax.model.cross import CrossAttention
from retro_jax.model.layers import ROWS, FeedForward, Norm, RetroParam, embedding, remat


class EncoderBlock(nnx.Module):
    """An encoder layer: self-attention in a neighbour, cross-attention to the chunk, feed-forward."""

    def __init__(self, config: ModelConfig, cross: bool):
        c, decoder, positions = config.encoder, config.decoder, config.reading.positions
        d, n, size, scale = c.d, c.heads, c.head_size, (2 * c.layers) ** -0.5
        own = Heads(d, d, n, n, size, positions, cross=False)
        self.attention_norm = Norm(decoder, d, RetroParam)
        self.attention = Attention(config, own, RetroParam, scale)
        self.norm = Norm(decoder, d, RetroParam)
        self.feed_forward = FeedForward(decoder, d, c.ffw or 4 * d, RetroParam, scale)
        if cross:
            heads = Heads(d, decoder.d, n, n, size, positions, cross=True)
            self.cross = CrossAttention(config, heads, scale)

    def __call__(self, e, own, chunk, chunk_mask):
        """e [B, C K, R, E], own [B, C K, 1, R], chunk [B, C, 1, M, D], its mask [B, C, 1, M]."""
        y = self.attention_norm(e)
        e = e + self.attention(y, y[:, :, None], own)[0]
        if hasattr(self, "cross"):
            e = e + self.cross(e, chunk, chunk_mask, offset=0)[0]
        return e + self.feed_forward(self.norm(e))


class Encoder(nnx.Module):
    """Encodes each neighbour alone, conditioned on the chunk that retrieved it."""

    def __init__(self, config: ModelConfig, vocab: int):
        c, self.config = config.encoder, config
        if not c.share_embedding:
            self.embedding = embedding(RetroParam, vocab, c.d)
        self.layers = nnx.List(
            EncoderBlock(config, i + 1 in c.cross_layers) for i in range(c.layers)
        )
        if c.final_norm:
            self.norm = Norm(config.decoder, c.d, RetroParam)

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
        e = jnp.reshape(e, (b, c * k, r, width), out_sharding=ROWS)
        own = jnp.reshape(mask, (b, c * k, r), out_sharding=ROWS)[:, :, None]
        layer_call = remat(self.config, lambda layer, *args: layer(*args))
        for layer in self.layers:
            e = layer_call(layer, e, own, h[:, :, None], h_mask[:, :, None])
        e = self.norm(e) if self.config.encoder.final_norm else e
        return jnp.reshape(e, (b, c, k, r, width), out_sharding=ROWS)
