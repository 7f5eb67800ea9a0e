"""What recall is measured on: some vectors of a database, and how near their true neighbours are."""

import numpy as np

from retro_jax.retrieval.index import Index
from retro_jax.retrieval.indexes.exact import Exact

_SAMPLE = 1000  # vectors; the standard error of a recall of 0.9 is then below 0.01


class Truth:
    """A sample of the vectors [N, E] of a database, evenly spaced, searched exactly for k neighbours.

    That a vector finds itself does not count. Distances are compared, not ids: duplicates are equally near, and
    either is right.
    """

    def __init__(self, vectors: np.ndarray, k: int):
        count = min(len(vectors), _SAMPLE)
        rows = np.arange(count) * len(vectors) // count
        self.queries, self.k = np.asarray(vectors[rows], np.float32), k
        self._others = min(k, len(vectors) - 1)
        farthest = Exact(vectors).search(self.queries, self._others + 1)[1][:, -1:]
        # An index computes distances in float32: what rounding may add.
        rounding = 1e-5 * (1 + np.square(self.queries).sum(axis=1, keepdims=True))
        self._within = farthest + rounding

    def recall(self, distances: np.ndarray) -> float:
        """The share of the true neighbours among what an index found for the queries; distances [Q, k + 1], in
        rising order."""
        return float((distances[:, 1 : self._others + 1] <= self._within).mean())

    def recall_of(self, index: Index) -> float:
        """The recall of an index of the whole database."""
        return self.recall(index.search(self.queries, self.k + 1)[1])
