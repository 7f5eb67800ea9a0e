"""The nearest neighbour in every place: what are the others worth?"""

import numpy as np

from retro_jax.evaluate.condition import Condition


class Doubled(Condition):
    """As many as there are, all of them the nearest."""

    meaning = "its nearest neighbour, as often as it has neighbours"

    def neighbours(self, rows: np.ndarray, real: np.ndarray) -> np.ndarray:
        """[B, C, K, R]."""
        return np.repeat(real[:, :, :1], self.k, axis=2)
