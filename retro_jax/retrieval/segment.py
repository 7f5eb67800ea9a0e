"""A segment: what one change added to a database, as `prepare` would have made it, but for short
documents, which stay."""

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from retro_jax import columns, steps
from retro_jax.config import Experiment
from retro_jax.corpus import chunks, sources
from retro_jax.corpus.chunks import ChunkTable
from retro_jax.corpus.sources import BadDocument, Document
from retro_jax.errors import UserError
from retro_jax.retrieval import bm25, index
from retro_jax.retrieval.part import Part


class Builder:
    """Fills an empty directory: `chunks`, `embeddings`, and with `finish` an `index`.

    Args:
      embedder, tokenizer: those of the prepared database.
    """

    def __init__(self, e: Experiment, out: Path, embedder, tokenizer):
        self._e, self._out, self._embedder, self._tokenizer = e, out, embedder, tokenizer
        layout = chunks.layout(tokenizer, e.model.chunk)
        self._table = columns.Writer(out / "chunks", layout)
        self._vectors = columns.Writer(out / "embeddings", steps.embedding_columns(embedder))
        self.ids, self.skipped = set(), 0

    @property
    def chunks(self) -> int:
        """So far."""
        return self._table.rows("tokens")

    def add(
        self,
        documents: Iterable[Document | BadDocument],
        advance: Callable[[int], None] = lambda done: None,
    ):
        """Tokenizes and embeds documents, a block at a time; `ids` has theirs, `skipped` counts bad ones.

        Raises:
          UserError: two of one id, no document, or a bad one if the config refuses such.
        """
        for block in sources.blocks(documents):
            good = [d for d in block if not self._is_bad(d)]
            for document in good:
                if document.id in self.ids:
                    raise UserError(f"{document.id}: two documents have this id; make ids unique")
                self.ids.add(document.id)
            tokens, entries = chunks.encode(good, self._tokenizer, self._e.model.chunk, refuse=None)
            texts = [self._tokenizer.decode(row) for row in tokens.tolist()]
            for begin in range(0, len(texts), steps.EMBEDDED):
                self._vectors.append(
                    vectors=self._embedder.embed(texts[begin : begin + steps.EMBEDDED])
                )
            self._append(tokens, entries)
            advance(len(block))
        if not self.ids:
            raise UserError(
                f"nothing to add: no document, or none that can be used ({self.skipped} empty, binary or "
                "not UTF-8); give others"
            )

    def copy(self, segment: Path, alive: np.ndarray | None):
        """Takes over the documents of another segment that are alive [D] (None: all)."""
        table = ChunkTable(segment / "chunks")
        vectors = columns.Columns(segment / "embeddings")["vectors"]
        for begin in range(0, len(table.documents), sources.BLOCK):
            block = table.documents.range(begin, begin + sources.BLOCK)
            entries = [d for n, d in enumerate(block, begin) if alive is None or alive[n]]
            if entries:
                ranges = [np.arange(d["first"], d["first"] + d["chunks"]) for d in entries]
                rows = np.concatenate(ranges)
                self._vectors.append(vectors=vectors[rows])
                self._append(table.tokens[rows], entries)

    def close(self):
        """No more documents: what there is can be read."""
        for writer in (self._table, self._vectors):
            writer.commit()
            writer.close()

    def finish(self, statistics: bm25.Statistics | None) -> dict:
        """Builds the index (of words with these statistics); returns the counts."""
        counts = {"documents": self._table.rows("documents"), "chunks": self.chunks}
        self.close()
        r, vectors = self._e.retrieval, columns.Columns(self._out / "embeddings")["vectors"]
        kind = "auto" if r.index == "scann" else r.index  # few vectors are compared
        (self._out / "index").mkdir()
        index.build(
            vectors, self._out / "index", kind, r.min_recall, r.neighbours, r.index_shard, statistics
        )  # fmt: skip
        return counts

    def _append(self, tokens: np.ndarray, entries: list[dict]):
        entries = [{k: v for k, v in e.items() if k != "first"} for e in entries]
        at = self._table.rows("tokens"), self._table.rows("documents")
        self._table.append(**chunks.place(tokens, entries, *at))

    def _is_bad(self, document: Document | BadDocument) -> bool:
        if isinstance(document, Document):
            return False
        if self._e.corpus.bad_documents == "refuse":
            raise UserError(f"{document.id}: {document.reason}; mend or remove it")
        self.skipped += 1
        return True


def load(segment: Path, words: bool) -> Part:
    """Opens a segment; words: of a BM25 database."""
    vectors = None if words else columns.Columns(segment / "embeddings")["vectors"]
    return Part(ChunkTable(segment / "chunks"), index.load(segment / "index"), vectors)
