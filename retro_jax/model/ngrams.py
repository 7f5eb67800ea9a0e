"""A memory of n-grams beside a layer of the decoder, looked up by hashes (Engram: Cheng et al. 2026, arXiv
2601.07372).

    B batch, L tokens, D decoder width, G tables (of each n-gram's hashes), S rows of a table, W width of a row

The last two and the last three tokens are hashed into tables, several times each. What stands there is joined, e [G W],
and added to the residual stream through a gate: sigmoid(rms(h) . rms(e K) / sqrt(D)) e V. (Engram's short convolution
is left out.)
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec as P

from retro_jax.config import ModelConfig
from retro_jax.model.einsum import project
from retro_jax.model.layers import Norm, RetroParam, embedding, gather, look_up, weight

GRAMS = (2, 3)  # tokens of what is hashed, its last one included
BEFORE = max(GRAMS) - 1  # tokens before it


class NGramMemory(nnx.Module):
    """Tables, and the gate to them."""

    def __init__(self, config: ModelConfig):
        c, m = config.decoder, config.memory
        self.config, self.tables = m, len(GRAMS) * m.hashes
        joined = self.tables * m.width
        self.rows = embedding(RetroParam, self.tables * m.size, m.width)
        self.key = weight(RetroParam, (joined, c.d), joined, P(None, "data"))
        scale = (2 * c.layers) ** -0.5
        self.value = weight(RetroParam, (joined, c.d), joined, P(None, "data"), scale)
        self.norm = Norm(c, c.d, RetroParam)
        self.key_norm = Norm(c, c.d, RetroParam)

    def __call__(self, tokens, h, before=None):
        """What is added to h [B, L, D] for tokens [B, L]; before: the BEFORE tokens before them [B, BEFORE]."""
        ids = self.places(tokens, before)
        e = look_up(gather(self.rows, h.dtype), ids)  # [B, L, G, W]
        e = e.reshape(*ids.shape[:2], -1)
        key, value = (project(e, gather(w, h.dtype)) for w in (self.key, self.value))
        match = (self.norm(h) * self.key_norm(key)).astype(jnp.float32).sum(-1, keepdims=True)
        return jax.nn.sigmoid(match / h.shape[-1] ** 0.5).astype(h.dtype) * value

    def places(self, tokens, before=None):
        """Rows of the tables [B, L, G]."""
        length, m = tokens.shape[1], self.config
        if before is None:
            before = jnp.zeros_like(tokens[:, :1]).repeat(BEFORE, axis=1)
        whole = jnp.concatenate([before, tokens], axis=1).astype(jnp.uint32)
        factors = np.random.default_rng(0).integers(1 << 31, 1 << 32, (m.hashes, BEFORE + 1)) | 1
        found = []
        for n in GRAMS:
            for head in range(m.hashes):
                mixed = jnp.full_like(whole[:, BEFORE:], n)
                for back in range(n):
                    part = whole[:, BEFORE - back : BEFORE - back + length]
                    mixed = (mixed ^ part) * jnp.uint32(factors[head, back])
                    mixed = mixed ^ (mixed >> 15)
                found.append((mixed % m.size).astype(jnp.int32))
        return jnp.stack(found, axis=-1) + jnp.arange(self.tables, dtype=jnp.int32) * m.size
