"""Live retrieval: the tokens of a chunk to its neighbours in one or several databases, as they are now."""

import collections
import itertools
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from retro_jax.config.filters import Where
from retro_jax.corpus.tokenizer import PAD
from retro_jax.databases.database import PREPARED, Databases
from retro_jax.databases.part import Part, alive
from retro_jax.errors import UserError
from retro_jax.pipeline.prepare import check_prepared
from retro_jax.pipeline.prepared import Prepared
from retro_jax.retrieval.index import nothing
from retro_jax.retrieval.ranking import Queries
from retro_jax.store.workdir import WorkDir

_ROW_BITS = 40  # of an id; the rest is the number of its part
_WEIGHT = 1e6  # of a database, and its inverse: what is weighted stays a number
_CLOSED = 64  # parts that are kept open after they are gone


@dataclass(frozen=True)
class Neighbours:
    """What n chunks retrieved; PAD, -1 and +inf where fewer than K exist."""

    tokens: np.ndarray  # [n, K, R]
    ids: np.ndarray  # [n, K] int64, for `Retriever.source_of`
    distances: np.ndarray  # [n, K] float32, squared L2 or minus the BM25 score

    def of(self, rows) -> "Neighbours":
        """Those of some of the chunks."""
        return Neighbours(self.tokens[rows], self.ids[rows], self.distances[rows])


