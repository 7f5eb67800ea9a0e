"""The k nearest chunks of every query, none of them of what it may not see (forbidden.py)."""

import functools
from collections.abc import Callable

import numpy as np

from retro_jax.retrieval.index import Allowed, Found, merge, nothing
from retro_jax.retrieval.indexes.exact import Exact
from retro_jax.retrieval.sharded import Shard, ShardedIndex

BLOCK = 2048  # queries searched at a time
_CANDIDATES = 2**22  # held at a time
_MANY = 4096  # forbidden chunks, from which a search that cannot leave them out may be wasted


class Owners:
    """Which document the chunks of a database are of.

    Args:
      document: the document of each chunk [N].
      number: what documents are called where they are forbidden [D]; by default what they are called
        in `document`. Several may have one number.
    """

    def __init__(self, document: np.ndarray, number: np.ndarray | None = None):
        self._document, self._given = document, number

    @functools.cached_property
    def chunks(self) -> np.ndarray:
        """How many chunks the documents of each number have."""
        counts = np.zeros(len(self._number), np.int64)
        for begin in range(0, len(self._document), 2**22):
            part = np.bincount(self._document[begin : begin + 2**22])
            counts[: len(part)] += part
        return np.bincount(self._number, counts).astype(np.int64)

    @functools.cached_property
    def _number(self) -> np.ndarray:
        if self._given is not None:
            return self._given
        return np.arange(1 + int(np.max(self._document, initial=-1)))

    def __len__(self) -> int:
        return len(self._document)

    def within(self, shard: Shard) -> "Owners":
        """Those of the chunks of a shard."""
        if len(shard) == len(self):
            return self
        return Owners(self._document[shard.numbers(np.arange(len(shard)))], self._number)

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """The numbers of the documents that chunks are of."""
        return self._number[self._document[rows]]


def find(
    index: ShardedIndex,
    queries: np.ndarray,
    forbidden: np.ndarray,
    owners: Owners,
    k: int,
    progress: Callable[[int], None] = lambda done: None,
    block: int = BLOCK,
) -> Found:
    """Searches k neighbours a query outside its forbidden documents, in every shard that it is sent to; and in all,
    where these have fewer than k.

    Args:
      queries: vectors [Q, E].
      forbidden: documents that each query may not have a neighbour of [Q, F] int, -1 for none.
      owners: of the chunks of the database.
      k: neighbours a query.
      progress: called with the number of queries done since the last call.
      block: queries searched at a time.

    Returns:
      ids [Q, k] int64 and distances [Q, k] float32, nearest first; -1 and +inf where missing.
    """
    ids, distances = nothing(len(queries), k)
    for start in range(0, len(queries), block):
        at = slice(start, min(start + block, len(queries)))

        def inside(shard: Shard, rows: np.ndarray, at=at) -> Found:
            return find_in(shard, queries[at][rows], forbidden[at][rows], owners.within(shard), k)

        ids[at], distances[at] = index.each(queries[at], k, inside)
        progress(at.stop - start)
    return ids, distances


