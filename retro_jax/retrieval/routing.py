"""Which partitions of a large database a vector lies in, and which a query is sent to.

A coarse k-means over a sample of the database cuts it into partitions of nearly the same size: each time the
largest is halved. Every vector lies in two: that of the nearest centre, and a second one, chosen so that it is
near for queries to which the first is not (SOAR, Sun et al. 2023, "Orthogonality-Enhanced Residuals"): of the
vector's difference to the second centre, the share that points where its difference to the first does counts
twice. A query is sent to the partitions of its nearest centres; how many it takes is measured (division.py).
"""

import itertools
from collections.abc import Iterator

import numpy as np

_SAMPLE = 256  # vectors of a run at most; the centres are fitted on a run for each partition
_FITTED = 2**21  # vectors that the centres are fitted on at most: 2 GB of 256 numbers
BLOCK = 4096  # vectors that are placed at a time
TWICE = 2  # partitions of a vector


def fit(vectors: np.ndarray, parts: int) -> np.ndarray:
    """The centres of so many partitions of vectors [N, E]: [P, E] float32."""
    from sklearn.cluster import BisectingKMeans  # heavy, and for large databases only
    from threadpoolctl import threadpool_limits

    # Runs that are evenly spread, and read in one go each.
    runs = [len(vectors) * n // parts for n in range(parts)]
    run = max(1, min(_SAMPLE, _FITTED // parts))
    sample = np.concatenate([vectors[begin : begin + run] for begin in runs]).astype(np.float32)
    # A few vectors moved a little: k-means wants as many different ones as centres.
    spread = np.float32(1e-6 * (1 + np.abs(sample[: 2**16]).mean()))
    sample += spread * np.random.default_rng(0).standard_normal(sample.shape, np.float32)
    made = BisectingKMeans(parts, random_state=0, bisecting_strategy="largest_cluster")
    # Threads add up in the order in which they end: other bits each time.
    with threadpool_limits(1):
        return made.fit(sample).cluster_centers_.astype(np.float32)


def place(vectors: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """The two partitions of each vector [n, E]: [n, 2] int32; the same one twice where there is one only."""
    d = _distances(vectors, centres)
    first = d.argmin(axis=1)
    if len(centres) == 1:
        return np.zeros((len(vectors), TWICE), np.int32)
    residual = vectors - centres[first]
    direction = residual / np.maximum(np.linalg.norm(residual, axis=1, keepdims=True), 1e-12)
    own = (vectors * direction).sum(axis=1, keepdims=True)
    d += np.square(own - direction @ centres.T)
    d[np.arange(len(d)), first] = np.inf
    return np.stack([first, d.argmin(axis=1)], axis=1).astype(np.int32)


def placed(vectors: np.ndarray, centres: np.ndarray) -> Iterator[np.ndarray]:
    """`place`, a block at a time."""
    for begin in range(0, len(vectors), BLOCK):
        yield place(np.asarray(vectors[begin : begin + BLOCK], np.float32), centres)


def nearest(queries: np.ndarray, centres: np.ndarray, probes: int) -> np.ndarray:
    """The partitions that queries [Q, E] are sent to: [Q, probes], nearest first."""
    probes, sent = min(probes, len(centres)), []
    for begin in range(0, len(queries), BLOCK):
        d = _distances(queries[begin : begin + BLOCK], centres)
        near = np.argpartition(d, probes - 1, axis=1)[:, :probes]
        order = np.argsort(np.take_along_axis(d, near, 1), axis=1, kind="stable")
        sent.append(np.take_along_axis(near, order, 1))
    return np.concatenate([np.zeros((0, probes), np.int64), *sent])


def members(sent: np.ndarray, parts: int) -> list[np.ndarray]:
    """Of each partition, which rows of sent [n, p] name it, in order."""
    order = np.argsort(sent, axis=None, kind="stable")
    ends = np.searchsorted(sent.ravel()[order], np.arange(parts + 1))
    rows = order // sent.shape[1]
    return [np.unique(rows[begin:end]) for begin, end in itertools.pairwise(ends)]


def _distances(vectors: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Squared distances [n, P] but for the vector's own norm."""
    return np.square(centres).sum(axis=1) - 2 * (vectors @ centres.T)
