"""BM25 (Robertson and Zaragoza 2009), by the bm25s library: chunks found by the words they share.

It stands behind the same interface as the search of vectors. A chunk's "vector" is its words, hashed;
a distance is minus the BM25 score, so that nearer is smaller; a chunk that shares no word is no
neighbour at all. The statistics of words are those of a shard, or given, so that the scores of a few
chunks that are added later compare with those of many.
"""

import filecmp
import logging
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import sparse

from retro_jax.retrieval.embedders.words import NONE
from retro_jax.retrieval.index import Index, nothing

_BLOCK = 2**16  # chunks counted at a time


class Bm25(Index):
    """Inverted lists of scores, memory-mapped."""

    takes, distance = "words", "minus the BM25 score"
    compares, collective, small = False, True, "bm25"

    @classmethod
    def build(cls, vectors: np.ndarray, directory: Path, settings, k: int, statistics=None) -> dict:
        """Writes the lists of chunks [N, W] from `Words`, scored with these statistics."""
        build(vectors, directory, statistics)
        return {"kind": "bm25", "recall": 1.0}

    @classmethod
    def open(cls, directory: Path, report: dict) -> "Bm25":
        """Maps the lists into memory."""
        return cls(directory, report["size"])

    @classmethod
    def statistics(cls, vectors: np.ndarray) -> "Statistics":
        """See `statistics`."""
        return statistics(vectors)

    @classmethod
    def weighted(cls, distances: np.ndarray, weight: float) -> np.ndarray:
        """A score counts `weight` times."""
        return distances * np.float32(weight)

    def again(self, vectors: np.ndarray, settings, k: int) -> tuple[str, bool]:
        """Whether the same files come out."""
        with tempfile.TemporaryDirectory() as made:
            build(np.asarray(vectors), Path(made))
            names = [p.relative_to(made) for p in Path(made).rglob("*") if p.is_file()]
            same = [filecmp.cmp(self.directory / n, Path(made) / n, False) for n in names]
        return "", all(same)

    def __init__(self, directory: Path, size: int):
        self.directory, self._size = directory, size
        self._words = np.load(directory / "words.npy")
        if len(self._words):
            self._index = _library().load(directory / "bm25", mmap=True, load_vocab=False)

    def __len__(self) -> int:
        return self._size

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """queries [Q, W] from `Words` -> ids [Q, k] int64, distances [Q, k] float32."""
        ids, distances = nothing(len(queries), k)
        if not len(self._words):
            return ids, distances
        for row, query in enumerate(queries):
            at = np.minimum(np.searchsorted(self._words, query), len(self._words) - 1)
            scores = self._index.get_scores_from_ids(at[self._words[at] == query])
            found = np.flatnonzero(scores > 0)
            if len(found) > k:
                bound = np.partition(scores[found], len(found) - k)[len(found) - k]
                found = found[scores[found] >= bound]
            near = found[np.lexsort((found, -scores[found]))][:k]
            ids[row, : len(near)] = near
            distances[row, : len(near)] = -scores[near]
        return ids, distances


class Statistics(NamedTuple):
    """What the score of a chunk depends on beside the chunk."""

    chunks: int
    length: float  # words of a chunk, on average
    words: np.ndarray  # [V] int32, in order
    frequencies: np.ndarray  # [V] int64, how many chunks have each

    def idf(self, words: np.ndarray) -> np.ndarray:
        """[n] float32 of words [n]; no chunk has one that is not known."""
        known = np.isin(words, self.words)
        df = np.zeros(len(words))
        df[known] = self.frequencies[np.searchsorted(self.words, words[known])]
        return np.log(1 + (self.chunks - df + 0.5) / (df + 0.5)).astype(np.float32)


def statistics(chunks: np.ndarray) -> Statistics:
    """The statistics of chunks [N, W] from `Words`, read a block at a time."""
    words, frequencies, total = np.zeros(0, np.int32), np.zeros(0, np.int64), 0
    for begin in range(0, len(chunks), _BLOCK):
        block = np.sort(chunks[begin : begin + _BLOCK], axis=1)
        total += int((block != NONE).sum())
        first = block != NONE  # a word counts once a chunk
        first[:, 1:] &= block[:, 1:] != block[:, :-1]
        own, counts = np.unique(block[first], return_counts=True)
        words, at = np.unique(np.concatenate([words, own]), return_inverse=True)
        frequencies = np.bincount(at, np.concatenate([frequencies, counts]), len(words))
    return Statistics(len(chunks), total / max(1, len(chunks)), words, frequencies.astype(np.int64))


def build(chunks: np.ndarray, directory: Path, of: Statistics | None = None):
    """Writes the index of chunks [N, W] from `Words` into an existing directory.

    of: the statistics that chunks are scored with; by default their own.
    """
    words = np.unique(chunks)
    words = words[words != NONE]
    np.save(directory / "words.npy", words)
    if not len(words):  # symbols only: nothing can be found, and the library cannot index it
        return
    index = _library()()
    if of is None:
        numbers = [np.searchsorted(words, row[row != NONE]).tolist() for row in chunks]
        index.index((numbers, {str(i): i for i in range(len(words))}), show_progress=False)
    else:  # what the library makes of its own statistics
        index.scores = _scores(chunks, words, of, index.k1, index.b)
        index.vocab_dict, index.nonoccurrence_array = {}, None
    index.save(directory / "bm25", show_progress=False)


def _scores(chunks: np.ndarray, words: np.ndarray, of: Statistics, k1: float, b: float) -> dict:
    """Scores by word, as the library's method `lucene` has them."""
    row, column = np.nonzero(chunks != NONE)
    word = np.searchsorted(words, chunks[row, column])
    pair, tf = np.unique(row * len(words) + word, return_counts=True)
    row, word = np.divmod(pair, len(words))
    length = (chunks != NONE).sum(axis=1)[row]
    share = tf / (k1 * ((1 - b) + b * length / (of.length or 1.0)) + tf)
    score = (of.idf(words)[word] * share).astype(np.float32)
    made = sparse.csc_array((score, (row, word)), (len(chunks), len(words)))
    made.sort_indices()
    return {
        "data": made.data,
        "indices": made.indices,
        "indptr": made.indptr.astype(np.int64),
        "num_docs": len(chunks),
    }


def _library():
    from bm25s import BM25  # heavy, and for those only that search words

    logging.getLogger("bm25s").setLevel(logging.WARNING)  # it tells of every index
    return BM25
