"""Rows of tokens gathered by chunk: what a chunk read, and what that was worth to it."""

from dataclasses import dataclass

import numpy as np

from retro_jax.evaluate.rows import Rows

EPS = 0.1  # nats a token: less is neither help nor harm


@dataclass
class Chunks:
    """One entry a chunk [U], of its scored tokens.

    Attributes:
      first: its first row. tokens, bytes: how many. document: its number.
      nats: its sum, by condition. overlap, runs [U, K], neighbours [U, K], distances [U, K]: see
      `likelihood.schema`. mass [U]: of its tokens' attention on real neighbours, mean.
    """

    first: np.ndarray
    tokens: np.ndarray
    bytes: np.ndarray
    document: np.ndarray
    nats: dict[str, np.ndarray]
    overlap: np.ndarray
    runs: np.ndarray
    neighbours: np.ndarray
    distances: np.ndarray
    mass: np.ndarray

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
    total = lambda x: np.add.reduceat(x, first)  # noqa: E731
    tokens = total(np.ones(len(rows), np.int64))
    one = {n: rows[n][first] for n in ("document", "overlap", "runs", "neighbours", "distances")}
    mass = total(rows["mass"].sum(axis=1).astype(np.float64)) / tokens
    nats = {name: total(x) for name, x in rows.nats.items()}
    return Chunks(first, tokens, total(rows["bytes"].astype(np.int64)), nats=nats, mass=mass, **one)


CLASSES = {
    "helped": "better with its neighbours than without",
    "misled": "worse with its neighbours than without",
    "misranked": "no better with them, but fewer or later ones would have helped",
    "ignored": "no better, although they share a run of 8 tokens or more with it",
    "absent": "no better, and nothing that was found would have helped",
    "nothing read": "no neighbour was found, or it is the first chunk",
}


def classes(chunks: Chunks) -> np.ndarray:
    """The class of each chunk [U], a key of CLASSES: what came of its retrieval, by EPS nats a token."""
    gain, out = chunks.gain(), np.full(len(chunks.first), "absent", dtype="<U12")
    out[chunks.runs.max(axis=1, initial=0) >= 8] = "ignored"
    others = [n for n in chunks.nats if n == "next" or (n[0] == "k" and n[1:].isdecimal())]
    if others:
        best = np.max([chunks.gain(better=n) for n in others], axis=0)
        out[best >= EPS] = "misranked"
    out[gain <= -EPS] = "misled"
    out[gain >= EPS] = "helped"
    out[~chunks.read] = "nothing read"
    return out
