"""Counts of letters: the smallest embedder that there is."""

import string
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from retro_jax.config.fields import require_at_least, setting
from retro_jax.retrieval.embedder import Embedder


@dataclass(frozen=True)
class Settings:
    """The fields `retrieval.settings.letters.*`."""

    most: int = setting(9, "a letter that comes more often counts so often")

    def __post_init__(self):
        require_at_least(1, "retrieval.settings.letters.", self, "most")


class Letters(Embedder):
    """How often each letter comes in a text."""

    Settings = Settings
    width = len(string.ascii_lowercase)

    def __init__(self, most: int):
        self._most = most

    @classmethod
    def open(cls, settings: Settings, directory: Path, chunk: int) -> "Letters":
        """Nothing was learned."""
        return cls(settings.most)

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Texts -> [n, 26] float32."""
        counts = [[t.lower().count(c) for c in string.ascii_lowercase] for t in texts]
        return np.minimum(np.array(counts, np.float32).reshape(-1, self.width), self._most)
