"""Texts to what is searched: their words and their vectors, whichever a config wants."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from retro_jax.config import RetrievalConfig
from retro_jax.retrieval.embedder import has_vectors, open_embedder, reads_words
from retro_jax.retrieval.ranking import Queries
from retro_jax.retrieval.words import width_of, words_of


class Encoder:
    """Makes of texts the columns that the steps of `prepare` make of chunks.

    Args:
      embedder: the directory of the step `embedder`, which is not there where words are searched.
      chunk: tokens of a chunk.
    """

    def __init__(self, config: RetrievalConfig, embedder: Path, chunk: int):
        self._words = width_of(chunk) if reads_words(config) else 0
        self._embedder = open_embedder(config, embedder, chunk) if has_vectors(config) else None
        self._ranked = config.rerank == "bm25"

    @property
    def layout(self) -> dict:
        """The columns: words [n, W] int32, vectors [n, E] float32."""
        made = {"words": ("<i4", (self._words,))} if self._words else {}
        return made | ({"vectors": ("<f4", (self._embedder.width,))} if self._embedder else {})

    @property
    def searched(self) -> str:
        """The column that an index takes."""
        return "vectors" if self._embedder else "words"

    @property
    def operations(self) -> float:
        """Multiplications and additions that the vector of a chunk takes."""
        return self._embedder.operations if self._embedder else 0.0

    def __call__(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """The columns of texts."""
        made = {"words": words_of(texts, self._words)} if self._words else {}
        if self._embedder:
            read = made["words"] if self._embedder.reads == "words" else texts
            made["vectors"] = self._embedder.embed(read)
        return made

    def queries(self, texts: Sequence[str]) -> Queries:
        """Texts as queries."""
        return self.as_queries(self(texts))

    def as_queries(self, columns: Mapping[str, np.ndarray]) -> Queries:
        """The columns of texts as queries."""
        return Queries(columns[self.searched], columns["words"] if self._ranked else None)
