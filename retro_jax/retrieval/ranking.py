"""The order of candidates: exact BM25 (`retrieval.rerank=bm25`), or that of the index (`none`).

An index finds `retrieval.candidates` of a chunk, cheaply and nearly right; the BM25 score of each for the query is
then computed exactly, and the best of them are the neighbours. Batches, live retrieval, databases that change and
workers all order by this.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from retro_jax.config import RetrievalConfig
from retro_jax.retrieval import bm25
from retro_jax.retrieval.embedder import EMBEDDERS
from retro_jax.retrieval.index import INDEXES, Found, nothing


class Queries(NamedTuple):
    """What is looked up, a row each.

    Attributes:
      searched: what the index takes: vectors [Q, E], or words [Q, W].
      words: [Q, W]; None where candidates are not ordered by them.
    """

    searched: np.ndarray
    words: np.ndarray | None = None

    def rows(self, rows) -> "Queries":
        """Some of them."""
        return Queries(self.searched[rows], None if self.words is None else self.words[rows])


@dataclass(frozen=True)
class Ranking:
    """What becomes of the candidates of a search.

    Attributes:
      candidates: of a chunk; 0: they stay in the order of the index, and there are as many as neighbours.
      shares: whether what shares no word with the query is no neighbour.
      distance: what a distance is. by_score: whether it is minus a score.
      statistics: of the words of the database.
    """

    candidates: int = 0
    shares: bool = False
    distance: str = "squared L2"
    by_score: bool = False
    statistics: bm25.Statistics | None = None

    @classmethod
    def of(cls, r: RetrievalConfig, statistics: bm25.Statistics | None = None) -> "Ranking":
        """The ranking of a config."""
        if r.rerank == "none":
            index = INDEXES[r.index]
            return cls(0, False, index.distance, index.takes == "words")
        shares = EMBEDDERS[r.embedder].reads == "words"
        return cls(r.candidates, shares, "minus the BM25 score", True, statistics)

    def fetch(self, k: int) -> int:
        """How many candidates are searched for k neighbours."""
        return max(k, self.candidates)

    @property
    def operations(self) -> float:
        """Multiplications and additions of the scores of a query's candidates, one of each for a word."""
        return 2.0 * self.candidates * self.statistics.length if self.candidates else 0.0

    def order(self, queries: Queries, words: np.ndarray | None, found: Found, k: int) -> Found:
        """The k best of candidates.

        Args:
          words: of the chunks that the ids are numbers of [N, W].
          found: ids [Q, C], -1 for none, and distances [Q, C], nearest first.

        Returns:
          ids [Q, k], distances [Q, k], nearest first; -1 and +inf where there are fewer.
        """
        if not self.candidates:
            return found[0][:, :k], found[1][:, :k]
        return self.best(found[0], self.scores(queries, words, found[0]), k)

    def scores(self, queries: Queries, words: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """The BM25 scores of candidates [Q, C] float32; what stands at -1 means nothing."""
        out = np.zeros(ids.shape, np.float32)
        for row, (query, own) in enumerate(zip(queries.words, ids)):
            out[row] = bm25.scores(query, words[np.maximum(own, 0)], self.statistics)
        return out

    def best(self, ids: np.ndarray, scores: np.ndarray, k: int) -> Found:
        """The k candidates [Q, C] with the highest scores; equal ones stay as they are."""
        valid = (ids >= 0) & ((scores > 0) | (not self.shares))
        distances = np.where(valid, 0 - scores, np.inf).astype(np.float32)
        near = np.argsort(distances, axis=1, kind="stable")[:, :k]
        out = nothing(len(ids), k)
        width = near.shape[1]
        out[1][:, :width] = np.take_along_axis(distances, near, 1)
        out[0][:, :width] = np.where(
            np.isinf(out[1][:, :width]), -1, np.take_along_axis(ids, near, 1)
        )
        return out

    def weighted(self, distances: np.ndarray, weight: float) -> np.ndarray:
        """Distances where a database counts `weight` times as much as another."""
        return distances * np.float32(weight if self.by_score else 1 / weight)
