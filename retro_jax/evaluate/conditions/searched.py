"""Neighbours that are searched for anew, in what was prepared: the next ones, exact ones, of a smaller database."""

import functools

import numpy as np

from retro_jax.evaluate.condition import Condition
from retro_jax.evaluate.text import Text

SHARES = (1, 10)  # percent of the database's documents


class _Searched(Condition):
    """Looks all chunks up at once."""

    @classmethod
    def possible(cls, name: str, text: Text, approximate: bool) -> bool:
        """Where what was prepared is read, and no more or less."""
        return text.as_prepared

    def neighbours(self, rows: np.ndarray, real: np.ndarray) -> np.ndarray:
        """What was found."""
        found = self._found[np.maximum(rows, 0)]
        return self.text.values(np.where(rows[..., None] < 0, -1, found))

    @functools.cached_property
    def _found(self) -> np.ndarray:
        """ids [N, K] of all chunks."""
        own = np.isin(self.text.tables[0].texts, self.text.table.texts)
        return self.search(~own)

    def search(self, allowed: np.ndarray) -> np.ndarray:
        """ids [N, K] among the documents that are allowed [D]."""
        return self._nearest(self.k, allowed)

    def _nearest(self, k: int, allowed: np.ndarray) -> np.ndarray:
        part = self.text.prepared_part()
        return part.search(self.text.queries, k, None if allowed.all() else allowed)[0]


class Next(_Searched):
    """How much the nearest are better than those after them."""

    meaning = "the neighbours that come after the k nearest"

    def search(self, allowed: np.ndarray) -> np.ndarray:
        """The second k."""
        return self._nearest(2 * self.k, allowed)[:, self.k :]


class Exact(_Searched):
    """What an approximate index costs."""

    meaning = "the neighbours that exact search finds"

    @classmethod
    def possible(cls, name: str, text: Text, approximate: bool) -> bool:
        """Where the index may miss one."""
        return approximate and text.as_prepared

    def search(self, allowed: np.ndarray) -> np.ndarray:
        """By comparing with every vector."""
        return self.text.prepared_part().exactly(self.text.queries, self.k, allowed)[0]


class Share(_Searched):
    """database_1, database_10: a share of the database's documents."""

    def __init__(self, name: str, text: Text, k: int):
        super().__init__(name, text, k)
        self._percent = int(name.removeprefix("database_"))
        self.meaning = f"neighbours from {self._percent} % of the database's documents"

    @classmethod
    def names(cls, name: str, k: int) -> list[str]:
        """One for each of SHARES."""
        return [f"{name}_{n}" for n in SHARES]

    def search(self, allowed: np.ndarray) -> np.ndarray:
        """Among documents chosen by the hash of their text, at least one."""
        texts = np.asarray(self.text.tables[0].texts, "S16")
        hashed = np.frombuffer(texts.tobytes(), "<u4").reshape(-1, 4)[:, 0]
        share = hashed < self._percent / 100 * 2**32
        share[np.argmin(hashed)] = True
        return self._nearest(self.k, allowed & share)
