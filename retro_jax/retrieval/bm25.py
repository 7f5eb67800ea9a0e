"""BM25 (Robertson and Zaragoza 2009, "The Probabilistic Relevance Framework"), of the words of chunks.

The score of a chunk for a query is, over the different words w of the query,

    sum of idf(w) * tf / (tf + k1 * (1 - b + b * length / mean length))

where tf is how often the chunk has w, and idf(w) = log(1 + (N - df + 0.5) / (df + 0.5)), df of the N chunks
having w. A word counts once, however often the query repeats it: a chunk is a long query, and what it repeats
is mostly what every chunk repeats.

The statistics are those of the whole database (of a million chunks of it, where it has more), once: so a score does
not depend on which part of the database a chunk lies in, and the scores of chunks that are added later compare with
those of before.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors.numpy import load_file, save_file

from retro_jax.retrieval.words import NONE
from retro_jax.store import files

K1, B = 1.5, 0.75
_BLOCK = 2**14  # chunks counted at a time
_BLOCKS = 2**6  # of those at most, evenly spread: a million chunks
_FILE = "statistics.safetensors"


class Statistics(NamedTuple):
    """What the score of a chunk depends on beside the chunk."""

    chunks: int
    length: float  # words of a chunk, on average
    words: np.ndarray  # [V] int32, in order
    frequencies: np.ndarray  # [V] int64, how many chunks have each

    def share(self, words: np.ndarray) -> np.ndarray:
        """In what share of the chunks words occur [n] float64; 0 for one that is not known."""
        return self._frequency(words) / max(1, self.chunks)

    def idf(self, words: np.ndarray) -> np.ndarray:
        """[n] float64 of words [n]; no chunk has one that is not known."""
        df = self._frequency(words)
        return np.log(1 + (self.chunks - df + 0.5) / (df + 0.5))

    def _frequency(self, words: np.ndarray) -> np.ndarray:
        if not len(self.words):
            return np.zeros(len(words))
        at = np.minimum(np.searchsorted(self.words, words), len(self.words) - 1)
        return np.where(self.words[at] == words, self.frequencies[at], 0)

    def saturation(self, tf: np.ndarray, length: np.ndarray) -> np.ndarray:
        """tf / (tf + ...) as above, of counts and of the lengths of their chunks (the same shape)."""
        return tf / (tf + K1 * (1 - B + B * length / (self.length or 1.0)))

    def save(self, directory: Path):
        """Writes them into an existing directory."""
        arrays = {
            "chunks": np.array(self.chunks), "length": np.array(self.length),
            "words": self.words, "frequencies": self.frequencies,
        }  # fmt: skip
        made = files.aside(directory / _FILE)
        save_file(arrays, made)
        files.replace(made, directory / _FILE)

    @classmethod
    def load(cls, directory: Path) -> "Statistics":
        """What `save` wrote."""
        arrays = load_file(directory / _FILE)
        chunks, length = int(arrays["chunks"]), float(arrays["length"])
        return cls(chunks, length, arrays["words"], arrays["frequencies"])


def statistics(chunks: np.ndarray) -> Statistics:
    """The statistics of chunks [N, W] of words; of a million of them, in blocks that are evenly spread, where
    there are more."""
    begins = range(0, len(chunks), _BLOCK)
    if len(begins) > _BLOCKS:
        begins = [begins[i * len(begins) // _BLOCKS] for i in range(_BLOCKS)]
    words, frequencies = np.zeros(0, np.int32), np.zeros(0, np.int64)
    total = count = 0
    for begin in begins:
        block = np.sort(chunks[begin : begin + _BLOCK], axis=1)
        count += len(block)
        total += int((block != NONE).sum())
        first = block != NONE  # a word counts once a chunk
        first[:, 1:] &= block[:, 1:] != block[:, :-1]
        own, counts = np.unique(block[first], return_counts=True)
        words, at = np.unique(np.concatenate([words, own]), return_inverse=True)
        frequencies = np.bincount(at, np.concatenate([frequencies, counts]), len(words))
    return Statistics(count, total / max(1, count), words, frequencies.astype(np.int64))


def scores(query: np.ndarray, chunks: np.ndarray, of: Statistics) -> np.ndarray:
    """The BM25 scores of chunks [C, W] for a query [W], float32 [C]; 0 where they share no word."""
    asked = np.unique(query)
    asked = asked[asked != NONE]
    if not len(asked) or not len(chunks):
        return np.zeros(len(chunks), np.float32)
    length = (chunks != NONE).sum(axis=1)
    chunks = chunks[:, : length.max()]  # the rest of the rows is empty
    at = np.minimum(np.searchsorted(asked, chunks), len(asked) - 1)
    row, column = np.nonzero(asked[at] == chunks)
    tf = np.bincount(row * len(asked) + at[row, column], minlength=len(chunks) * len(asked))
    saturation = of.saturation(tf.reshape(len(chunks), -1), length[:, None])
    # Each row is summed by itself, so that a score is the same bits whatever else is scored.
    return (saturation * of.idf(asked)).sum(axis=1).astype(np.float32)


class Pairs(NamedTuple):
    """Which chunks have which words: a pair for each different word of a chunk, in the order of chunks."""

    chunk: np.ndarray  # [P] int64
    word: np.ndarray  # [P] int32
    saturation: np.ndarray  # [P] float64


def pairs(chunks: np.ndarray, of: Statistics) -> Pairs:
    """The pairs of chunks [n, W]."""
    ordered = np.sort(chunks, axis=1)
    first = ordered != NONE
    first[:, 1:] &= ordered[:, 1:] != ordered[:, :-1]
    chunk, column = np.nonzero(first)
    # How often: as far as the next different word, or the end of the row.
    last = np.full(len(chunk), chunks.shape[1])
    same = chunk[1:] == chunk[:-1]
    last[:-1][same] = column[1:][same]
    length = (chunks != NONE).sum(axis=1)
    return Pairs(chunk, ordered[chunk, column], of.saturation(last - column, length[chunk]))
