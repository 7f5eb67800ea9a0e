"""Parts of the real neighbours, and the answer itself in place of one."""

import numpy as np

from retro_jax.corpus.tokenizer import PAD
from retro_jax.evaluate.condition import Condition


class NeighboursOnly(Condition):
    """N without F."""

    meaning = "its neighbours without their continuations"

    def neighbours(self, rows: np.ndarray, real: np.ndarray) -> np.ndarray:
        """F is PAD."""
        half = real.shape[-1] // 2
        return np.concatenate([real[..., :half], np.full_like(real[..., half:], PAD)], axis=-1)


class ContinuationsOnly(Condition):
    """F without N."""

    meaning = "the continuations of its neighbours alone"

    def neighbours(self, rows: np.ndarray, real: np.ndarray) -> np.ndarray:
        """N is PAD."""
        half = real.shape[-1] // 2
        return np.concatenate([np.full_like(real[..., :half], PAD), real[..., half:]], axis=-1)


class Fewer(Condition):
    """k1, k2, ...: fewer than K."""

    def __init__(self, name: str, text, k: int):
        super().__init__(name, text, k)
        self.meaning = f"its nearest {name[1:]} only"

    @classmethod
    def names(cls, name: str, k: int) -> list[str]:
        """One for each number below K."""
        return [f"k{i}" for i in range(1, k)]

    def neighbours(self, rows: np.ndarray, real: np.ndarray) -> np.ndarray:
        """The others are PAD."""
        return np.where(np.arange(self.k)[:, None] < int(self.name[1:]), real, PAD)


class Self(Condition):
    """The ceiling, and a test of the wiring."""

    meaning = "what really follows, in place of the first neighbour"

    def neighbours(self, rows: np.ndarray, real: np.ndarray) -> np.ndarray:
        """A chunk and its own continuation come first."""
        out = real.copy()
        out[:, :, 0] = self.text.table.values(rows)
        return out
