"""The steps `chunks/SPLIT`: documents to tokens, cut into chunks of M."""

import functools
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from retro_jax import progress
from retro_jax.corpus import chunks, collect, sources
from retro_jax.corpus.chunks import ChunkTable
from retro_jax.corpus.document import Document
from retro_jax.corpus.tokenizer import open_tokenizer
from retro_jax.errors import UserError
from retro_jax.pipeline.step import Advance, Rows, Some, nothing_done
from retro_jax.pipeline.steps.corpus import DATABASE
from retro_jax.store import artefact


class Chunks(Rows):
    """The chunk table of a split (corpus/chunks.py); a part is a block of documents."""

    unit = "documents"

    @property
    def doing(self) -> str:
        """For a progress bar."""
        return f"tokenizing {self.split}"

    @property
    def chunk(self) -> int:
        """M, tokens of a chunk."""
        return self.settings["model.reading.chunk"]

    @functools.cached_property
    def tokenizer(self):
        """The corpus's."""
        return open_tokenizer(self.at("tokenizer"))

    @property
    def layout(self) -> dict:
        """The columns of a chunk table."""
        return chunks.layout(self.tokenizer, self.chunk)

    @property
    def _corpus(self) -> tuple[Path, str]:
        """The corpus, and which of its splits this is."""
        part = collect.TRAIN if self.split in (collect.TRAIN, DATABASE) else collect.HELDOUT
        return self.at(self.inputs[0]), part

    def documents(self, begin: int = 0, end: int | None = None) -> Iterator[Document]:
        """The documents of the split, from number `begin` to before `end`."""
        return collect.read(*self._corpus, begin, end)

    def total(self) -> int:
        """Documents of the split."""
        corpus, part = self._corpus
        return artefact.read(corpus)["counts"][f"{part}_documents"]

    def parts(self) -> int:
        """Blocks of documents."""
        return -(-self.total() // sources.BLOCK)

    def make(self, part: int, advance: Advance = nothing_done) -> tuple[dict, dict]:
        """The chunks of a block of documents, as if the table began with them."""
        begin = part * sources.BLOCK
        end = min(begin + sources.BLOCK, self.total())
        refuse = functools.partial(collect.refuse_or_skip, self.settings["corpus.bad_documents"])
        tokens, entries = chunks.encode(
            self.documents(begin, end), self.tokenizer, self.chunk, refuse
        )
        advance(end - begin)
        return chunks.place(tokens, entries), {"short": end - begin - len(entries)}

    def moved(self, rows: dict, before: dict[str, int]) -> dict:
        """See `chunks.moved`."""
        return chunks.moved(rows, before["tokens"], before["documents"])

    def finish(self, out: Path, counts: dict) -> dict:
        """Refuses an empty table."""
        table = ChunkTable(out)
        if not len(table):
            less = max(1, self.chunk // 4)
            raise UserError(
                f"no document (of the split {self.split}) is as long as a chunk of {self.chunk} tokens: give longer "
                f"ones, short ones together in one file, or smaller chunks (--config.model.reading.chunk={less} "
                f"--config.model.reading.retrieved={2 * less})"
            )
        if short := counts.get("short", 0):
            progress.say(
                f"{self.split}: {short:,} of {short + len(table.documents):,} documents are left out, because they "
                f"are shorter than a chunk of {self.chunk} tokens (`retro database DIR --add` takes them)"
            )
        return {
            "documents": len(table.documents),
            "chunks": len(table),
            "tokens": sum(d["tokens"] for d in table.documents),
            "short_documents_skipped": counts.get("short", 0),
            "exact_copies": sum(1 for _ in collect.repeated(table.texts)),  # of an earlier one
        }

    def again(self, some: Some) -> Iterator[tuple[str, bool]]:
        """Some documents tokenized again; and every document that is missing."""
        table, number = ChunkTable(self.out), 0
        chosen = some(len(table.documents))
        for document in self.documents():
            entry = table.documents[number] if number < len(table.documents) else {"id": None}
            if document.id != entry["id"]:
                ids = chunks.token_ids(document.text, self.tokenizer)
                if len(ids) + 2 >= self.chunk:
                    yield f"{document.id}, which is missing", False
                continue
            if number in chosen:
                yield document.id, self._same(table, document, entry, number)
            number += 1
        if number != len(table.documents):
            yield f"documents from number {number} on", False

    def _same(self, table: ChunkTable, document, entry: dict, number: int) -> bool:
        first, end = entry["first"], entry["first"] + entry["chunks"]
        made = chunks.place(*chunks.encode([document], self.tokenizer, self.chunk))
        made = chunks.moved(made, first, number)
        stored = {
            "tokens": table.tokens[first:end],
            "document": table.document[first:end],
            "continuation": table.continuation[first:end],
            "ids": table.ids[number : number + 1],
            "texts": table.texts[number : number + 1],
        }
        return made["documents"] == [entry] and all(
            np.array_equal(made[name], value) for name, value in stored.items()
        )
