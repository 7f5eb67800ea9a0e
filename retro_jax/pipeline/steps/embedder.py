"""The step `embedder`: what an embedder learns of the database; most learn nothing."""

from pathlib import Path

import numpy as np

from retro_jax.corpus.chunks import ChunkTable
from retro_jax.corpus.tokenizer import open_tokenizer
from retro_jax.pipeline.step import Whole
from retro_jax.retrieval.embedder import EMBEDDERS


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
        database, tokenizer = self.inputs
        table, pieces = ChunkTable(self.at(database)), open_tokenizer(self.at(tokenizer))
        self._class.fit(self._given, lambda rows: table.texts_of(pieces, rows), len(table), out)
        opened = self._class.open(self._given, out, self._chunk)
        return {"width": int(np.int64(opened.width))}
