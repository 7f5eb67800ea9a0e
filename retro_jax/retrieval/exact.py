"""Exact search, the truth that every other index is measured against.

Distances are squared L2, as in the paper (section 2.3), computed of each pair alone in float64: they
are the same bits wherever a vector lies and however many are searched at a time. Equal distances are
in the order of ids. So the nearest of a whole are the nearest of the nearest of its parts.
"""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from threadpoolctl import ThreadpoolController

_BLOCK = 2_000_000  # numbers of vectors that are held at a time
_QUERIES, _VECTORS = 512, 2048  # compared at a time: their distances stay in the processor's cache
_GROUP = 32  # vectors that are looked at one by one only if the nearest of them is near enough
_PARALLEL = threading.Lock()


class ExactIndex:
    """Compares a query with every vector."""

    kind = "exact"

    def __init__(self, vectors: np.ndarray, norms: np.ndarray | None = None):
        self.vectors = vectors
        self._norms = squared_norms(vectors) if norms is None else norms

    def __len__(self) -> int:
        return len(self.vectors)

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """queries [Q, E] -> ids [Q, k] int64, distances [Q, k] float32."""
        queries = checked(queries, self.vectors.shape[1])
        ids, distances = nothing(len(queries), k)
        found = min(k, len(self))
        if not found or not len(queries):
            return ids, distances
        block = max(1, min(_QUERIES, _BLOCK // found))
        block = -(-len(queries) // -(-len(queries) // block))  # equal shares for the threads

        def nearest(start: int):
            at = slice(start, start + block)
            ids[at, :found], distances[at, :found] = self._nearest(queries[at], found)

        _in_parallel(nearest, range(0, len(queries), block))
        return ids, distances

    def _nearest(self, queries, k: int) -> tuple[np.ndarray, np.ndarray]:
        """ids and distances [Q, k] of the nearest; there are as many."""
        candidates = self._candidates(queries, k)
        if candidates is None:  # thousands equally near, of duplicates: fewer queries at a time
            half = len(queries) // 2
            parts = self._nearest(queries[:half], k), self._nearest(queries[half:], k)
            return tuple(np.concatenate(x) for x in zip(*parts))
        row, id = candidates
        near = squared_distances(queries, row, self.vectors, id)
        order = np.lexsort((id, near, row))
        # Each row has at least k: the first of each are the answer.
        first = np.searchsorted(row[order], np.arange(len(queries)))
        chosen = order[first[:, None] + np.arange(k)]
        return id[chosen], near[chosen]

    def _candidates(self, queries, k: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Pairs (row of a query, id) of all that could be among a query's k nearest; None if they are too
        many for several queries.

        A product's last bits depend on its shape: it only proposes, and leaves room for them.
        """
        slack = 1e-5 * (np.einsum("qe,qe->q", queries, queries) + self._norms.max() + 1e-30)
        double = queries * np.float32(-2)
        # Distances, less the query's own norm, of the k nearest so far.
        best = np.full((len(queries), k), np.inf, np.float32)
        rows, ids, values, total = [], [], [], 0
        product = np.empty(min(_VECTORS, len(self)) * len(queries), np.float32)
        for begin in range(0, len(self), _VECTORS):
            vectors = self.vectors[begin : begin + _VECTORS]
            d = product[: len(vectors) * len(queries)].reshape(len(vectors), -1)
            np.matmul(vectors, double.T, out=d)
            d += self._norms[begin : begin + _VECTORS, None]
            row, id, value = _below(d, best.max(axis=1), slack, k)
            if not len(row):
                continue
            total += len(row)
            if total > _BLOCK and len(queries) > 1:
                return None
            rows.append(row)
            ids.append(id + begin)
            values.append(value)
            order = np.lexsort((value, row))
            row, value = row[order], value[order]
            rank = np.arange(len(row)) - np.searchsorted(row, row)
            nearest = np.full_like(best, np.inf)
            nearest[row[rank < k], rank[rank < k]] = value[rank < k]
            best = np.partition(np.concatenate([best, nearest], axis=1), k - 1, axis=1)[:, :k]
        row, id, value = map(np.concatenate, (rows, ids, values))
        still = value <= (best.max(axis=1) + slack)[row]
        return row[still], id[still]


def _below(d: np.ndarray, bound: np.ndarray, slack: np.ndarray, k: int):
    """Of distances d [V, Q], those up to bound + slack [Q]: rows of Q, rows of V, values [n].

    Where a bound is infinite yet, the k nearest of V bound it.
    """
    size = _GROUP if len(d) % _GROUP == 0 else 1
    groups = d.reshape(-1, size, d.shape[1])
    least = groups.min(axis=1)
    if np.isinf(bound).any() and len(d) > k:
        # A group's nearest is one of the vectors, so k groups bound as k vectors do.
        some = least if len(least) > k else d
        bound = np.minimum(bound, np.partition(some, k - 1, axis=0)[k - 1])
    limit = bound + slack
    group, row = np.divmod(np.flatnonzero(least <= limit), d.shape[1])
    near = groups[group, :, row]
    which, member = np.divmod(np.flatnonzero(near <= limit[row, None]), size)
    return row[which], group[which] * size + member, near[which, member]


def _in_parallel(do, starts: range):
    """do(start) for each, on as many threads as BLAS has, each of whose products has one."""
    if len(starts) == 1:  # a few queries: BLAS knows best
        return do(starts[0])
    with _PARALLEL:
        blas = ThreadpoolController().select(user_api="blas")
        threads = max((library["num_threads"] for library in blas.info()), default=1)
        with blas.limit(limits=1), ThreadPoolExecutor(threads) as pool:
            list(pool.map(do, starts))
    return None


def squared_norms(vectors: np.ndarray) -> np.ndarray:
    """|v|^2 of each vector [N] float32."""
    out = np.empty(len(vectors), np.float32)
    step = max(1, _BLOCK // max(1, vectors.shape[1]))
    for start in range(0, len(vectors), step):
        part = vectors[start : start + step]
        out[start : start + step] = np.einsum("ne,ne->n", part, part)
    return out


def squared_distances(queries, rows, vectors, ids) -> np.ndarray:
    """|queries[rows] - vectors[ids]|^2 of each pair, float32, computed in float64."""
    out = np.empty(len(rows), np.float32)
    step = max(1, _BLOCK // vectors.shape[1])
    for start in range(0, len(rows), step):
        at = slice(start, start + step)
        difference = queries[rows[at]].astype(np.float64) - vectors[ids[at]]
        out[at] = np.square(difference).sum(axis=1)
    return out


def checked(queries: np.ndarray, width: int) -> np.ndarray:
    """Queries [Q, width] as float32.

    Raises:
      ValueError: another width, or NaN or Inf among them.
    """
    queries = np.ascontiguousarray(queries, np.float32)
    if queries.ndim != 2 or queries.shape[1] != width:
        raise ValueError(f"queries must be [Q, {width}], not {list(queries.shape)}")
    if not np.isfinite(queries).all():
        raise ValueError("a query holds NaN or Inf")
    return queries


def nothing(rows: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """ids and distances where nothing was found: -1 and +inf."""
    return np.full((rows, k), -1, np.int64), np.full((rows, k), np.inf, np.float32)
