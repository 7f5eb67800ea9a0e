"""What an embedder is, and which there are: a chunk's text to the numbers that an index searches.

The text is what the chunk's tokens decode to, for chunks of the database and for live queries alike, so
that a chunk is always its own nearest neighbour.

An embedder is one class in one file of `embedders/`, and one line of EMBEDDERS.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from retro_jax.config import RetrievalConfig
from retro_jax.config.table import NoSettings, Table

EMBEDDERS = Table(
    "retrieval.embedder",
    "retrieval.settings",
    {
        "tfidf": "retro_jax.retrieval.embedders.tfidf:Tfidf",
        "bert": "retro_jax.retrieval.embedders.bert:Bert",
        "words": "retro_jax.retrieval.embedders.words:Words",
    },
)


class Embedder:
    """Texts to vectors [n, E], or to whatever an index takes.

    Attributes:
      Settings: a dataclass, its own settings (retrieval.settings.NAME).
      gives: what it makes; an index `takes` the same. vectors: float32, compared by squared L2.
      dtype, width: of a row; width is E.
    """

    Settings: type = NoSettings
    gives = "vectors"
    dtype = np.dtype("<f4")
    width: int

    @classmethod
    def check(cls, settings):
        """Raises UserError, before anything slow has run, if a file that it needs is missing."""

    @classmethod
    def fit(cls, settings, texts: Callable[[Sequence[int]], list[str]], count: int, out: Path):
        """Learns of the database what it has to, and writes that into an existing directory.

        Args:
          texts: from numbers of chunks to what they say. count: chunks of the database.
        """

    @classmethod
    def open(cls, settings, directory: Path, chunk: int) -> "Embedder":
        """The embedder, for chunks of so many tokens; `directory` has what `fit` wrote."""
        raise NotImplementedError

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Texts -> [n, E] of `dtype`."""
        raise NotImplementedError


def settings_of(config: RetrievalConfig):
    """The settings of a config's embedder."""
    return EMBEDDERS.settings_of(config.embedder, config.settings)


def open_embedder(config: RetrievalConfig, directory: Path, chunk: int) -> Embedder:
    """The embedder of a config; `directory` has what it learned, where it learns anything."""
    return EMBEDDERS[config.embedder].open(settings_of(config), directory, chunk)
