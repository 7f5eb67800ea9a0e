"""Lists of the best chunks of every word: search by words whose work does not grow with the database.

A list holds the chunks that score highest for a word (bm25.py), at most `postings` of them. Words that more than
a tenth of the chunks have say little: they are looked at only where a query has no others. So a query reads at
most its words times `postings`, whatever the database. This is what JASS (Lin and Trotman 2015)
does with impact-ordered lists, and as there scores are rounded to whole numbers, so that sums are exact and do not
depend on their order.

Where a database has several shards, each has the lists of a share of the words, whole: what is found does not
depend on how many there are. Workers join by word: a query's words are sent to their shards, and what their lists
say comes back.

A distance is minus the sum of what the lists say. What they cut is missing in it, which is why the candidates are
ordered by exact BM25 (`retrieval.rerank`). A chunk in none of the lists is no neighbour at all.
"""

import filecmp
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from retro_jax.config.fields import require_at_least, setting
from retro_jax.retrieval.bm25 import Pairs, Statistics, pairs
from retro_jax.retrieval.index import Given, Index, nothing
from retro_jax.retrieval.words import NONE

_BLOCK = 2**16  # chunks that are read at a time
_COMMON = 0.1  # of the chunks
_HELD = 2**24  # pairs of word and chunk
_SCALE = 256  # of a score, in a list; no score of one word reaches 2^16 of them
_RARE, _COMMON_WORD, _UNKNOWN = range(3)  # of words; of a sample the statistics do not know all
_ARRAYS = ("words", "kinds", "ends", "chunks", "impacts")


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
        made = lists(vectors, given.statistics, settings.postings, *given.part)
        for name, array in zip(_ARRAYS, made):
            np.save(directory / f"{name}.npy", array)
        return {"kind": "bm25", "recall": 1.0}

    @classmethod
    def open(cls, directory: Path, report: dict) -> "Bm25":
        """Maps the lists into memory."""
        return cls([directory], report["size"])

    @classmethod
    def joined(cls, parts: list["Bm25"]) -> "Bm25":
        """The lists of all words, of shards that have those of some."""
        return cls([d for part in parts for d in part.directories], len(parts[0]))

    def again(self, vectors: np.ndarray, settings, given: Given) -> tuple[str, bool]:
        """Whether the same files come out."""
        names = [f"{name}.npy" for name in _ARRAYS]
        with tempfile.TemporaryDirectory() as made:
            self.build(vectors, Path(made), settings, given)
            return "", not filecmp.cmpfiles(self.directories[0], made, names, shallow=False)[1]

    def __init__(self, directories: list[Path], size: int):
        self.directories, self._size = directories, size
        self._lists = [_Lists(directory) for directory in directories]

    def __len__(self) -> int:
        return self._size

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """queries [Q, W] of words -> ids [Q, k] int64, distances [Q, k] float32."""
        ids, distances = nothing(len(queries), k)
        for row, query in enumerate(queries):
            near, sums = top(*summed([self.postings(query)]), k)
            ids[row, : len(near)], distances[row, : len(near)] = near, distance(sums)
        return ids, distances

    def postings(self, query: np.ndarray) -> np.ndarray:
        """What the lists of the words of a query [W] say: chunk << 16 | score [n] int64."""
        query = np.unique(query)
        found = [(own, *own.find(query)) for own in self._lists]
        if any((kinds == _RARE).any() for _, _, kinds in found):
            found = [(own, at[kinds != _COMMON_WORD], None) for own, at, kinds in found]
        return np.concatenate([own.postings(at) for own, at, _ in found])


