"""A sketch of BM25: the words of a chunk, weighted as BM25 does, in few numbers that an index of vectors searches.

A chunk's vector has sqrt(idf) * saturation for each of its words (bm25.py). The product of two is what BM25 gives,
but that the words of a query are saturated too; and vectors are of length 1, so that a short chunk is as near as
a long one. Both are made good by exact BM25, which orders the candidates. Multiplied by random signs a vector becomes
E numbers whose products are nearly the same (Johnson and Lindenstrauss 1984; signs: Achlioptas 2003). Nothing is
fitted but the statistics of words, and rare words weigh the most, which a reduction by SVD throws away.

As candidates that exact BM25 then orders (`retrieval.rerank`), the 50 nearest of 512 numbers give the neighbours
that whole BM25 gives; docs/pipeline.md has the figures.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import sparse

from retro_jax.config.fields import require_at_least, setting
from retro_jax.errors import UserError
from retro_jax.retrieval.bm25 import Statistics, pairs
from retro_jax.retrieval.embedder import Embedder
from retro_jax.retrieval.words import NONE


@dataclass(frozen=True)
class Settings:
    """The fields `retrieval.settings.lexical.*`."""

    dim: int = setting(512, "E, the width of a vector, a multiple of 64")

    def __post_init__(self):
        require_at_least(64, "retrieval.settings.lexical.", self, "dim")
        if self.dim % 64:
            raise UserError(
                f"config field retrieval.settings.lexical.dim = {self.dim}: must be a multiple of 64"
            )


class Lexical(Embedder):
    """Words to vectors of length 1; a chunk without words has one that is far from all others.

    A vector of 0 would not do: to any other its squared distance is 1, to a chunk that shares a few words 1.6.
    """

    Settings = Settings
    reads = "words"
    clusters = False  # two sketches are far apart unless their chunks share rare words

    def __init__(self, width: int, statistics: Statistics):
        self.width, self._statistics = width, statistics
        self.operations = 2.0 * statistics.length * width

    @classmethod
    def fit(cls, settings, texts: Callable, count: int, out: Path, statistics=None):
        """Keeps the statistics of words."""
        statistics.save(out)

    @classmethod
    def open(cls, settings: Settings, directory: Path, chunk: int) -> "Lexical":
        """With the statistics that `fit` kept."""
        return cls(settings.dim, Statistics.load(directory))

    def embed(self, words: np.ndarray) -> np.ndarray:
        """Words [n, W] -> [n, E] float32."""
        chunk, word, saturation = pairs(words, self._statistics)
        known, column = np.unique(word, return_inverse=True)
        value = (saturation * np.sqrt(self._statistics.idf(known))[column]).astype(np.float32)
        weights = sparse.csr_array((value, (chunk, column)), (len(words), len(known)))
        vectors = np.asarray(weights @ signs(known, self.width))
        vectors[(words == NONE).all(axis=1)] = signs(np.array([NONE]), self.width)
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        return np.ascontiguousarray(vectors / np.maximum(norms, 1e-6), np.float32)


def signs(words: np.ndarray, width: int) -> np.ndarray:
    """Random signs of words, the same wherever a word occurs: [n, width] float32 of -1 and 1.

    Bits of splitmix64 (Steele, Lea and Flood 2014), seeded with the word.
    """
    step = np.uint64(0x9E3779B97F4A7C15)
    seed = words.astype(np.uint64)[:, None] * np.uint64(width // 64)
    z = (seed + np.arange(1, width // 64 + 1, dtype=np.uint64)) * step
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    bits = np.unpackbits(z.astype("<u8").view(np.uint8), axis=1)
    return bits.astype(np.float32) * 2 - 1
