"""The steps `words/SPLIT`, the words of each chunk, and `statistics`, how frequent they are in the database."""

import functools
from pathlib import Path

from retro_jax.corpus.chunks import ChunkTable
from retro_jax.corpus.tokenizer import open_tokenizer
from retro_jax.pipeline.step import Advance, Rows, Whole, nothing_done
from retro_jax.retrieval.bm25 import statistics
from retro_jax.retrieval.words import width_of, words_of
from retro_jax.store.columns import Columns

BLOCK = 4096  # chunks at a time


class Words(Rows):
    """The words of the chunks of a split; a part is a block of chunks."""

    unit = "blocks"

    @property
    def doing(self) -> str:
        """For a progress bar."""
        return f"words of {self.split} chunks"

    @functools.cached_property
    def _tokenizer(self):
        return open_tokenizer(self.at("tokenizer"))

    @functools.cached_property
    def table(self) -> ChunkTable:
        """The chunks."""
        return ChunkTable(self.at(f"chunks/{self.split}"))

    @property
    def layout(self) -> dict:
        """words [N, W] int32, see `words_of`."""
        return {"words": ("<i4", (width_of(self.table.chunk),))}

    def total(self) -> int:
        """Chunks."""
        return len(self.table)

    def parts(self) -> int:
        """Blocks of chunks."""
        return -(-self.total() // BLOCK)

    def begins(self, part: int) -> int:
        """The first chunk of a block."""
        return part * BLOCK

    def make(self, part: int, advance: Advance = nothing_done) -> tuple[dict, dict]:
        """The words [n, W] of a block."""
        begin = self.begins(part)
        texts = self.table.texts_of(self._tokenizer, slice(begin, begin + BLOCK))
        made = words_of(texts, width_of(self.table.chunk))
        advance(len(made))
        return {"words": made}, {}

    def finish(self, out: Path, counts: dict) -> dict:
        """How many chunks there are."""
        return {"chunks": self.total()}


class CountWords(Whole):
    """Counts the words of the database."""

    def make(self, out: Path) -> dict:
        """Counts, and says how many different words there are, and of how many chunks."""
        made = statistics(Columns(self.at(self.inputs[0]))["words"])
        made.save(out)
        return {"chunks": made.chunks, "words": len(made.words)}
