"""A part of a database: chunks that never change, their index, and a search that leaves some out."""

import functools
import threading
from collections.abc import Iterable

import numpy as np

from retro_jax.config.filters import Where
from retro_jax.corpus.chunks import ChunkTable
from retro_jax.corpus.document import digest
from retro_jax.retrieval import neighbours
from retro_jax.retrieval.index import Found
from retro_jax.retrieval.ranking import Queries, Ranking
from retro_jax.retrieval.sharded import ShardedIndex

# Candidates looked at before all of a part is; chunks that are compared without searching.
_FEW = 4096
_PARSED = 2**14  # documents whose metadata is kept
_MASKS = 8  # filters whose documents are kept


class Part:
    """Searched by many threads at a time.

    Args:
      table: the chunks [N, M]. index: of them. words: theirs [N, W]; None where `ranking` needs none.
    """

    def __init__(
        self, table: ChunkTable, index: ShardedIndex, words: np.ndarray | None, ranking: Ranking
    ):
        self.table, self._index, self._words, self._ranking = table, index, words, ranking
        self.metadata = functools.lru_cache(_PARSED)(self._read)
        self._masks, self._lock = {}, threading.Lock()

    def search(
        self,
        queries: Queries,
        k: int,
        alive: np.ndarray | None = None,
        where: Where | None = None,
    ) -> Found:
        """The k nearest chunks of documents that are alive and match.

        What is near is fetched until there are as many candidates as the ranking orders. If thousands were not
        enough, what is allowed is found out for the whole part, once a filter, and is searched alone.

        Args:
          alive: of each document [D] bool; None: all are.
          where: the filter; None: all match.

        Returns:
          ids [Q, k] int64, distances [Q, k] float32, nearest first; -1 and +inf where there are fewer.
        """
        found = self._candidates(queries.searched, self._ranking.fetch(k), alive, where)
        return self._ranking.order(queries, self._words, found, k)

    def _candidates(self, queries: np.ndarray, k: int, alive, where) -> Found:
        if alive is None and not where:
            return self._index.search(queries, k)
        allowed, where = self._known(alive, where)
        if not where and self._chunks[allowed].sum() <= _FEW:
            return self._exactly(queries, k, allowed)
        valid = functools.partial(self._valid, allowed, where)
        ids, distances, left = neighbours.nearest_valid(
            self._index.search, queries, len(self.table), k, valid, most=_FEW,
            complete=self._index.complete,
        )  # fmt: skip
        if len(left):
            allowed = self._allowed(alive, where) if where else allowed
            ids[left], distances[left] = self._exactly(queries[left], k, allowed)
        return ids, distances

    def _known(self, alive, where):
        """What is allowed [D] as far as it is known, and the filter if it is not in it."""
        with self._lock:
            mask = self._masks.get(where) if where else None
        if mask is None:
            return alive, where
        return mask if alive is None else mask & alive, None

    def _allowed(self, alive, where: Where) -> np.ndarray:
        """What is alive and matches [D] bool; reads the metadata of every document."""
        match = (where.matches(d["metadata"]) for d in self.table.documents)
        mask = np.fromiter(match, bool, len(self.table.documents))
        with self._lock:
            self._masks[where] = mask
            while len(self._masks) > _MASKS:
                del self._masks[next(iter(self._masks))]
        return mask if alive is None else mask & alive

    def exactly(self, queries: Queries, k: int, allowed: np.ndarray) -> Found:
        """As `search`, of documents that are allowed [D] bool; all of their chunks are compared."""
        found = self._exactly(queries.searched, self._ranking.fetch(k), allowed)
        return self._ranking.order(queries, self._words, found, k)

    def _exactly(self, queries: np.ndarray, k: int, allowed: np.ndarray) -> Found:
        if self._index.compares:
            of = self.table.document
            return neighbours.among(
                self._index.compared, queries, lambda rows: allowed[of[rows]], k
            )
        valid, complete = functools.partial(self._valid, allowed, None), self._index.complete
        size = len(self.table)
        return neighbours.nearest_valid(
            self._index.search,
            queries,
            size,
            k,
            valid,
            None if complete else size,
            complete=complete,
        )[:2]

    def _valid(self, allowed, where, rows: np.ndarray, found: np.ndarray) -> np.ndarray:
        """Which candidates [n, C] are of documents that are allowed and match."""
        document = self.table.document[np.maximum(found, 0)]
        valid = np.ones(found.shape, bool) if allowed is None else allowed[document]
        if where:
            numbers = np.unique(document[valid & (found >= 0)]).tolist()
            good = [n for n in numbers if where.matches(self.metadata(n))]
            valid &= np.isin(document, good)
        return valid

    def _read(self, number: int) -> dict:
        return self.table.documents[number]["metadata"]

    @functools.cached_property
    def _chunks(self) -> np.ndarray:
        """Of each document [D]."""
        return np.bincount(self.table.document, minlength=len(self.table.documents))


def numbers_of(table: ChunkTable, ids: Iterable[str]) -> dict[str, int]:
    """The numbers of those documents that a table has."""
    hashes = {digest(id, 8).rstrip(b"\0"): id for id in ids}  # as NumPy gives them back
    found = {}
    for number in np.flatnonzero(np.isin(table.ids, np.array(list(hashes), "S8"))).tolist():
        id = table.documents[number]["id"]
        if hashes.get(bytes(table.ids[number])) == id:
            found[id] = number
    return found


def alive(table: ChunkTable, deleted: Iterable[str]) -> np.ndarray | None:
    """Which documents of a table are not deleted [D] bool; None where all are not."""
    numbers = list(numbers_of(table, deleted).values())
    if not numbers:
        return None
    mask = np.ones(len(table.documents), bool)
    mask[numbers] = False
    return mask