class _Lists:
    """Those of one directory."""

    def __init__(self, directory: Path):
        self._words, self._kinds, self._ends = (
            np.load(directory / f"{n}.npy") for n in _ARRAYS[:3]
        )
        self._chunks, self._impacts = (
            np.load(directory / f"{n}.npy", mmap_mode="r").view(np.ndarray) for n in _ARRAYS[3:]
        )

    def find(self, query: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of the words of a query those that have a list: their places, and what kind of word each is."""
        if not len(self._words):
            return np.zeros(0, np.int64), np.zeros(0, np.int8)
        at = np.minimum(np.searchsorted(self._words, query), len(self._words) - 1)
        at = at[self._words[at] == query]
        return at, self._kinds[at]

    def postings(self, at: np.ndarray) -> np.ndarray:
        """What the lists at these places say."""
        where = [slice(*pair) for pair in zip(self._ends[at].tolist(), self._ends[at + 1].tolist())]
        if not where:
            return np.zeros(0, np.int64)
        # Chunk and score in one number: one sort brings the scores of a chunk together.
        both = np.concatenate([self._chunks[w] for w in where]).astype(np.int64) << 16
        return both | np.concatenate([self._impacts[w] for w in where])


def sent(
    queries: np.ndarray, parts: int, of: Statistics
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """The words of queries [Q, W] whose lists are read, by shards: a shard, the rows of queries that have some
    there, and these words [n, W']."""
    ordered = np.sort(queries, axis=1)
    asked = ordered != NONE
    asked[:, 1:] &= ordered[:, 1:] != ordered[:, :-1]
    share = of.share(ordered.ravel()).reshape(ordered.shape)
    rare = (asked & (share > 0) & (share <= _COMMON)).any(axis=1)
    asked &= (share <= _COMMON) | ~rare[:, None]
    for part in range(parts):
        here = asked & (ordered % parts == part)
        rows = np.flatnonzero(here.any(axis=1))
        width = here.sum(axis=1).max(initial=0)
        front = np.argsort(~here[rows], axis=1, kind="stable")[:, :width]
        words = np.where(here[rows], ordered[rows], NONE)
        yield part, rows, np.take_along_axis(words, front, 1)


def distance(sums: np.ndarray) -> np.ndarray:
    """Minus what the lists say, [n] float32."""
    return sums / np.float32(-_SCALE)


def summed(postings: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """What lists say, to the different chunks, in order, and the sum of the scores of each."""
    both = np.concatenate(postings)
    if not len(both):
        return both, both
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


def lists(
    chunks: np.ndarray, of: Statistics, postings: int, part: int = 0, parts: int = 1
) -> tuple[np.ndarray, ...]:
    """The lists of chunks [N, W] of words, of every `parts`-th word.

    Returns:
      words [V] int32 in order; what kind of word each is [V] int8; where the list of each begins, and where the
      last one ends [V + 1] int64; chunks [P] int32 and scores [P] uint16, one list after another.
    """
    number = np.int32 if len(chunks) < 2**31 else np.int64
    held = [(np.zeros(0, np.int32), np.zeros(0, number), np.zeros(0, np.uint16))]
    for begin in range(0, len(chunks), _BLOCK):
        made = pairs(chunks[begin : begin + _BLOCK], of)
        if parts > 1:
            made = Pairs(*(array[made.word % parts == part] for array in made))
        score = np.rint(made.saturation * of.idf(made.word) * _SCALE).astype(np.uint16)
        held.append((made.word, (made.chunk + begin).astype(number), score))
        # What is cut early need not be held; rarely, because each cut sorts all.
        if sum(len(h[0]) for h in held[1:]) > max(_HELD, len(held[0][0])):
            held = [_cut(held, postings)]
    word, chunk, score = _cut(held, postings)
    words, begins = np.unique(word, return_index=True)
    share = of.share(words)
    kinds = np.where(share > _COMMON, _COMMON_WORD, np.where(share > 0, _RARE, _UNKNOWN))
    return words, kinds.astype(np.int8), np.append(begins, len(word)).astype(np.int64), chunk, score


def _cut(held: list[tuple], postings: int) -> tuple:
    """The best of each word; ties go to the chunk that comes first."""
    word, chunk, score = map(np.concatenate, zip(*held))
    order = np.lexsort((chunk, ~score, word))
    word = word[order]
    begins = np.flatnonzero(np.concatenate([[True], word[1:] != word[:-1]]))
    sizes = np.diff(np.append(begins, len(word)))
    kept = np.arange(len(word)) - np.repeat(begins, sizes) < postings
    return word[kept], chunk[order][kept], score[order][kept]