def find_in(
    shard: Shard, queries: np.ndarray, forbidden: np.ndarray, owners: Owners, k: int
) -> Found:
    """As `find`, in one shard.

    A neighbour N and its continuation F are of one document, so to forbid N's document is to forbid F's. The
    number of candidates grows until k valid ones are found or none is left. Where an eighth of the shard is
    forbidden, what is not is compared directly, if it can be.

    Args:
      owners: of the chunks of the shard.

    Returns:
      ids [Q, k] in the database, distances [Q, k].
    """
    ids, distances = nothing(len(queries), k)
    pending = np.arange(len(queries))
    if shard.compares and len(queries):
        sets, of = _sets(forbidden)
        large = [owners.chunks[s].sum() > max(_MANY, len(owners) // 8) for s in sets]
        for i in np.flatnonzero(large):
            rows = pending[of == i]
            outside = functools.partial(_outside, owners, sets[i])
            ids[rows], distances[rows] = among(shard.compared, queries[rows], outside, k)
        pending = pending[~np.array(large)[of]]
    allowed = functools.partial(_allowed, owners, forbidden[pending])
    near, d, _ = nearest_valid(
        shard.search, queries[pending], len(owners), k, allowed, complete=shard.complete
    )
    ids[pending], distances[pending] = near, d
    return shard.numbers(ids), distances


def nearest_valid(
    search: Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]],
    queries: np.ndarray,
    size: int,
    k: int,
    valid: Callable[[np.ndarray, np.ndarray], np.ndarray],
    fetch: int | None = None,
    most: int | None = None,
    complete: bool = False,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Searches the k nearest that are valid; candidates grow until there are k, or none is left.

    Args:
      search: `Index.search`.
      queries: vectors [Q, E].
      size: chunks that are searched.
      valid: rows of `queries` [n] and what was found for them [n, C] to which may stay, bool [n, C];
        what it says of -1 does not count.
      fetch: candidates at first; by default a few more than k.
      most: candidates after which a query is given up; by default all.
      complete: whether `search` has found all that there are where it finds fewer than it is asked for.

    Returns:
      ids [Q, k] int64, distances [Q, k] float32, nearest first; -1 and +inf where missing; and the
      queries that were given up [n].
    """
    ids = np.full((len(queries), k), -1, np.int64)
    distances = np.full((len(queries), k), np.inf, np.float32)
    pending, fetch, most = np.arange(len(queries)), fetch or 2 * k + 12, most or size
    while len(pending):
        step, missing = max(1, _CANDIDATES // fetch), []
        for rows in (pending[i : i + step] for i in range(0, len(pending), step)):
            found, d = search(queries[rows], min(fetch, size))
            good = (found >= 0) & valid(rows, found)
            # A stable sort moves the valid candidates to the front and keeps their order.
            first = np.argsort(~good, axis=1, kind="stable")[:, :k]
            taken = np.take_along_axis(good, first, 1)
            width = first.shape[1]  # fewer than k where the database is smaller than k
            ids[rows, :width] = np.where(taken, np.take_along_axis(found, first, 1), -1)
            distances[rows, :width] = np.where(taken, np.take_along_axis(d, first, 1), np.inf)
            missing.append(rows[(good.sum(1) < k) & ~(complete & (found[:, -1] < 0))])
        if fetch >= size:
            break
        pending, fetch = np.concatenate(missing), 4 * fetch
        if fetch > most and most < size:
            return ids, distances, pending
    return ids, distances, np.zeros(0, np.int64)


def _allowed(owners: Owners, forbidden: np.ndarray, rows: np.ndarray, found: np.ndarray):
    """Which of the candidates [n, C] of some queries are of no document that they forbid [Q, F]."""
    number = owners(np.maximum(found, 0))
    valid = np.ones(found.shape, bool)
    for column in forbidden[rows].T:  # not all at once: [Q, candidates, F] is large
        valid &= number != column[:, None]
    return valid


def _sets(forbidden: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    """The different sets among the rows of `forbidden`, and which of them each row is."""
    numbers, of = {}, []
    for row in forbidden.tolist():
        of.append(numbers.setdefault(frozenset(row) - {-1}, len(numbers)))
    return [np.array(sorted(s), np.int64) for s in numbers], np.array(of)


def _outside(owners: Owners, forbidden: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Which rows of the database are of no forbidden document."""
    return ~np.isin(owners(rows), forbidden)


def among(vectors: np.ndarray, queries: np.ndarray, allowed: Allowed, k: int) -> Found:
    """The k nearest of the vectors [N, E] that are allowed, by comparing all of those.

    allowed: rows [n] to bool [n].

    Returns:
      ids [Q, k] int64, distances [Q, k] float32.
    """
    found, step = [], 2**18
    for begin in range(0, len(vectors), step):
        rows = np.arange(begin, min(begin + step, len(vectors)))
        rows = rows[allowed(rows)]
        near, d = Exact(vectors[rows]).search(queries, k)
        found.append((np.where(near < 0, -1, rows[near] if len(rows) else -1), d))
    return merge(found, k)
