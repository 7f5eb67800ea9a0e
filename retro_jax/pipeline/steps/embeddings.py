"""The steps `embeddings/SPLIT`: a vector for each chunk."""

import functools
from pathlib import Path

from retro_jax.corpus.chunks import ChunkTable
from retro_jax.corpus.tokenizer import open_tokenizer
from retro_jax.pipeline.step import Advance, Rows, nothing_done
from retro_jax.store import bucket
from retro_jax.store.columns import Columns

EMBEDDED = 4096  # chunks that are embedded at a time


class Embed(Rows):
    """Embeds the chunks of a split; a part is a block of chunks.

    Args:
      open_embedder: from the directory of the step `embedder` to the embedder.
    """

    unit = "blocks"

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
    def _tokenizer(self):
        return open_tokenizer(self.at("tokenizer"))

    @functools.cached_property
    def table(self) -> ChunkTable:
        """The chunks."""
        return ChunkTable(self.at(f"chunks/{self.split}"))

    @property
    def layout(self) -> dict:
        """The columns of embeddings."""
        return {"vectors": ("<f4", (self.embedder.width,))}

    def total(self) -> int:
        """Chunks."""
        return len(self.table)

    def parts(self) -> int:
        """Blocks of chunks."""
        return -(-self.total() // EMBEDDED)

    def begins(self, part: int) -> int:
        """The first chunk of a block."""
        return part * EMBEDDED

    def make(self, part: int, advance: Advance = nothing_done) -> tuple[dict, dict]:
        """The vectors [n, E] of a block."""
        begin = self.begins(part)
        block = slice(begin, begin + EMBEDDED)
        if self.embedder.reads == "words":
            read = Columns(self.at(f"words/{self.split}"))["words"][block]
        else:
            read = self.table.texts_of(self._tokenizer, block)
        made = self.embedder.embed(read)
        advance(len(made))
        return {"vectors": made}, {}

    def finish(self, out: Path, counts: dict) -> dict:
        """How many vectors there are."""
        return {"vectors": self.total()}
