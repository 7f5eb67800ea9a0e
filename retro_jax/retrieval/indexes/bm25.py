"""Lists of the best chunks of every word: search by words whose work does not grow with the database.

A list holds the chunks that score highest for a word (bm25.py), at most `postings` of them. Words that more than
a tenth of the chunks have say little: they are looked at only where a query has no others. So a query reads at
most its words times `postings`, whatever the database. This is what JASS (Lin and Trotman 2015)
does with impact-ordered lists, and as there scores are rounded to whole numbers, so that sums are exact and do not
depend on their order.

A distance is minus the sum of what the lists say. What they cut is missing in it, which is why the candidates are
ordered by exact BM25 (`retrieval.rerank`). A chunk in none of the lists is no neighbour at all.
"""

import filecmp
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from retro_jax.config.fields import require_at_least, setting
from retro_jax.retrieval.bm25 import Statistics, pairs
from retro_jax.retrieval.index import Given, Index, nothing

_BLOCK = 2**16  # chunks that are read at a time
_COMMON = 0.1  # of the chunks
_HELD = 2**24  # pairs of word and chunk
_SCALE = 256  # of a score, in a list; no score of one word reaches 2^16 of them
_ARRAYS = ("words", "common", "ends", "chunks", "impacts")


@dataclass(frozen=True)
class Settings:
    """The fields `retrieval.settings.bm25.*`."""

    postings: int = setting(
        300, "chunks of a word that are looked at, those with the highest score"
    )

    def __post_init__(self):
        require_at_least(1, "retrieval.settings.bm25.", self, "postings")


class Bm25(Index):
    """Lists of chunks and scores, memory-mapped."""

    Settings = Settings
    takes, distance = "words", "minus the sum of the scores in the lists"
    compares, small, growth = False, "bm25", 0.0

    @classmethod
    def build(cls, vectors: np.ndarray, directory: Path, settings, given: Given) -> dict:
        """Writes the lists of chunks [N, W] of words, scored with the statistics of the database."""
        for name, array in zip(_ARRAYS, lists(vectors, given.statistics, settings.postings)):
            np.save(directory / f"{name}.npy", array)
        return {"kind": "bm25", "recall": 1.0}

    @classmethod
    def open(cls, directory: Path, report: dict) -> "Bm25":
        """Maps the lists into memory."""
        return cls(directory, report["size"])

    def again(self, vectors: np.ndarray, settings, given: Given) -> tuple[str, bool]:
        """Whether the same files come out."""
        with tempfile.TemporaryDirectory() as made:
            self.build(vectors, Path(made), settings, given)
            names = [f"{name}.npy" for name in _ARRAYS]
            return "", not filecmp.cmpfiles(self.directory, made, names, shallow=False)[1]

    def __init__(self, directory: Path, size: int):
        self.directory, self._size = directory, size
        self._words, self._common, self._ends = (
            np.load(directory / f"{n}.npy") for n in _ARRAYS[:3]
        )
        self._chunks, self._impacts = (
            np.load(directory / f"{n}.npy", mmap_mode="r").view(np.ndarray) for n in _ARRAYS[3:]
        )

    def __len__(self) -> int:
        return self._size

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """queries [Q, W] of words -> ids [Q, k] int64, distances [Q, k] float32."""
        ids, distances = nothing(len(queries), k)
        if not len(self._words):
            return ids, distances
        for row, query in enumerate(queries):
            near, sums = top(*self.sums(query), k)
            ids[row, : len(near)], distances[row, : len(near)] = near, sums / np.float32(-_SCALE)
        return ids, distances

    def sums(self, query: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The chunks in the lists of the words of a query [W], and the sum of the scores of each: [n] int64
        both, in the order of chunks."""
        query = np.unique(query)
        at = np.minimum(np.searchsorted(self._words, query), len(self._words) - 1)
        at = at[self._words[at] == query]
        rare = at[~self._common[at]]
        at = rare if len(rare) else at
        begins, ends = self._ends[at].tolist(), self._ends[at + 1].tolist()
        where = [slice(*pair) for pair in zip(begins, ends)]
        if not where:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        # Chunk and score in one number: one sort brings the scores of a chunk together.
        both = np.concatenate([self._chunks[w] for w in where]).astype(np.int64) << 16
        both |= np.concatenate([self._impacts[w] for w in where])
        return summed(both)


def summed(both: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of chunk << 16 | score, to the different chunks, in order, and the sum of the scores of each."""
    both.sort()
    chunks = both >> 16
    first = np.flatnonzero(np.concatenate([[True], chunks[1:] != chunks[:-1]]))
    return chunks[first], np.add.reduceat(both & 0xFFFF, first)


def top(chunks: np.ndarray, sums: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k chunks with the largest sums, the largest first, and their sums; equal ones in the order of ids,
    in which they are given."""
    if len(chunks) > k:
        bound = np.partition(sums, len(sums) - k)[len(sums) - k]
        chunks, sums = chunks[sums >= bound], sums[sums >= bound]
    order = np.argsort(-sums, kind="stable")[:k]
    return chunks[order], sums[order]


def lists(chunks: np.ndarray, of: Statistics, postings: int) -> tuple[np.ndarray, ...]:
    """The lists of chunks [N, W] of words.

    Returns:
      words [V] int32 in order; which of them are common [V] bool; where the list of each begins, and where the
      last one ends [V + 1] int64; chunks [P] int32 and scores [P] uint16, one list after another.
    """
    number = np.int32 if len(chunks) < 2**31 else np.int64
    held = [(np.zeros(0, np.int32), np.zeros(0, number), np.zeros(0, np.uint16))]
    for begin in range(0, len(chunks), _BLOCK):
        made = pairs(chunks[begin : begin + _BLOCK], of)
        score = np.rint(made.saturation * of.idf(made.word) * _SCALE).astype(np.uint16)
        held.append((made.word, (made.chunk + begin).astype(number), score))
        # What is cut early need not be held; rarely, because each cut sorts all.
        if sum(len(h[0]) for h in held[1:]) > max(_HELD, len(held[0][0])):
            held = [_cut(held, postings)]
    word, chunk, score = _cut(held, postings)
    words, begins = np.unique(word, return_index=True)
    common = of.share(words) > _COMMON
    return words, common, np.append(begins, len(word)).astype(np.int64), chunk, score


def _cut(held: list[tuple], postings: int) -> tuple:
    """The best of each word; ties go to the chunk that comes first."""
    word, chunk, score = map(np.concatenate, zip(*held))
    order = np.lexsort((chunk, ~score, word))
    word = word[order]
    begins = np.flatnonzero(np.concatenate([[True], word[1:] != word[:-1]]))
    sizes = np.diff(np.append(begins, len(word)))
    kept = np.arange(len(word)) - np.repeat(begins, sizes) < postings
    return word[kept], chunk[order][kept], score[order][kept]
