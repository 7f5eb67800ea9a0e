"""What is scored, and how probable it is."""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np


class Pair(NamedTuple):
    """What is scored: the continuation, given the context."""

    context: str
    continuation: str


@dataclass
class Score:
    """How probable a continuation is.

    Attributes:
      wanted: its tokens [T]. logprobs: log p of each, nats [T]. best: the most probable token in the place of each,
        and top: that one's log p [T].
      merged: bytes of the context that its first token holds.
      ids, distances: what was read, [n, K] of each chunk that was looked up, as `Neighbours` has them.
    """

    wanted: np.ndarray
    logprobs: np.ndarray
    best: np.ndarray
    top: np.ndarray
    merged: int = 0
    ids: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.int64))
    distances: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))

    @classmethod
    def of(cls, wanted: list[int], merged: int) -> "Score":
        """Of tokens whose score is not known yet."""
        some = np.zeros(len(wanted), np.float32)
        return cls(np.array(wanted, np.int32), some, some.astype(np.int32), some.copy(), merged)

    @property
    def logp(self) -> float:
        """The sum over its tokens, nats."""
        return float(self.logprobs.sum(dtype=np.float64))

    @property
    def greedy(self) -> bool:
        """Whether each of them is the most probable one."""
        return bool((self.best == self.wanted).all())

    @property
    def tokens(self) -> int:
        """How many there are."""
        return len(self.wanted)
