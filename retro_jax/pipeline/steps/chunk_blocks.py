"""What the steps share that make a row for each chunk of a split: blocks of chunks, and what they say."""

import functools
from collections.abc import Sequence

from retro_jax.corpus.chunks import ChunkTable
from retro_jax.corpus.tokenizer import open_tokenizer
from retro_jax.pipeline.step import Rows

BLOCK = 4096  # chunks at a time


class ChunkBlocks(Rows):
    """A step whose parts are blocks of the chunks of its split."""

    unit = "blocks"

    @functools.cached_property
    def _tokenizer(self):
        return open_tokenizer(self.at("tokenizer"))

    @functools.cached_property
    def table(self) -> ChunkTable:
        """The chunks."""
        return ChunkTable(self.at(f"chunks/{self.split}"))

    def total(self) -> int:
        """Chunks."""
        return len(self.table)

    def parts(self) -> int:
        """Blocks of chunks."""
        return -(-self.total() // BLOCK)

    def begins(self, part: int) -> int:
        """The first chunk of a block."""
        return part * BLOCK

    def rows(self, part: int) -> slice:
        """The chunks of a block."""
        return slice(self.begins(part), self.begins(part + 1))

    def texts(self, part: int) -> Sequence[str]:
        """What the chunks of a block say."""
        return self.table.texts_of(self._tokenizer, self.rows(part))
