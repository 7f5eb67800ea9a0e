"""Which partitions of a large database a vector lies in, and which a query is sent to.

A coarse k-means over a sample of the database cuts it into partitions of nearly the same size: each time the
largest is halved. Every vector lies in two: that of the nearest centre, and a second one, chosen so that it is
near for queries to which the first is not (SOAR, Sun et al. 2023, "Orthogonality-Enhanced Residuals"): of the
vector's difference to the second centre, the share that points where its difference to the first does counts
twice. A query is sent to the partition of its nearest centre, and to those of centres that are nearly as near
(query-aware pruning: SPANN, Chen et al. 2021); how near that is, is measured (division.py).
"""

import itertools
from collections.abc import Iterator

import numpy as np

_SAMPLE = 256  # vectors of a run at most; the centres are fitted on a run for each partition
_FITTED = 2**21  # vectors that the centres are fitted on at most: 2 GB of 256 numbers
BLOCK = 4096  # vectors that are placed at a time
TWICE = 2  # partitions of a vector
_MOST, _ONE_IN = 64, 16  # partitions that a query may be sent to: so many, or one in so many of all


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


def nearest(
    queries: np.ndarray, centres: np.ndarray, least: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """The partitions that queries [Q, E] may be sent to.

    least: how many there are to be at least, if there are as many.

    Returns:
      partitions [Q, p], nearest first, and how much farther the centre of each is than the nearest: the ratio of
      squared distances, less 1 [Q, p].
    """
    most = min(len(centres), max(_MOST, len(centres) // _ONE_IN, least))
    found = [(np.zeros((0, most), np.int64), np.zeros((0, most), np.float32))]
    for begin in range(0, len(queries), BLOCK):
        block = queries[begin : begin + BLOCK]
        d = _distances(block, centres) + np.square(block).sum(axis=1, keepdims=True)
        near = np.argpartition(d, most - 1, axis=1)[:, :most]
        d = np.maximum(np.take_along_axis(d, near, 1), 1e-12)
        order = np.argsort(d, axis=1, kind="stable")
        near, d = (np.take_along_axis(x, order, 1) for x in (near, d))
        found.append((near, d / d[:, :1] - 1))
    return tuple(map(np.concatenate, zip(*found)))


def sent(queries: np.ndarray, centres: np.ndarray, slack: float, least: int = 1) -> np.ndarray:
    """The partitions that queries [Q, E] are sent to: [Q, p], nearest first, -1 after the last.

    slack: how much farther a centre may be than the nearest. least: partitions, however far they are.
    """
    found = [np.zeros((0, 1), np.int64)]
    # Not of all queries at once: with all partitions that they may be sent to, that is large.
    for begin in range(0, len(queries), BLOCK):
        near, farther = nearest(queries[begin : begin + BLOCK], centres, least)
        goes = (farther <= slack) | (np.arange(near.shape[1]) < least)
        found.append(np.where(goes, near, -1)[:, : goes.sum(axis=1).max()])
    width = max(f.shape[1] for f in found)
    padded = [np.pad(f, ((0, 0), (0, width - f.shape[1])), constant_values=-1) for f in found]
    return np.concatenate(padded)


def members(sent: np.ndarray, parts: int) -> list[np.ndarray]:
    """Of each partition, which rows of sent [n, p] name it, in order; -1 is none."""
    order = np.argsort(sent, axis=None, kind="stable")
    ends = np.searchsorted(sent.ravel()[order], np.arange(parts + 1))
    rows = order // sent.shape[1]
    return [np.unique(rows[begin:end]) for begin, end in itertools.pairwise(ends)]


def _distances(vectors: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Squared distances [n, P] but for the vector's own norm."""
    return np.square(centres).sum(axis=1) - 2 * (vectors @ centres.T)
