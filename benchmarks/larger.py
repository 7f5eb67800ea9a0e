"""A database made as large as one wants, and how well a search of it does. Part of benchmarks/growth.py.

Its chunks are different ones: those that were prepared, in a random choice where fewer are wanted. Where there are
not enough, more are made: the words of one chunk's first half and of another's second half, at random, so that
words are as frequent as in the text; a chunk's vector is the sum of the two vectors, of unit length again.
"""

import numpy as np

K = 10  # nearest that recall is of


class Data:
    """The words [N, W] and vectors [N, E] of a database, and of queries: held-out chunks."""

    def __init__(self, prepared, size: int, queries: int):
        from retro_jax.retrieval import bm25

        rng = np.random.default_rng(0)
        own, held = prepared.words("train"), prepared.words("heldout")
        vectors, asked = prepared.searched("train"), prepared.searched("heldout")
        rows = np.linspace(0, len(held) - 1, min(queries, len(held))).astype(int)
        self.queries, self.asked = np.asarray(held[rows]), np.asarray(asked[rows])
        different = np.unique(_hash(own), return_index=True)[1]
        kept = np.sort(rng.permutation(different)[:size])
        one, two = (rng.choice(kept, size - len(kept)) for _ in range(2))
        used = int((own[:] >= 0).sum(axis=1).max())
        self.words = np.full((size, used), -1, np.int32)
        self.vectors = np.empty((size, vectors.shape[1]), np.float32)
        first = len(kept)
        self.words[:first], self.vectors[:first] = own[kept, :used], vectors[kept]
        for begin in range(0, size - first, 2**16):
            at = slice(begin, begin + 2**16)
            out = slice(first + begin, first + begin + len(one[at]))
            self.words[out] = _mixed(own[one[at], :used], own[two[at], :used])
            both = vectors[one[at]] + vectors[two[at]]
            norms = np.linalg.norm(both, axis=1, keepdims=True)
            self.vectors[out] = both / np.maximum(norms, 1e-6)
        self.statistics = bm25.statistics(self.words)

    def distances(self, ids: np.ndarray) -> np.ndarray:
        """Squared distances of chunks [Q, C] to the queries, inf for -1."""
        out = np.full(ids.shape, np.inf, np.float32)
        for row, (query, near) in enumerate(zip(self.asked, ids)):
            out[row] = np.square(self.vectors[np.maximum(near, 0)] - query).sum(axis=1)
        return np.where(ids < 0, np.inf, out)

    def scores(self, ids: np.ndarray) -> np.ndarray:
        """Minus the BM25 scores of chunks [Q, C] for the queries, inf for -1."""
        from retro_jax.retrieval import bm25

        out = np.zeros(ids.shape, np.float32)
        for row, (query, near) in enumerate(zip(self.queries, ids)):
            out[row] = -bm25.scores(query, self.words[np.maximum(near, 0)], self.statistics)
        return np.where(ids < 0, np.inf, out)

    def nearest(self) -> np.ndarray:
        """The distances of the ten nearest chunks of the queries, by comparing all [Q, 10]."""
        from retro_jax.retrieval.indexes.exact import Exact

        return self.distances(Exact(self.vectors).search(self.asked, K)[0])

    def best(self) -> np.ndarray:
        """Minus the BM25 scores of the ten best chunks of the queries, by scoring all [Q, 10]."""
        from scipy import sparse

        from retro_jax.retrieval.bm25 import pairs

        known = np.unique(self.queries[self.queries >= 0])
        asked = [np.searchsorted(known, np.unique(q[q >= 0])) for q in self.queries]
        ends = np.cumsum([0, *map(len, asked)])
        wants = sparse.csr_array((np.ones(ends[-1], np.float32), np.concatenate(asked), ends),
                                 (len(asked), len(known)))  # fmt: skip
        best = np.zeros((len(asked), 0), np.float32)
        for begin in range(0, len(self.words), 2**15):
            words = self.words[begin : begin + 2**15]
            made = pairs(words, self.statistics)
            at = np.minimum(np.searchsorted(known, made.word), len(known) - 1)
            has = known[at] == made.word
            value = made.saturation[has] * self.statistics.idf(made.word[has])
            block = sparse.csr_array((value, (at[has], made.chunk[has])), (len(known), len(words)))
            scores = np.concatenate([best, -(wants @ block).toarray()], axis=1)
            best = np.partition(scores, K - 1, axis=1)[:, :K].astype(np.float32)
        return np.sort(best, axis=1)


def recall(found: np.ndarray, truth: np.ndarray) -> float:
    """The share of the ten nearest that is among the candidates; as near is as good, whichever chunk it is.

    Args:
      found: distances of candidates [Q, C].
      truth: of the ten nearest, in order [Q, 10]; a BM25 score of 0 is no neighbour.
    """
    wanted = (truth < 0).sum(axis=1) if (truth < 0).any() else np.full(len(truth), K)
    asked = np.flatnonzero(wanted)
    last = truth[asked, wanted[asked] - 1]
    near = found[asked] <= (last + 1e-4 * (1 + np.abs(last)))[:, None]
    return float((np.minimum(near.sum(axis=1), wanted[asked]) / wanted[asked]).mean())


def _hash(words: np.ndarray) -> np.ndarray:
    """A number for each different row of words [N, W]."""
    weights = np.random.default_rng(0).integers(1, 2**62, words.shape[1], dtype=np.uint64)
    blocks = (np.asarray(words[i : i + 2**16]) for i in range(0, len(words), 2**16))
    return np.concatenate([(b.astype(np.uint64) * weights).sum(axis=1) for b in blocks])


def _mixed(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The first half of the words of one chunk and the second half of another's, words at the front."""
    width = first.shape[1]
    half = [(x >= 0).sum(axis=1, keepdims=True) // 2 for x in (first, second)]
    place = np.arange(width)
    a = np.where(place < half[0], first, -1)
    b = np.where((place >= half[1]) & (second >= 0), second, -1)
    both = np.concatenate([a, b], axis=1)
    order = np.argsort(both < 0, axis=1, kind="stable")[:, :width]
    return np.take_along_axis(both, order, 1)
