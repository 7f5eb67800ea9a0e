"""Neighbours that are drawn at random, or whose tokens are shuffled: does the content matter?"""

import functools

import numpy as np

from retro_jax.corpus.tokenizer import PAD
from retro_jax.evaluate.condition import Condition
from retro_jax.evaluate.text import Text


class _Drawn(Condition):
    """Other chunks' ids, drawn for each chunk."""

    def neighbours(self, rows: np.ndarray, real: np.ndarray) -> np.ndarray:
        """What was drawn."""
        return self.text.values(self.each(rows, (self.k,), self.draw))

    def draw(self, rng: np.random.Generator, row: int, at: tuple) -> np.ndarray:
        """ids [K] for a row of the text's chunk table; see `Condition.each`."""
        raise NotImplementedError


class Random(_Drawn):
    """As many as a chunk really has."""

    meaning = "random chunks of the database"

    def draw(self, rng: np.random.Generator, row: int, at: tuple) -> np.ndarray:
        """Of the whole database."""
        return np.where(self.text.ids[row] >= 0, self.text.draw(rng, self.k), -1)


class Permuted(_Drawn):
    """Another chunk's."""

    meaning = "the real neighbours of another document's chunk"

    @classmethod
    def possible(cls, name: str, text: Text, approximate: bool) -> bool:
        """Where there is another document."""
        return len(text.table.documents) > 1

    @functools.cached_property
    def _place(self):
        """Documents in the order of their texts' hashes, how many chunks are before each, and how many
        each has."""
        table = self.text.table
        order = np.argsort(np.asarray(table.texts), kind="stable")
        counts = np.bincount(np.asarray(table.document), minlength=len(order))[order]
        return order, np.cumsum(counts) - counts, counts

    def draw(self, rng: np.random.Generator, row: int, at: tuple) -> np.ndarray:
        """Those of a chunk of another document."""
        order, before, counts = self._place
        table = self.text.table
        number = int(table.document[row])
        mine = np.flatnonzero(order == number)[0]
        drawn = int(rng.integers(0, len(table) - counts[mine]))
        if drawn >= before[mine]:
            drawn += counts[mine]  # past its own document
        other = int(np.searchsorted(before, drawn, side="right")) - 1
        first = table.documents[int(order[other])]["first"]
        return self.text.ids[first + drawn - before[other]]


class Shuffled(Condition):
    """The same words, no sense."""

    meaning = "its neighbours, their tokens shuffled"

    def neighbours(self, rows: np.ndarray, real: np.ndarray) -> np.ndarray:
        """Each neighbour's tokens in random order; PAD stays where it is."""
        return self.each(rows, real.shape[2:], lambda rng, row, at: _shuffled(rng, real[at]))


def _shuffled(rng, tokens: np.ndarray) -> np.ndarray:
    out = tokens.copy()
    for row in out:
        real = row != PAD
        row[real] = rng.permutation(row[real])
    return out
