"""The index of a whole database, in shards: memory is that of one shard, and what they find is merged.

A directory of shards (division.py says what each holds), each an index of its own, and `index.json`, which says
what they are together.
"""

import io
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from retro_jax.errors import UserError
from retro_jax.retrieval import routing
from retro_jax.retrieval.index import INDEXES, Found, Index, distinct, merge, nothing
from retro_jax.store import files
from retro_jax.store.bucket import local

_ANEW = "delete the index, and run prepare again"
ROUTES, IDS = "routes.npy", "ids.npy"


class Shard:
    """One shard, and which vectors of the database it holds.

    Args:
      vectors: of the whole database [N, E], of which its own are compared; None: none are.
      ids: their numbers in the database [n], or the first one, where they are in order.

    Attributes:
      complete: whether a search that finds fewer than it is asked for has found all that there are.
    """

    def __init__(self, index: Index, vectors: np.ndarray | None, ids: np.ndarray | int = 0):
        self.index, self._vectors, self._ids = index, vectors, ids
        self.compares = type(index).compares and vectors is not None
        self.complete = type(index).takes == "words"

    def __len__(self) -> int:
        return len(self.index)

    def search(self, queries: np.ndarray, k: int) -> Found:
        """The k nearest of queries [Q, E], by their numbers in the shard.

        An approximate index looks at a few groups of vectors, which may hold fewer than k: such a query is compared
        with the whole shard.
        """
        found = self.index.search(queries, k)
        few = np.flatnonzero((found[0] < 0).any(axis=1))
        if self.index.approximate and len(few) and k <= len(self):
            for all_found, more in zip(found, self.index.wide(1.0).search(queries[few], k)):
                all_found[few] = more
        return found

    def numbers(self, rows) -> np.ndarray:
        """Numbers in the shard to those in the database; -1 stays."""
        rows = np.asarray(rows)
        if isinstance(self._ids, int):
            return np.where(rows < 0, -1, rows + self._ids)
        if not len(self._ids):
            return np.full(rows.shape, -1)
        return np.where(rows < 0, -1, self._ids[np.maximum(rows, 0)])

    @property
    def compared(self) -> np.ndarray:
        """Its vectors [n, E]."""
        if isinstance(self._ids, int):
            return self._vectors[self._ids : self._ids + len(self)]
        return self._vectors[self._ids]


