"""Lists of the best chunks of every word: search by words whose work does not grow with the database.

A query reads about `postings` pairs of a word and a chunk, whatever the database: its rarest word first, then the
next, until they are used up; of a word the chunks that score highest for it (bm25.py). Rare words say most, and
a list that is read whole misses nothing. Reading equally few of every word finds less: measured in docs/pipeline.md.
Lists in the order of scores are those of JASS (Lin and Trotman 2015); as there scores are rounded to whole numbers,
so that sums are exact and do not depend on their order.

Where a database has several shards, each has the lists of a share of the words, whole: what is found does not
depend on how many there are. Workers join by word: a query's words are sent to their shards, and what their lists
say comes back.

A distance is minus the sum of what was read. What was not is missing in it, which is why the candidates are
ordered by exact BM25 (`retrieval.rerank`). A chunk in none of the lists is no neighbour at all.
"""

import filecmp
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from retro_jax.config.fields import require_at_least, setting
from retro_jax.retrieval.bm25 import Statistics, pairs
from retro_jax.retrieval.index import Given, Index, nothing
from retro_jax.retrieval.words import NONE

_BLOCK = 2**16  # chunks that are read at a time
_HELD = 2**24  # pairs of word and chunk
_SCALE = 256  # of a score, in a list; no score of one word reaches 2^16 of them
_UNKNOWN = 16  # see `allot`
_ARRAYS = ("words", "shares", "ends", "chunks", "impacts")


Scored = tuple[np.ndarray, np.ndarray, np.ndarray]  # words [p], chunks [p], scores [p]


