"""With the real neighbours, and with none."""

import numpy as np

from retro_jax.evaluate.condition import Condition


class On(Condition):
    """What the model is for."""

    meaning = "its real neighbours"

    def neighbours(self, rows: np.ndarray, real: np.ndarray) -> np.ndarray:
        """As they are."""
        return real


class Off(Condition):
    """The language model inside."""

    meaning = "nothing: every cross-attention is the identity"

    def neighbours(self, rows: np.ndarray, real: np.ndarray) -> None:
        """None."""
        return
