"""What is evaluated: a held-out split that is prepared, or any other text against any database."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from retro_jax import progress
from retro_jax.config import Experiment
from retro_jax.corpus import sources
from retro_jax.corpus.chunks import ChunkTable
from retro_jax.databases import segment
from retro_jax.databases.database import PREPARED, Databases
from retro_jax.databases.part import Part
from retro_jax.databases.retriever import Retriever
from retro_jax.pipeline import sequences
from retro_jax.pipeline.prepared import Prepared
from retro_jax.retrieval.ranking import Queries
from retro_jax.store import columns
from retro_jax.store.records import Records
from retro_jax.store.workdir import WorkDir

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

    ids [N, K], distances [N, K] and queries are of its chunks. values: from ids [...]
    to the tokens [..., R] of what they name. source: from an id to where it is from: document and chunk.
    databases: what is searched; tables: of which chunks they are; as_prepared: whether that is what was
    prepared, and no more or less. draw: from random numbers and n to the ids of n chunks of them.
    prepared_part: opens what was prepared, for searching anew.
    """

    name: str
    table: ChunkTable
    ids: np.ndarray
    distances: np.ndarray
    queries: Queries
    records: Records | Windows
    values: Callable[[np.ndarray], np.ndarray]
    source: Callable[[int], dict]
    databases: tuple[str, ...]
    tables: list[ChunkTable]
    as_prepared: bool
    draw: Callable[[np.random.Generator, int], np.ndarray]
    prepared_part: Callable[[], Part]

    @classmethod
    def prepared(cls, work: WorkDir, split: str) -> "Text":
        """A split that is prepared, with the neighbours of its shards."""
        of = Prepared(work)
        database = of.database

        def source(id: int) -> dict:
            document = database.documents[int(database.document[id])]
            return {"document": document["id"], "chunk": id - document["first"]}

        return cls(
            split, of.table(split), *of.neighbours(split), of.queries(split), of.records(split),
            database.values, source, (PREPARED,), [database], True,
            lambda rng, n: rng.integers(0, len(database), n), _part_of(Databases(of)),
        )  # fmt: skip

    @classmethod
    def given(
        cls,
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
        made = segment.Builder(known.prepared, out)
        with progress.bar("reading documents", None) as advance:
            largest = known.prepared.experiment.corpus.largest_document
            made.add(sources.documents(source, "--text", largest), advance)
        made.close()
        queries = known.prepared.encoder.as_queries(columns.Columns(out / "embeddings"))
        return cls._looked_up(name, ChunkTable(out / "chunks"), queries, retriever, databases)

    @classmethod
    def against(cls, split: str, retriever: Retriever, databases: Sequence[str]) -> "Text":
        """A split that is prepared, looked up in databases as they are now."""
        of = retriever.databases.prepared
        return cls._looked_up(split, of.table(split), of.queries(split), retriever, databases)

    @classmethod
    def _looked_up(
        cls, name: str, table: ChunkTable, queries: Queries, retriever: Retriever, databases: Sequence[str],
    ) -> "Text":  # fmt: skip
        known, found = retriever.databases, []
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
            name, table, ids, distances, queries, None, retriever.values, retriever.source_of,
            tuple(databases), tables, retriever.as_prepared(databases),
            lambda rng, n: retriever.draw(rng, n, databases), _part_of(known),
        )  # fmt: skip
        cuts = list(text.cuts(known.prepared.experiment))
        text.records = Windows(table, cuts, text.values, (ids, distances))
        return text

    def retrieving(self, e: Experiment, ids: np.ndarray, distances: np.ndarray) -> "Text":
        """The same text with other neighbours, ids [N, K] and distances [N, K], of the same database."""
        made = dataclasses.replace(self, ids=ids, distances=distances)
        made.records = Windows(self.table, list(self.cuts(e)), self.values, (ids, distances))
        return made

    def cuts(self, e: Experiment) -> Iterator[tuple]:
        """What its records are cut from; see `sequences.cuts`."""
        return sequences.cuts(
            self.table, self.name, e.chunks, e.evaluate.stride // e.model.reading.chunk
        )


def _part_of(databases: Databases) -> Callable[[], Part]:
    """Opens the prepared database, once."""
    return functools.cache(lambda: databases.open(PREPARED, 0))
