"""The steps `words/SPLIT`, the words of each chunk, and `statistics`, how frequent they are in the database."""

from pathlib import Path

from retro_jax.pipeline.step import Advance, Whole, nothing_done
from retro_jax.pipeline.steps.chunk_blocks import ChunkBlocks
from retro_jax.retrieval.bm25 import statistics
from retro_jax.retrieval.words import width_of, words_of
from retro_jax.store.columns import Columns


class Words(ChunkBlocks):
    """The words of the chunks of a split; a part is a block of chunks."""

    @property
    def doing(self) -> str:
        """For a progress bar."""
        return f"words of {self.split} chunks"

    @property
    def layout(self) -> dict:
        """words [N, W] int32, see `words_of`."""
        return {"words": ("<i4", (width_of(self.table.chunk),))}

    def make(self, part: int, advance: Advance = nothing_done) -> tuple[dict, dict]:
        """The words [n, W] of a block."""
        made = words_of(self.texts(part), width_of(self.table.chunk))
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
