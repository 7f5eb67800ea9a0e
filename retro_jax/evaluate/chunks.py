"""Rows of tokens gathered by chunk: what a chunk read, and what that was worth to it."""

from dataclasses import dataclass

import numpy as np

from retro_jax.evaluate.rows import Rows

EPS = 0.1  # nats a token: less is neither help nor harm


@dataclass
class Chunks:
    """One entry a chunk [U], of its scored tokens.

    Attributes:
      first: its first row. tokens, bytes: how many. document, chunk: their numbers.
      nats: its sum, by condition; even: the same of its tokens at even places, of which there are `evens`.
      overlap, twins, runs [U, K], neighbours [U, K], distances [U, K]: see `likelihood.schema`.
    """

    first: np.ndarray
    tokens: np.ndarray
    bytes: np.ndarray
    document: np.ndarray
    chunk: np.ndarray
    evens: np.ndarray
    even: dict[str, np.ndarray]
    nats: dict[str, np.ndarray]
    overlap: np.ndarray
    runs: np.ndarray
    neighbours: np.ndarray
    distances: np.ndarray
    twins: np.ndarray

    def gain(self, worse: str = "off", better: str = "on") -> np.ndarray:
        """Nats a token that one condition is better than another [U]."""
        return (self.nats[worse] - self.nats[better]) / self.tokens

    @property
    def read(self) -> np.ndarray:
        """Which read a neighbour at all [U] bool."""
        return (self.neighbours >= 0).any(axis=1)


def gather(rows: Rows) -> Chunks:
    """The chunks of rows, which stand in the order of their chunks."""
    key = rows["document"].astype(np.int64) << 32 | rows["chunk"]
    first = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]]))

    def total(x):
        return np.add.reduceat(x, first)

    tokens = total(np.ones(len(rows), np.int64))
    names = ("document", "chunk", "overlap", "runs", "neighbours", "distances", "twins")
    one = {n: rows[n][first] for n in names}
    even = rows["position"] % 2 == 0

    def sums(part):
        return {name: total(np.where(part, x, 0)) for name, x in rows.nats.items()}

    size = total(rows["bytes"].astype(np.int64))
    return Chunks(
        first,
        tokens,
        size,
        evens=total(even.astype(np.int64)),
        even=sums(even),
        nats=sums(True),
        **one,
    )


CLASSES = {
    "helped": "better with its neighbours than without",
    "misled": "worse with its neighbours than without",
    "misranked": "no better with them, but fewer or later ones would have helped",
    "ignored": "no better, although they share a run of 8 tokens or more with it",
    "absent": "no better, and nothing that was found would have helped",
    "nothing read": "no neighbour was found, or it is the first chunk",
}


def classes(chunks: Chunks) -> np.ndarray:
    """The class of each chunk [U], a key of CLASSES: what came of its retrieval, by EPS nats a token.

    Which other neighbours would have been best is chosen by the tokens at even places and judged by the
    others: the best of several is better than none by chance. `ignored` goes by the text that is shared, as
    attention does not tell what is used.
    """
    gain, out = chunks.gain(), np.full(len(chunks.first), "absent", dtype="<U12")
    out[chunks.runs.max(axis=1, initial=0) >= 8] = "ignored"
    others = [n for n in chunks.nats if n == "next" or (n[0] == "k" and n[1:].isdecimal())]
    if others:
        even = np.array([chunks.even["off"] - chunks.even[n] for n in others])
        odd = np.array([chunks.nats["off"] - chunks.nats[n] for n in others]) - even
        best = even.argmax(axis=0), np.arange(len(gain))
        odds = chunks.tokens - chunks.evens
        enough = (even[best] >= EPS * chunks.evens) & (odd[best] >= EPS * odds) & (odds > 0)
        out[enough & (chunks.evens > 0)] = "misranked"
    out[gain <= -EPS] = "misled"
    out[gain >= EPS] = "helped"
    out[~chunks.read] = "nothing read"
    return out


def near_copies(chunks: Chunks, m: int) -> list[int]:
    """The numbers of documents most of whose chunks stand whole in what they retrieved or read: copies in all
    but name. Of three scored chunks or more."""
    whole = (chunks.overlap >= m).astype(np.int64)
    size = int(chunks.document.max()) + 1
    of, copied = (
        np.bincount(chunks.document, minlength=size),
        np.bincount(chunks.document, whole, size),
    )
    return np.flatnonzero((of >= 3) & (copied > 0.5 * of)).tolist()
