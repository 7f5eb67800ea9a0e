"""Exact search, the truth that every other index is measured against.

Distances are squared L2, as in the paper (section 2.3), computed of each pair alone in float64: they
are the same bits wherever a vector lies and however many are searched at a time. Equal distances are
in the order of ids. So the nearest of a whole are the nearest of the nearest of its parts.

Which pairs those are is proposed by products in bfloat16, which processors and accelerators multiply
faster, with room for the most that rounding can have changed: nothing that belongs to the answer is
left out.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from retro_jax.retrieval.index import Given, Index, checked, nothing

_BLOCK = 2_000_000  # numbers of vectors that are held at a time
_QUERIES, _VECTORS = 512, 2048  # compared at a time: their distances stay in the processor's cache
_GROUP = 32  # vectors that are looked at one by one only if the nearest of them is near enough


class Exact(Index):
    """Compares a query with every vector."""

    small = "exact"

    @classmethod
    def build(cls, vectors: np.ndarray, directory: Path, settings, given: Given) -> dict:
        """Writes the vectors and their norms."""
        np.save(directory / "vectors.npy", vectors)
        np.save(directory / "norms.npy", squared_norms(vectors))
        return {"kind": "exact", "recall": 1.0}

    @classmethod
    def open(cls, directory: Path, report: dict) -> "Exact":
        """Maps the vectors into memory."""
        return cls(*(np.load(directory / f"{n}.npy", mmap_mode="r") for n in ("vectors", "norms")))

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

        def nearest(start: int):
            at = slice(start, start + block)
            ids[at, :found], distances[at, :found] = self._nearest(queries[at], found)

        # While the products of one block are made, another's candidates are looked at.
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(nearest, range(0, len(queries), block)))
        return ids, distances

    def operations(self, k: int) -> float:
        """See `Index.operations`: products with all vectors."""
        return 2.0 * self.vectors.size

    def wide(self, share: float) -> "Exact":
        """All of it, whatever the share: a partition of few vectors is searched exactly."""
        return self

    def again(self, vectors: np.ndarray, settings, given: Given) -> tuple[str, bool]:
        """Whether it holds these vectors."""
        return "", np.array_equal(self.vectors, vectors)

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
        many for several queries."""
        slack = _slack(queries, self._norms)
        # Few shapes, so that little is compiled: what is missing is filled up.
        doubled = _filled(queries * np.float32(-2), 8, 64, _QUERIES).astype(jnp.bfloat16)
        # Distances, less the query's own norm, of the k nearest so far.
        best = np.full((len(queries), k), np.inf, np.float32)
        rows, ids, values, total = [], [], [], 0
        for begin in range(0, len(self), _VECTORS):
            vectors = self.vectors[begin : begin + _VECTORS]
            norms = self._norms[begin : begin + _VECTORS]
            count, sizes = len(vectors), (_GROUP, 8 * _GROUP, _VECTORS)
            found = _distances(
                _filled(vectors, *sizes), _filled(norms, *sizes, with_=np.inf), doubled
            )
            d, least = (np.asarray(x)[:, : len(queries)] for x in found)
            row, id, value = _below(d, least, count, best.max(axis=1), slack, k)
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


@jax.jit
def _distances(vectors, norms, doubled):
    """|v|^2 - 2 q.v of vectors [V, E] and -2 times queries [Q, E]: [V, Q], and the least of each group."""
    product = jax.lax.dot_general(
        vectors.astype(jnp.bfloat16), doubled, (((1,), (1,)), ((), ())),
        preferred_element_type=jnp.float32,
    )  # fmt: skip
    d = product + norms[:, None]
    return d, d.reshape(-1, _GROUP, d.shape[1]).min(axis=1)


def _slack(queries, norms) -> np.ndarray:
    """How much farther a vector may seem than another that it is nearer than, a query [Q].

    Rounding to bfloat16 moves a number by at most 2^-8 of it, so 2 q.v by 2^-6 |q| |v| and a little;
    sums of E numbers in float32 by E 2^-23 of what is added. Twice, because both may be wrong.
    """
    own = np.einsum("qe,qe->q", queries, queries).astype(np.float64)  # whose products stay in range
    most, width = np.float64(norms.max()), queries.shape[1]
    rounded = (2.0**-6 + 2.0**-14) * np.sqrt(own * most)
    summed = (8 + width) * 2.0**-23 * (own + most)
    most = np.float64(np.finfo(np.float32).max)
    return np.minimum((2 + 2.0**-20) * (rounded + summed) + 1e-30, most).astype(np.float32)


def _filled(array: np.ndarray, *sizes: int, with_=0) -> np.ndarray:
    """The array with rows added, up to the first of the sizes that holds it."""
    size = next(s for s in sizes if s >= len(array))
    missing = ((0, size - len(array)), *[(0, 0)] * (array.ndim - 1))
    return array if size == len(array) else np.pad(array, missing, constant_values=with_)


def _below(d, least, count: int, bound, slack, k: int):
    """Of distances d [V, Q], `least` of each group, those up to bound + slack [Q]: rows of Q, rows of V,
    values [n].

    Where a bound is infinite yet, the k nearest of V bound it; `count` of them are vectors.
    """
    if np.isinf(bound).any() and count > k:
        # A group's nearest is one of the vectors, so k groups bound as k vectors do.
        some = least if count // _GROUP > k else d
        bound = np.minimum(bound, np.partition(some, k - 1, axis=0)[k - 1])
    limit = bound + slack
    group, row = np.divmod(np.flatnonzero(least <= limit), d.shape[1])
    near = d.reshape(-1, _GROUP, d.shape[1])[group, :, row]
    which, member = np.divmod(np.flatnonzero(near <= limit[row, None]), _GROUP)
    id = group[which] * _GROUP + member
    there = id < count  # an infinite limit lets in what was filled up
    return row[which][there], id[there], near[which, member][there]


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
