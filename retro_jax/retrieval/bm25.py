"""BM25 (Robertson and Zaragoza 2009), by the bm25s library: chunks found by the words they share.

It stands behind the same interface as the search of vectors. A chunk's "vector" is its words, hashed;
a distance is minus the BM25 score, so that nearer is smaller; a chunk that shares no word is no
neighbour at all. The statistics of words are those of a shard.
"""

import logging
import re
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from retro_jax.retrieval.exact import nothing

_WORD = re.compile(r"\w+")
_NONE = -1  # fills the rest of a row


class WordEmbedder:
    """Texts to their words in lower case, as hashes: [n, W] int32, -1 after the last.

    width: W, the most words of a text; what a chunk holds beyond them is not seen.
    """

    dtype = np.dtype("<i4")

    def __init__(self, width: int):
        self.width = width

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Texts -> [n, W] int32."""
        out = np.full((len(texts), self.width), _NONE, np.int32)
        for row, text in enumerate(texts):
            words = _WORD.findall(text.lower())[: self.width]
            out[row, : len(words)] = [zlib.crc32(w.encode()) & 0x7FFFFFFF for w in words]
        return out


class Bm25Index:
    """Inverted lists of scores, memory-mapped."""

    kind = "bm25"

    def __init__(self, directory: Path, size: int):
        self.directory, self._size = directory, size
        self._words = np.load(directory / "words.npy")
        if len(self._words):
            self._index = _library().load(directory / "bm25", mmap=True, load_vocab=False)

    def __len__(self) -> int:
        return self._size

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """queries [Q, W] from `WordEmbedder` -> ids [Q, k] int64, distances [Q, k] float32."""
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


def build(chunks: np.ndarray, directory: Path):
    """Writes the index of chunks [N, W] from `WordEmbedder` into an existing directory."""
    words = np.unique(chunks)
    words = words[words != _NONE]
    np.save(directory / "words.npy", words)
    if not len(words):  # symbols only: nothing can be found, and the library cannot index it
        return
    numbers = [np.searchsorted(words, row[row != _NONE]).tolist() for row in chunks]
    index = _library()()
    index.index((numbers, {str(i): i for i in range(len(words))}), show_progress=False)
    index.save(directory / "bm25", show_progress=False)


def _library():
    from bm25s import BM25  # only who searches by words needs it

    logging.getLogger("bm25s").setLevel(logging.WARNING)  # it tells of every index
    return BM25