@dataclass(frozen=True)
class Settings:
    """The fields `retrieval.settings.bm25.*`."""

    postings: int = setting(
        4096, "pairs of a word and a chunk that are looked at for a query, its rarest words first"
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
        begins = range(0, len(vectors), _BLOCK)
        blocks = (scored(vectors[b : b + _BLOCK], b, given.statistics) for b in begins)
        own = (share(block, *given.part) for block in blocks)
        return cls.build_scored(own, directory, settings, given)

    @classmethod
    def scored(cls, vectors: np.ndarray, first: int, given: Given, parts: int) -> list[Scored]:
        """Of a block of chunks, what each of so many shards is built of; for workers."""
        made = scored(vectors, first, given.statistics)
        shard = made[0] % parts
        order = np.argsort(shard, kind="stable")
        ends = np.searchsorted(shard[order], np.arange(1, parts))
        return list(zip(*(np.split(array[order], ends) for array in made)))

    @classmethod
    def build_scored(cls, parts: Iterable[Scored], directory: Path, settings, given: Given) -> dict:
        """As `build`, of what `scored` made of all blocks."""
        made = lists(parts, given.statistics, settings.postings)
        for name, array in zip(_ARRAYS, made):
            np.save(directory / f"{name}.npy", array)
        return {"kind": "bm25", "recall": None, "postings": settings.postings}

    @classmethod
    def open(cls, directory: Path, report: dict) -> "Bm25":
        """Maps the lists into memory."""
        return cls([directory], report["size"], report["postings"])

    @classmethod
    def joined(cls, parts: list["Bm25"]) -> "Bm25":
        """The lists of all words, of shards that have those of some."""
        return cls([d for p in parts for d in p.directories], len(parts[0]), parts[0].most)

    def again(self, vectors: np.ndarray, settings, given: Given) -> tuple[str, bool]:
        """Whether the same files come out."""
        names = [f"{name}.npy" for name in _ARRAYS]
        with tempfile.TemporaryDirectory() as made:
            self.build(vectors, Path(made), settings, given)
            return "", not filecmp.cmpfiles(self.directories[0], made, names, shallow=False)[1]

    def __init__(self, directories: list[Path], size: int, most: int):
        self.directories, self._size, self.most = directories, size, most
        self._lists = [_Lists(directory) for directory in directories]

    def __len__(self) -> int:
        return self._size

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """queries [Q, W] of words -> ids [Q, k] int64, distances [Q, k] float32."""
        ids, distances = nothing(len(queries), k)
        for row, query in enumerate(queries):
            near, sums = top(*summed([self._of(query)]), k)
            ids[row, : len(near)], distances[row, : len(near)] = near, distance(sums)
        return ids, distances

    def _of(self, query: np.ndarray) -> np.ndarray:
        """What is read for a query [W]: see `postings`."""
        found = [own.find(np.unique(query)) for own in self._lists]
        words, shares = (np.concatenate(x) for x in list(zip(*found))[1:])
        takes = allot(words, shares, len(self), self.most)
        ends = np.cumsum([len(at) for at, *_ in found])[:-1]
        parts = zip(self._lists, found, np.split(takes, ends))
        return np.concatenate([own.read(at, take) for own, (at, *_), take in parts])

    def operations(self, k: int) -> float:
        """See `Index.operations`: a sum over what is read, at most."""
        return float(self.most)

    def read_by(self, queries: np.ndarray) -> float:
        """How many postings a query [W] of these [Q, W] reads, on average."""
        return float(np.mean([len(self._of(query)) for query in queries]))

    def postings(self, words: np.ndarray, takes: np.ndarray) -> np.ndarray:
        """The first `takes` [n] of the lists of different words [n]: chunk << 16 | score [p] int64."""
        order, parts = np.argsort(words), [np.zeros(0, np.int64)]
        for own in self._lists:
            at, known, _ = own.find(words[order])
            parts.append(own.read(at, takes[order][np.isin(words[order], known)]))
        return np.concatenate(parts)


class _Lists:
    """Those of one directory."""

    def __init__(self, directory: Path):
        self._words, self._shares, self._ends = (
            np.load(directory / f"{n}.npy") for n in _ARRAYS[:3]
        )
        self._chunks, self._impacts = (
            np.load(directory / f"{n}.npy", mmap_mode="r").view(np.ndarray) for n in _ARRAYS[3:]
        )

    def find(self, words: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of words, in order, those that have a list: their places, they, and their shares of the chunks."""
        at = np.searchsorted(self._words, words)
        known = at < len(self._words)
        known[known] = self._words[at[known]] == words[known]
        at = at[known]
        return at, words[known], self._shares[at]

    def read(self, at: np.ndarray, takes: np.ndarray) -> np.ndarray:
        """The first `takes` of the lists at these places: chunk << 16 | score [p] int64."""
        begins = self._ends[at]
        ends = np.minimum(self._ends[at + 1], begins + takes)
        where = [slice(a, b) for a, b in zip(begins.tolist(), ends.tolist()) if b > a]
        if not where:
            return np.zeros(0, np.int64)
        # Chunk and score in one number: one sort brings the scores of a chunk together.
        both = np.concatenate([self._chunks[w] for w in where]).astype(np.int64) << 16
        return both | np.concatenate([self._impacts[w] for w in where])


def allot(words: np.ndarray, shares: np.ndarray, size: int, most: int) -> np.ndarray:
    """How much of the list of each of a query's words is read at most [n].

    The rarest words come first, and count as the chunks that have them, by the statistics, until `most` are used up.
    Where the statistics are of a sample, or of another database (of documents that were added), a list may be
    longer than they say; a word that they do not know counts nothing, and of its list one in _UNKNOWN of `most` is
    read.

    Args:
      shares: of the chunks that have each word [n]. size: chunks of the database.
    """
    order = np.lexsort((words, shares))
    wanted = np.minimum(np.ceil(shares[order] * size), most).astype(np.int64)
    takes = np.empty(len(words), np.int64)
    takes[order] = np.maximum(0, most - (np.cumsum(wanted) - wanted))
    return np.where(shares > 0, takes, np.minimum(takes, -(-most // _UNKNOWN)))


def sent(
    queries: np.ndarray, shards: int, of: Statistics, size: int, most: int
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """What is asked of the shards for queries [Q, W]: the shard, the rows of queries that ask it something [n], and
    pairs of words and of how much of their lists is read [n, 2, W'], the rest being -1 and 0."""
    asked = [np.unique(query) for query in queries]
    asked = [words[words != NONE] for words in asked]
    shares = np.split(of.share(np.concatenate(asked)), np.cumsum([len(w) for w in asked])[:-1])
    takes = [allot(w, s, size, most) for w, s in zip(asked, shares)]
    row = np.repeat(np.arange(len(asked)), [len(words) for words in asked])
    word, take = np.concatenate(asked), np.concatenate(takes)
    row, word, take = (x[take > 0] for x in (row, word, take))
    shard = word % shards
    order = np.argsort(shard, kind="stable")  # within a shard by row
    numbers, begins = np.unique(shard[order], return_index=True)
    for number, at in zip(numbers.tolist(), np.split(order, begins[1:])):
        rows, of_row, counts = np.unique(row[at], return_inverse=True, return_counts=True)
        place = np.arange(len(at)) - np.repeat(np.cumsum(counts) - counts, counts)
        pairs = np.zeros((len(rows), 2, counts.max()), np.int32)
        pairs[:, 0] = NONE
        pairs[of_row, 0, place], pairs[of_row, 1, place] = word[at], take[at]
        yield number, rows, pairs


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


def scored(chunks: np.ndarray, first: int, of: Statistics) -> Scored:
    """The pairs of a word and a chunk of chunks [n, W], and their scores; the first chunk is number `first`."""
    made = pairs(chunks, of)
    score = np.rint(made.saturation * of.idf(made.word) * _SCALE).astype(np.uint16)
    return made.word, made.chunk + first, score


def share(of: Scored, part: int, parts: int) -> Scored:
    """The pairs of every `parts`-th word."""
    return tuple(array[of[0] % parts == part] for array in of)


def lists(parts: Iterable[Scored], of: Statistics, postings: int) -> tuple[np.ndarray, ...]:
    """The lists of words, of pairs in any order.

    Returns:
      words [V] int32 in order; in what share of the chunks each is [V] float64; where the list of each begins, and
      where the last one ends [V + 1] int64; chunks [P] int32 (or int64, where a number needs it) and scores [P]
      uint16, one list after another.
    """
    held = [(np.zeros(0, np.int32), np.zeros(0, np.int64), np.zeros(0, np.uint16))]
    for part in parts:
        held.append(part)
        # What is cut early need not be held; rarely, because each cut sorts all.
        if sum(len(h[0]) for h in held[1:]) > max(_HELD, len(held[0][0])):
            held = [_cut(held, postings)]
    word, chunk, score = _cut(held, postings)
    words, begins = np.unique(word, return_index=True)
    ends = np.append(begins, len(word)).astype(np.int64)
    number = np.int32 if chunk.max(initial=0) < 2**31 else np.int64
    return words, of.share(words), ends, chunk.astype(number), score


def _cut(held: list[tuple], postings: int) -> tuple:
    """The best of each word; ties go to the chunk that comes first."""
    word, chunk, score = map(np.concatenate, zip(*held))
    order = np.lexsort((chunk, ~score, word))
    word = word[order]
    begins = np.flatnonzero(np.concatenate([[True], word[1:] != word[:-1]]))
    sizes = np.diff(np.append(begins, len(word)))
    kept = np.arange(len(word)) - np.repeat(begins, sizes) < postings
    return word[kept], chunk[order][kept], score[order][kept]
