"""What is evaluated: a held-out split that is prepared, or any other text against any database."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from retro_jax import columns, progress, sequences, steps
from retro_jax.config import Experiment
from retro_jax.corpus import sources
from retro_jax.corpus.chunks import ChunkTable
from retro_jax.records import Records
from retro_jax.retrieval import segment
from retro_jax.retrieval.retriever import Retriever

_BLOCK = 256  # chunks that are looked up at a time


class Windows:
    """The windows of a table as records (see `sequences.record`), made when they are asked for."""

    def __init__(self, table: ChunkTable, cuts: list[tuple], values: Callable, near: tuple):
        self._table, self._cuts, self._values, self._near = table, cuts, values, near

    def __len__(self) -> int:
        return len(self._cuts)

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        return sequences.record(self._table, self._values, *self._cuts[i], *self._near)


@dataclass
class Text:
    """The chunks of a text, what each retrieves, and the windows that are read.

    ids [N, K], distances [N, K] and vectors [N, E] (or words) are of its chunks. values: from ids [...]
    to the tokens [..., R] of what they name. source: from an id to where it is from: document and chunk.
    databases: what is searched; tables: of which chunks they are; as_prepared: whether that is what was
    prepared, and no more or less. draw: from random numbers and n to the ids of n chunks of them.
    """

    name: str
    table: ChunkTable
    ids: np.ndarray
    distances: np.ndarray
    vectors: np.ndarray
    records: Records | Windows
    values: Callable[[np.ndarray], np.ndarray]
    source: Callable[[int], dict]
    databases: tuple[str, ...]
    tables: list[ChunkTable]
    as_prepared: bool
    draw: Callable[[np.random.Generator, int], np.ndarray]

    @classmethod
    def prepared(cls, e: Experiment, base: Path, split: str) -> "Text":
        """A split of WORKDIR/prepare, with the neighbours of its shards."""
        near = columns.Columns(base / "neighbours" / split)
        table, vectors = steps.table_of(base, split), steps.vectors_of(base, split)
        records = Records(base / "shards" / split)
        database = steps.table_of(base, steps.database_split(e))

        def source(id: int) -> dict:
            document = database.documents[int(database.document[id])]
            return {"document": document["id"], "chunk": id - document["first"]}

        near = near["ids"], near["distances"]
        return cls(
            split, table, *near, vectors, records, database.values, source, ("prepared",), [database],
            True, lambda rng, n: rng.integers(0, len(database), n),
        )  # fmt: skip

    @classmethod
    def given(
        cls,
        e: Experiment,
        name: str,
        source: str,
        retriever: Retriever,
        databases: Sequence[str],
        out: Path,
    ) -> "Text":
        """Documents of any source, looked up in databases as they are now; keeps its chunks in `out`.

        Raises:
          UserError: the source has no document, or a bad one where the config refuses such.
        """
        known = retriever.databases
        made = segment.Builder(e, out, known.embedder, known.tokenizer)
        with progress.bar("reading documents", None) as advance:
            made.add(sources.documents(source, "--text"), advance)
        made.close()
        table = ChunkTable(out / "chunks")
        vectors = columns.Columns(out / "embeddings")["vectors"]
        found = []
        with progress.bar("looking chunks up", len(table)) as advance:
            for begin in range(0, len(table), _BLOCK):
                chunks = table.tokens[begin : begin + _BLOCK]
                found.append(retriever.retrieve(chunks, databases=databases))
                advance(len(chunks))
        ids, distances = (
            np.concatenate([getattr(n, x) for n in found]) for x in ("ids", "distances")
        )
        tables = [part.table for part, _ in retriever.parts(databases)]
        text = cls(
            name, table, ids, distances, vectors, None, retriever.values, retriever.source_of,
            tuple(databases), tables, retriever.as_prepared(databases),
            lambda rng, n: retriever.draw(rng, n, databases),
        )  # fmt: skip
        text.records = Windows(table, list(text.cuts(e)), text.values, (ids, distances))
        return text

    def cuts(self, e: Experiment) -> Iterator[tuple]:
        """What its records are cut from; see `sequences.cuts`."""
        return sequences.cuts(self.table, self.name, e.chunks, e.evaluate.stride // e.model.chunk)
