"""A segment: what one change added to a database, made by the steps of the pipeline, but for short documents,
which stay."""

from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from retro_jax.corpus import chunks, collect, sources
from retro_jax.corpus.chunks import ChunkTable
from retro_jax.corpus.document import BadDocument, Document, in_words
from retro_jax.databases.part import Part
from retro_jax.errors import UserError
from retro_jax.pipeline.prepared import Prepared
from retro_jax.pipeline.steps import chunk_blocks
from retro_jax.retrieval import division
from retro_jax.retrieval.embedder import EMBEDDERS
from retro_jax.retrieval.index import INDEXES, Given
from retro_jax.retrieval.sharded import ShardedIndex
from retro_jax.store import columns


class Builder:
    """Fills an empty directory: `chunks`, `embeddings`, and with `finish` an `index`.

    Args:
      prepared: whose tokenizer, statistics and embedder are used.
    """

    def __init__(self, prepared: Prepared, out: Path):
        self._e, self._prepared, self._out = prepared.experiment, prepared, out
        self._encoder, self._tokenizer = prepared.encoder, prepared.tokenizer
        layout = chunks.layout(self._tokenizer, self._e.model.reading.chunk)
        self._table = columns.Writer(out / "chunks", layout)
        self._vectors = columns.Writer(out / "embeddings", self._encoder.layout)
        self.ids, self.skipped = set(), Counter()

    @property
    def chunks(self) -> int:
        """So far."""
        return self._table.rows("tokens")

    def add(
        self,
        documents: Iterable[Document | BadDocument],
        advance: Callable[[int], None] = lambda done: None,
    ):
        """Tokenizes and embeds documents, a block at a time; `ids` has theirs, `skipped` counts bad ones by kind.

        Raises:
          UserError: no document, or a bad one (of an id that an earlier one has, too) if the config refuses such.
        """
        for block in sources.blocks(documents):
            good = [d for d in block if not self._is_bad(d)]
            chunk = self._e.model.reading.chunk
            tokens, entries = chunks.encode(good, self._tokenizer, chunk, refuse=None)
            texts = [self._tokenizer.decode(row) for row in tokens.tolist()]
            size = chunk_blocks.BLOCK
            for begin in range(0, len(texts), size):
                self._vectors.append(**self._encoder(texts[begin : begin + size]))
            self._append(tokens, entries)
            advance(len(block))
        if not self.ids:
            found = in_words(self.skipped) or "the source is empty"
            raise UserError(f"nothing to add: no document that can be used ({found}); give others")

    def copy(self, segment: Path, alive: np.ndarray | None):
        """Takes over the documents of another segment that are alive [D] (None: all)."""
        table = ChunkTable(segment / "chunks")
        vectors = columns.Columns(segment / "embeddings")
        for begin in range(0, len(table.documents), sources.BLOCK):
            block = table.documents.range(begin, begin + sources.BLOCK)
            entries = [d for n, d in enumerate(block, begin) if alive is None or alive[n]]
            if entries:
                ranges = [np.arange(d["first"], d["first"] + d["chunks"]) for d in entries]
                rows = np.concatenate(ranges)
                self._vectors.append(**{n: vectors[n][rows] for n in self._encoder.layout})
                self._append(table.tokens[rows], entries)

    def close(self):
        """No more documents: what there is can be read."""
        for writer in (self._table, self._vectors):
            writer.commit()
            writer.close()

    def finish(self) -> dict:
        """Builds the index; returns the counts."""
        counts = {"documents": self._table.rows("documents"), "chunks": self.chunks}
        self.close()
        r, made = self._e.retrieval, self._prepared
        vectors = columns.Columns(self._out / "embeddings")[self._encoder.searched]
        (self._out / "index").mkdir()
        clusters = EMBEDDERS[r.embedder].clusters
        given = Given(made.ranking.fetch(r.neighbours), clusters, made.statistics)
        division.build(vectors, self._out / "index", r, given, INDEXES[r.index].small)
        return counts

    def _append(self, tokens: np.ndarray, entries: list[dict]):
        entries = [{k: v for k, v in e.items() if k != "first"} for e in entries]
        before = self._table.rows("tokens"), self._table.rows("documents")
        self._table.append(**chunks.moved(chunks.place(tokens, entries), *before))

    def _is_bad(self, document: Document | BadDocument) -> bool:
        if isinstance(document, Document) and document.id not in self.ids:
            self.ids.add(document.id)
            return False
        if isinstance(document, Document):
            document = collect.repeats(document.id)
        collect.refuse_or_skip(self._e.corpus.bad_documents, document)
        self.skipped[document.kind] += 1
        return True


def load(segment: Path, prepared: Prepared) -> Part:
    """Opens a segment."""
    made, encoder = columns.Columns(segment / "embeddings"), prepared.encoder
    index = ShardedIndex(segment / "index", made[encoder.searched])
    words = encoder.as_queries(made).words
    return Part(ChunkTable(segment / "chunks"), index, words, prepared.ranking)