class ShardedIndex:
    """The shards of a database, searched one after another.

    Args:
      vectors: what is searched [N, E], for comparing a part of it directly.
      keep: hold every shard open, for whoever searches often; otherwise one at a time is in memory.
    """

    def __init__(self, directory: Path, vectors: np.ndarray | None = None, keep: bool = True):
        self._directory, self._vectors = directory, vectors
        report = read_report(directory)
        self._sizes, self._size = report["sizes"], report["size"]
        if "slack" not in report:
            raise UserError(f"{directory}: the index is of another version of retro_jax; {_ANEW}")
        self._slack, self._share = report["slack"], report["share"]
        self._of, self._probes = INDEXES[report["kind"]], report["probes"]
        self._centres = read_routes(directory) if self._probes else None
        self._open, self._lock = {}, threading.Lock()
        self._keep = keep or self.shards == 1
        for number in range(self.shards if keep else 0):
            self.shard(number)

    def __len__(self) -> int:
        return self._size

    @property
    def shards(self) -> int:
        """How many are searched apart: those of words are searched together."""
        return 1 if self._of.takes == "words" else len(self._sizes)

    @property
    def compares(self) -> bool:
        """Whether vectors can be compared with a query directly; see `compared`."""
        return self._of.compares and self._vectors is not None

    @property
    def complete(self) -> bool:
        """As `Shard.complete`."""
        return self._of.takes == "words"

    @property
    def routed(self) -> bool:
        """Whether a query is searched in some of the shards only."""
        return self._centres is not None

    @property
    def compared(self) -> np.ndarray:
        """The vectors [N, E]."""
        return self._vectors

    def shard(self, number: int) -> Shard:
        """One shard."""
        with self._lock:
            found = self._open.get(number)
            if not found:
                found = self._joined() if self._of.takes == "words" else self._read(number)
                if self._keep:
                    self._open[number] = found
            return found

    def _read(self, number: int) -> Shard:
        path = local(self._directory / shard_name(number))
        return open_shard(path, sum(self._sizes[:number]), self._vectors, self._share)

    def _joined(self) -> Shard:
        parts = [self._read(number).index for number in range(len(self._sizes))]
        return Shard(self._of.joined(parts) if len(parts) > 1 else parts[0], None)

    def operations(self, k: int) -> float:
        """Multiplications and additions that a search for the k nearest of one query takes, on average; of the centres
        of its shards as well. See `Index.operations`."""
        every = sum(self.shard(number).index.operations(k) for number in range(self.shards))
        if not self.routed:
            return every
        return every * self._probes / self.shards + 2.0 * self._centres.size

    def routes(self, queries: np.ndarray, k: int) -> list[np.ndarray]:
        """Of each shard, which of the queries [Q, E] are searched in it for k neighbours [n].

        Those that were measured to be needed. Whoever asks for many neighbours is about to discard most: then
        shards are visited in proportion, all of them long before k is N.
        """
        least = -(-10 * k * self.shards // len(self))
        if not self.routed or least >= self.shards:
            return [np.arange(len(queries))] * self.shards
        sent = routing.sent(queries, self._centres, self._slack, least)
        return routing.members(sent, self.shards)

    def search(self, queries: np.ndarray, k: int) -> Found:
        """The k nearest of queries [Q, E]; see index.py."""

        def find(shard: Shard, rows: np.ndarray) -> Found:
            ids, distances = shard.search(queries[rows], k)
            return shard.numbers(ids), distances

        return self.each(queries, k, find)

    def each(
        self, queries: np.ndarray, k: int, find: Callable[[Shard, np.ndarray], Found]
    ) -> Found:
        """The k nearest of what `find` gives, of a shard and of the numbers of the queries that are searched in
        it: those of the query's route; and all, for queries that found fewer than k there."""
        found = self._each(self.routes(queries, k), len(queries), k, find)
        few = np.flatnonzero(self.short(found[0]))
        if len(few):
            again = self._each([few] * self.shards, len(queries), k, find)
            for best, more in zip(found, again):
                best[few] = more[few]
        return found

    def _each(self, routes: list[np.ndarray], count: int, k: int, find) -> Found:
        answers = (
            (rows, find(self.shard(number), rows))
            for number, rows in enumerate(routes)
            if len(rows)
        )
        return self.joined(count, k, answers)

    def short(self, ids: np.ndarray) -> np.ndarray:
        """Which queries [Q] found fewer than they were to [Q, k], and were not searched everywhere."""
        return (ids < 0).any(axis=1) & self.routed & (ids.shape[1] <= len(self))

    def joined(self, count: int, k: int, answers: Iterable[tuple[np.ndarray, Found]]) -> Found:
        """The k nearest of what shards found for some of `count` queries, [(rows [n], found [n, k'])]."""
        best = nothing(count, k)
        for rows, found in answers:
            both = [(best[0][rows], best[1][rows]), found]
            ids, distances = merge(distinct(both) if self.routed else both, k)
            best[0][rows], best[1][rows] = ids, distances
        return best


def shard_name(number: int) -> str:
    """The directory of a shard."""
    return f"{number:05d}"


def open_shard(
    directory: Path, first: int, vectors: np.ndarray | None = None, share: float = 0.0
) -> Shard:
    """Opens one shard.

    Args:
      first: the number of its first vector, where they are in order.
      share: how much of it is searched; 0: as it was built.
    """
    report = read_report(directory)
    index = INDEXES[report["kind"]].open(directory, report)
    index = index.wide(share) if share else index
    return Shard(index, vectors, np.load(directory / IDS) if report["routed"] else first)


def read_routes(directory: Path) -> np.ndarray:
    """The centres of the partitions [P, E]."""
    return np.load(io.BytesIO((directory / ROUTES).read_bytes()))


def read_report(directory: Path) -> dict:
    """What index.json says of an index or of one shard."""
    return files.read_json(directory / "index.json", _ANEW)
