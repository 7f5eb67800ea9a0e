"""The step `embedder`: what an embedder learns of the database; most learn nothing."""

import functools
from pathlib import Path

import numpy as np

from retro_jax.corpus.chunks import ChunkTable
from retro_jax.corpus.tokenizer import open_tokenizer
from retro_jax.pipeline.step import Whole
from retro_jax.retrieval.bm25 import Statistics
from retro_jax.retrieval.embedder import EMBEDDERS
from retro_jax.store.bucket import local


class FitEmbedder(Whole):
    """Fits the embedder on the chunks of the database.

    Args:
      kind, given: the embedder's name and its settings (retrieval/embedder.py), which `settings` has too.
    """

    def __init__(
        self, base: Path, name: str, settings: dict, inputs: tuple, kind: str, given, chunk: int
    ):
        super().__init__(base, name, settings, inputs)
        self._class, self._given, self._chunk = EMBEDDERS[kind], given, chunk

    def check(self):
        """Raises UserError if a file that it needs is missing."""
        self._class.check(self._given)

    def make(self, out: Path) -> dict:
        """Fits, and counts the width of a vector."""
        database, tokenizer, *counted = self.inputs
        table, pieces = ChunkTable(self.at(database)), open_tokenizer(self.at(tokenizer))
        of = Statistics.load(local(self.at(*counted))) if counted else None
        texts = functools.partial(table.texts_of, pieces)
        self._class.fit(self._given, texts, len(table), out, of)
        opened = self._class.open(self._given, out, self._chunk)
        return {"width": int(np.int64(opened.width))}
