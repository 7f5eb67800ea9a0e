"""What a condition is, and which there are: what a model reads in place of its real neighbours.

    B windows, C chunks, M chunk length, K neighbours, R = 2 M retrieved length

What is drawn at random depends on a chunk's document and its place in it alone, so that no figure depends
on batches, windows, devices or the order of documents.

A condition is one class in one file of `conditions/`, and one line of CONDITIONS.
"""

from collections.abc import Callable, Sequence

import numpy as np

from retro_jax.config.table import Table
from retro_jax.corpus.tokenizer import PAD
from retro_jax.errors import UserError
from retro_jax.evaluate.text import Text
from retro_jax.methods.method import METHODS

_IN = "retro_jax.evaluate.conditions."
CONDITIONS = Table(
    "evaluate.conditions",
    "",
    {
        "on": f"{_IN}real:On",
        "off": f"{_IN}real:Off",
        "random": f"{_IN}drawn:Random",
        "permuted": f"{_IN}drawn:Permuted",
        "shuffled": f"{_IN}drawn:Shuffled",
        "n_only": f"{_IN}parts:NeighboursOnly",
        "f_only": f"{_IN}parts:ContinuationsOnly",
        "self": f"{_IN}parts:Self",
        "next": f"{_IN}searched:Next",
        "fewer": f"{_IN}parts:Fewer",
        "database": f"{_IN}searched:Share",
        "exact": f"{_IN}searched:Exact",
    },
)


class Condition:
    """What the chunks of a text read.

    Args:
      name: of the condition; one class may have several, k1 and k2 for example.
      text: what is evaluated. k: K, the neighbours that a chunk reads.

    Attributes:
      name, meaning: what the model reads, in words.
    """

    meaning = ""

    def __init__(self, name: str, text: Text, k: int):
        self.name, self.text, self.k = name, text, k

    @classmethod
    def names(cls, name: str, k: int) -> list[str]:
        """Those that there can be, where a chunk reads k neighbours."""
        return [name]

    @classmethod
    def possible(cls, name: str, text: Text, approximate: bool) -> bool:
        """Whether it says anything of a text; approximate: whether the index may miss a neighbour."""
        return True

    def neighbours(self, rows: np.ndarray, real: np.ndarray) -> np.ndarray | None:
        """Tokens [B, C, K, R] of what chunks retrieve, PAD where there is none; None: nothing at all.

        Args:
          rows: of the text's chunk table [B, C], -1 for padding. real: the real neighbours [B, C, K, R].
        """
        raise NotImplementedError

    def each(self, rows: np.ndarray, shape: tuple, make: Callable) -> np.ndarray:
        """make(rng, row, at) for each chunk, with random numbers of its own; PAD or -1 for padding."""
        out = np.full((*rows.shape, *shape), -1 if len(shape) == 1 else PAD, np.int64)
        table = self.text.table
        for at in zip(*np.nonzero(rows >= 0)):
            row = int(rows[at])
            number = int(table.document[row])
            text = int.from_bytes(bytes(table.texts[number]).ljust(16, b"\0"), "little")
            place = row - table.documents[number]["first"]
            out[at] = make(np.random.default_rng([text, place]), row, at)
        return out


def every(allowed: Sequence[str] | None, k: int) -> dict[str, type[Condition]]:
    """The conditions that there can be, by name; allowed: keys of CONDITIONS, by default all."""
    return {
        name: CONDITIONS[key]
        for key in CONDITIONS
        if allowed is None or key in allowed
        for name in CONDITIONS[key].names(key, k)
    }


def chosen(
    asked: Sequence[str], allowed: Sequence[str] | None, text: Text, k: int, approximate: bool
) -> list[Condition]:
    """The conditions under which a text is scored: those asked for (all without any), on and off in any case,
    as far as they say anything of it."""
    return [
        cls(name, text, k)
        for name, cls in every(allowed, k).items()
        if (not asked or name in (*asked, "on", "off")) and cls.possible(name, text, approximate)
    ]


def check(asked: Sequence[str], allowed: Sequence[str] | None, k: int):
    """Raises UserError for what in `evaluate.conditions` is no condition; allowed: as `every` has it."""
    known = every(allowed, k)
    for name in asked:
        if name not in known:
            remedy = f"there are {', '.join(known)}"
            if name in METHODS:
                remedy = f"leave it out: it is a method, and all of `methods` are scored; {remedy}"
            raise UserError(
                f"config field evaluate.conditions: no condition {name!r} here; {remedy}"
            )
