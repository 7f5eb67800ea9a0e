"""The steps `embeddings/SPLIT`: a vector for each chunk."""

import functools
from pathlib import Path

import numpy as np

from retro_jax.pipeline.step import Advance, nothing_done
from retro_jax.pipeline.steps.chunk_blocks import ChunkBlocks
from retro_jax.store import bucket
from retro_jax.store.columns import Columns


class Embed(ChunkBlocks):
    """Embeds the chunks of a split; a part is a block of chunks.

    Args:
      open_embedder: from the directory of the step `embedder` to the embedder.
    """

    def __init__(self, base: Path, name: str, settings: dict, inputs: tuple, open_embedder):
        super().__init__(base, name, settings, inputs)
        self._open = open_embedder

    @property
    def doing(self) -> str:
        """For a progress bar."""
        return f"embedding {self.split} chunks"

    @functools.cached_property
    def embedder(self):
        """The one of the database."""
        return self._open(bucket.local(self.at("embedder")))

    @functools.cached_property
    def _words(self) -> np.ndarray:
        return Columns(self.at(f"words/{self.split}"))["words"]

    @property
    def layout(self) -> dict:
        """The columns of embeddings."""
        return {"vectors": ("<f4", (self.embedder.width,))}

    def make(self, part: int, advance: Advance = nothing_done) -> tuple[dict, dict]:
        """The vectors [n, E] of a block."""
        words = self.embedder.reads == "words"
        made = self.embedder.embed(self._words[self.rows(part)] if words else self.texts(part))
        advance(len(made))
        return {"vectors": made}, {}

    def finish(self, out: Path, counts: dict) -> dict:
        """How many vectors there are."""
        return {"vectors": self.total()}
