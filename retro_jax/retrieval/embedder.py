"""What an embedder is, and which there are: a chunk's text to the numbers that an index searches.

The text is what the chunk's tokens decode to, for chunks of the database and for live queries alike, so
that a chunk is always its own nearest neighbour. Words are those of that text.

An embedder is one class in one file of `embedders/`, and one line of EMBEDDERS.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from retro_jax.config import RetrievalConfig
from retro_jax.config.table import NoSettings, Table
from retro_jax.retrieval.bm25 import Statistics

EMBEDDERS = Table(
    "retrieval.embedder",
    "retrieval.settings",
    {
        "lexical": "retro_jax.retrieval.embedders.lexical:Lexical",
        "tfidf": "retro_jax.retrieval.embedders.tfidf:Tfidf",
        "bert": "retro_jax.retrieval.embedders.bert:Bert",
        "words": "retro_jax.retrieval.embedders.words:Words",
    },
)


class Embedder:
    """Texts or words to vectors [n, E].

    Attributes:
      Settings: a dataclass, its own settings (retrieval.settings.NAME).
      reads: texts, or words [n, W] (words.py). Of words a chunk that shares none with the query is no
        neighbour.
      gives: vectors, or the words themselves; an index `takes` the same.
      clusters: whether near vectors lie together, so that a search may leave most of them out.
      width: E; vectors are float32, compared by squared L2.
      operations: multiplications and additions that a chunk's vector takes, on average.
    """

    Settings: type = NoSettings
    reads, gives, clusters = "texts", "vectors", True
    width: int
    operations: float = 0.0

    @classmethod
    def check(cls, settings):
        """Raises UserError, before anything slow has run, if a file that it needs is missing."""

    @classmethod
    def fit(
        cls, settings, texts: Callable[[Sequence[int]], list[str]], count: int, out: Path,
        statistics: Statistics | None = None,
    ):  # fmt: skip
        """Learns of the database what it has to, and writes that into an existing directory.

        Args:
          texts: from numbers of chunks to what they say. count: chunks of the database.
          statistics: of its words, for who reads words.
        """

    @classmethod
    def open(cls, settings, directory: Path, chunk: int) -> "Embedder":
        """The embedder, for chunks of so many tokens; `directory` has what `fit` wrote."""
        raise NotImplementedError

    def embed(self, read: Sequence[str] | np.ndarray) -> np.ndarray:
        """Texts, or words [n, W] -> [n, E] float32."""
        raise NotImplementedError


def settings_of(config: RetrievalConfig):
    """The settings of a config's embedder."""
    return EMBEDDERS.settings_of(config.embedder, config.settings)


def open_embedder(config: RetrievalConfig, directory: Path, chunk: int) -> Embedder:
    """The embedder of a config; `directory` has what it learned, where it learns anything."""
    return EMBEDDERS[config.embedder].open(settings_of(config), directory, chunk)


def reads_words(config: RetrievalConfig) -> bool:
    """Whether the words of chunks are looked at, by the embedder or to order candidates."""
    return config.rerank == "bm25" or EMBEDDERS[config.embedder].reads == "words"


def has_vectors(config: RetrievalConfig) -> bool:
    """Whether chunks become vectors; otherwise their words are searched."""
    return EMBEDDERS[config.embedder].gives == "vectors"
