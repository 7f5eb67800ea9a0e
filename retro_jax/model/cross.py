"""Cross-attention to what was retrieved: by chunks, as RETRO reads, or to one memory for all.

B batch, L tokens, C chunks, M chunk length, K neighbours, R retrieved length, D width, E of the
memory
"""

import jax
import jax.numpy as jnp
from flax import nnx

from retro_jax.config import ModelConfig
from retro_jax.model.attention import Attention, Heads
from retro_jax.model.layers import ROWS, Norm, RetroParam


class CrossAttention(nnx.Module):
    """Pre-norm cross-attention of a group to its memories; the residual is the caller's."""

    def __init__(self, config: ModelConfig, heads: Heads, out_scale: float):
        self.norm = Norm(config.decoder, heads.d, RetroParam)
        self.attention = Attention(config, heads, RetroParam, out_scale)

    def __call__(self, x, memory, mask, offset: int, statistics: bool = False):
        """x [B, G, I, D], memory [B, G, K, J, E], mask [B, G, K, J] -> [B, G, I, D], mass."""
        return self.attention(self.norm(x), memory, mask, offset, statistics=statistics)


def chunked_cross_attention(cross: CrossAttention, h, memory, mask, m: int, statistics=False):
    """CCA (equations 3 and 4): h [B, L, D], memory [B, C, K, R, E], mask [B, C, K, R] -> [B, L, D].

    The shift of CCA: the attending chunk of memory c is the last token of chunk c and the first M - 1 of chunk c + 1:
    positions c M + M - 1 .. c M + 2 M - 2. So the rows are moved M - 1 to the left, cut into chunks,
    attended, and moved back; the first M - 1 rows get exactly 0, and where a chunk has no neighbour
    its rows do too. Query i and key j are M - 1 + i - j apart (appendix B.1.2: -64..126 at M = 64).

    Returns:
      [B, L, D] and the attention mass [B, L, K, 2] on N and F of each neighbour, or None.
    """
    batch, length, d = h.shape
    chunks = memory.shape[1]
    x = h[:, m - 1 :]  # no row at all where the sequence is shorter than a chunk
    x = jnp.pad(x, ((0, 0), (0, chunks * m - x.shape[1]), (0, 0)))
    x = jnp.reshape(x, (batch, chunks, m, d), out_sharding=ROWS)
    y, mass = cross(x, memory, mask, offset=m - 1, statistics=statistics)

    def back(rows):  # [B, C, M, ...] -> [B, L, ...]
        rows = jnp.reshape(rows, (batch, chunks * m, *rows.shape[3:]), out_sharding=ROWS)
        return jnp.pad(rows, ((0, 0), (m - 1, 0)) + ((0, 0),) * (rows.ndim - 2))[:, :length]

    return back(y), None if mass is None else back(mass)


def cross_attention_once(cross: CrossAttention, h, memory, mask, m: int, statistics=False):
    """As `chunked_cross_attention`, but of all tokens from the last of the first chunk on to what that chunk retrieved:
    memory [B, 1, K, R, E], mask [B, 1, K, R]."""
    x = h[:, m - 1 :]
    before = h.shape[1] - x.shape[1]
    if not x.shape[1]:
        return jnp.zeros_like(h), None
    y, mass = full_cross_attention(cross, x, memory[:, 0], mask[:, 0], 0, statistics)

    def back(rows):
        return jnp.pad(rows, ((0, 0), (before, 0)) + ((0, 0),) * (rows.ndim - 2))

    return back(y), None if mass is None else back(mass)


def full_cross_attention(cross: CrossAttention, h, memory, mask, offset: int = 0, statistics=False):
    """Every token reads one memory: h [B, L, D], memory [B, K, R, E], mask [B, K, R] -> [B, L, D].

    For readers that retrieve once for a sequence. Query i and key j are offset + i - j apart.
    Returns the mass too, as `chunked_cross_attention` does.
    """
    y, mass = cross(h[:, None], memory[:, None], mask[:, None], offset, statistics)
    return y[:, 0], None if mass is None else mass[:, 0]


def statistics_of(h, y, mass) -> dict[str, jax.Array]:
    """What a cross-attention did: input h and output y [B, L, D], mass [B, L, K, 2].

    Returns:
      ratio [B, L]: |y| / |h|, how much it changed a token; mass [B, L, K, 2]: the share of its
      attention on N and F of each neighbour, mean over heads (0 where nothing was read; what is
      missing from 1 went to the null key).
    """

    def norm(x):
        return jnp.linalg.norm(x.astype(jnp.float32), axis=-1)

    return {"ratio": norm(y) / jnp.maximum(norm(h), 1e-30), "mass": mass}
