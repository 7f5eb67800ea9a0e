"""Which partitions of a large database a vector lies in, and which a query is sent to.

A coarse k-means over a sample of the database cuts it into partitions of nearly the same size: each time the
largest is halved. Every vector lies in two: that of the nearest centre, and a second one, chosen so that it is
near for queries to which the first is not (SOAR, Sun et al. 2023, "Orthogonality-Enhanced Residuals"): of the
vector's difference to the second centre, the share that points where its difference to the first does counts
twice. A query is sent to the partitions of its nearest centres; how many it takes is measured (sharded.py).
"""

from collections.abc import Iterator

import numpy as np

_SAMPLE = 256  # vectors of a run; the centres are fitted on a run for each partition
BLOCK = 4096  # vectors that are placed at a time
TWICE = 2  # partitions of a vector


def fit(vectors: np.ndarray, parts: int) -> np.ndarray:
    """The centres of so many partitions of vectors [N, E]: [P, E] float32."""
    from sklearn.cluster import BisectingKMeans  # heavy, and for large databases only

    runs = [
        len(vectors) * n // parts for n in range(parts)
    ]  # evenly spread, and read in one go each
    sample = np.concatenate([vectors[begin : begin + _SAMPLE] for begin in runs]).astype(np.float32)
    # A few vectors moved a little: k-means wants as many different ones as centres.
    spread = 1e-6 * (1 + np.abs(sample).mean())
    sample = sample + spread * np.random.default_rng(0).normal(size=sample.shape)
    made = BisectingKMeans(parts, random_state=0, bisecting_strategy="largest_cluster")
    return made.fit(sample.astype(np.float32)).cluster_centers_.astype(np.float32)


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
    return np.argsort(_distances(queries, centres), axis=1, kind="stable")[:, :probes]


def _distances(vectors: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Squared distances [n, P] but for the vector's own norm."""
    return np.square(centres).sum(axis=1) - 2 * (vectors @ centres.T)