class Retriever:
    """Reads databases; looks for changes of them, by whatever process, at every call. Many threads may use it.

    An id is the row of a chunk in the prepared database. Other parts have a number, which is not used
    again, in the bits above. The id of what is deleted, or was taken over by another segment, goes on being
    known until 64 parts more are gone.

    Args:
      k: neighbours of a chunk by default. change: what is done to queries before they are searched.

    Attributes:
      filters: whether it can be asked for documents of some kind (`where`).
    """

    filters = True

    @classmethod
    def open(cls, work: WorkDir | Path | str, k: int | None = None) -> "Retriever":
        """The retriever of a working directory that is prepared.

        Raises:
          UserError: something is missing, or was made with another config.
        """
        work = WorkDir.of(work)
        check_prepared(work, only_live=True)
        return open_retriever(work, k=k)

    def __init__(
        self, databases: Databases, k: int, change: Callable[[Queries], Queries] = lambda q: q
    ):
        self.databases, self.k, self._change = databases, k, change
        self._lock, self._numbers = threading.Lock(), itertools.count(1)
        self._parts: dict[int, tuple[str, Part]] = {}  # by the number in ids
        self._read = {}  # name -> (stamp, {key of a part: (number, Part, alive)})
        self._gone = collections.deque()
        prepared = databases.prepared
        self._encoder, self._tokenizer = prepared.encoder, prepared.tokenizer
        self._weighted = prepared.ranking.weighted
        self._now(PREPARED)

    def retrieve(
        self,
        chunks: np.ndarray,
        k: int | None = None,
        where: Where | None = None,
        databases: Sequence[str] = (PREPARED,),
    ) -> Neighbours:
        """The K nearest chunks of each chunk, tokens [n, M].

        Args:
          k: K; by default the retriever's.
          where: what their documents must be like.
          databases: each NAME or NAME=WEIGHT. What is nearer is decided by squared L2 divided by the
            weight, or the BM25 score times the weight; the distances returned are without it.

        Raises:
          UserError: an unknown database, one named twice, or a weight out of range.
        """
        texts = [self._tokenizer.decode(c) for c in np.asarray(chunks).tolist()]
        return self._nearest(texts, k, where, databases)

    def search(
        self,
        text: str,
        k: int | None = None,
        where: Where | None = None,
        databases: Sequence[str] = (PREPARED,),
    ) -> list[dict]:
        """The nearest chunks of a text, each with what `source_of` says, its distance, and its text with what follows.

        Args and raises: as `retrieve`. A text longer than a chunk is looked up as far as the retriever reads it.
        """
        near = self._nearest([text], k, where, databases)
        return [
            self.source_of(id) | {"distance": float(d), "text": self._tokenizer.decode(tokens)}
            for id, d, tokens in zip(near.ids[0], near.distances[0], near.tokens[0].tolist())
            if id >= 0
        ]

    def _nearest(self, texts: list[str], k, where, databases) -> Neighbours:
        k, asked, found = self.k if k is None else k, self._asked(databases), []
        queries = self._change(self._encoder.queries(texts))
        for name, weight in asked.items():
            for number, part, living in self._now(name):
                rows, d = part.search(queries, k, living, where)
                ids = np.where(rows < 0, -1, rows + (number << _ROW_BITS))
                found.append((ids, d, self._weighted(d, weight)))
        ids, distances = nothing(len(texts), k)  # what is left where all have fewer than k
        found.append((ids, distances, distances))
        ids, distances, weighted = (np.concatenate(x, axis=1) for x in zip(*found))
        near = np.argsort(weighted, axis=1, kind="stable")[:, :k]
        ids, distances = (np.take_along_axis(x, near, 1) for x in (ids, distances))
        return Neighbours(self.values(ids), ids, distances)

    def check(self, databases: Sequence[str]):
        """Raises UserError for an unknown database, one named twice, or a bad weight; nothing is opened."""
        known = self.databases.names()
        for name in self._asked(databases):
            if name not in known:
                self.databases.state(name)

    def source_of(self, id: int) -> dict:
        """Where a chunk is from: its database, the id of its document, its number in it, how many tokens
        of the document's text are before it (`offset`), and the document's metadata.

        Raises:
          KeyError: an id that was not handed out, or too long ago.
        """
        number, row = divmod(int(id), 1 << _ROW_BITS)
        with self._lock:
            name, part = self._parts[number]
        document = part.table.documents[int(part.table.document[row])]
        chunk = row - document["first"]
        return {
            "database": name,
            "document": document["id"],
            "chunk": chunk,
            "offset": max(0, chunk * part.table.chunk - 1),  # BOS is no text
            "metadata": document["metadata"],
        }

    def as_prepared(self, databases: Sequence[str]) -> bool:
        """Whether databases are what `prepare` made, and no more or less."""
        names = list(self._asked(databases))
        now = self._now(PREPARED)
        return names == [PREPARED] and len(now) == 1 and now[0][2] is None

    def draw(self, rng: np.random.Generator, n: int, databases: Sequence[str]) -> np.ndarray:
        """The ids of n chunks of databases at random, none of them deleted; they may be the same [n]."""
        parts = [part for name in self._asked(databases) for part in self._now(name)]
        ends = np.cumsum([len(part.table) for _, part, _ in parts])
        out = []
        while len(out) < n:
            at = int(rng.integers(0, ends[-1]))
            which = int(np.searchsorted(ends, at, side="right"))
            number, part, living = parts[which]
            row = at - int(ends[which]) + len(part.table)
            if living is None or living[part.table.document[row]]:
                out.append(row + (number << _ROW_BITS))
        return np.array(out)

    def parts(self, databases: Sequence[str]) -> list[tuple[Part, np.ndarray | None]]:
        """What databases are made of now, and which documents of each are alive [D] (None: all)."""
        return [
            (part, living) for name in self._asked(databases) for _, part, living in self._now(name)
        ]

    def _asked(self, databases: Sequence[str]) -> dict[str, float]:
        """Weights by name."""
        asked = {}
        for text in databases:
            name, equals, weight = text.partition("=")
            try:
                value = float(weight) if equals else 1.0
            except ValueError:
                value = 0.0
            if not 1 / _WEIGHT <= value <= _WEIGHT or name in asked:
                why = f"its weight must lie between {1 / _WEIGHT} and {_WEIGHT:,.0f}"
                why = "is named twice" if name in asked else why
                raise UserError(
                    f"database {text!r}: {why}; write NAME or NAME=WEIGHT once, NAME being one of "
                    f"{', '.join(self.databases.names())}"
                )
            asked[name] = value
        if not asked:
            raise UserError(f"databases = (): name one of {', '.join(self.databases.names())}")
        return asked

    def values(self, ids: np.ndarray) -> np.ndarray:
        """Chunks and their continuations, ids [...] -> tokens [..., R]; PAD for -1."""
        _, own = self._parts[0]
        out = np.full((*ids.shape, 2 * own.table.chunk), PAD, own.table.tokens.dtype)
        for number in np.unique(ids[ids >= 0] >> _ROW_BITS).tolist():
            at = (ids >= 0) & (ids >> _ROW_BITS == number)
            out[at] = self._parts[number][1].table.values(ids[at] & ((1 << _ROW_BITS) - 1))
        return out

    def _now(self, name: str) -> list[tuple[int, Part, np.ndarray | None]]:
        """The parts of a database: number, part, and which of its documents are alive (None: all)."""
        with self._lock:
            while True:
                stamp = self.databases.stamp(name)
                if name not in self._read or self._read[name][0] != stamp:
                    try:
                        self._reopen(name, stamp)
                    except FileNotFoundError:
                        if self.databases.stamp(name) != stamp:  # changed twice since it was read
                            continue
                        raise
                return list(self._read[name][1].values())

    def _reopen(self, name: str, stamp):
        """Opens what is new in a database and lets go of what is gone."""
        state = self.databases.state(name)
        before, after = self._read.get(name, (None, {}))[1], {}
        for part in state["parts"]:
            key = (state["id"] if part["number"] else "", part["number"])
            if key in before:
                number, opened, _ = before[key]
            else:
                opened = self.databases.open(name, part["number"])
                number = next(self._numbers) if part["number"] else 0
            after[key] = number, opened, alive(opened.table, part["deleted"])
        for number, opened, _ in after.values():
            self._parts[number] = name, opened
        self._gone += [before[key][0] for key in before.keys() - after.keys()]
        while len(self._gone) > _CLOSED:
            del self._parts[self._gone.popleft()]
        self._read[name] = stamp, after


def open_retriever(
    work: WorkDir, change: Callable[[Queries], Queries] = lambda q: q, k: int | None = None
) -> Retriever:
    """The retriever of a working directory that is prepared.

    change, k: see `Retriever`; by default as many neighbours as were prepared.
    """
    k = work.experiment.retrieval.neighbours if k is None else k
    return Retriever(Databases(Prepared(work)), k, change)
