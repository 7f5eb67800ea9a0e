"""What a step of the pipeline is: an artefact that is made in parts, from its settings and inputs alone.

Four users share a step: the local runner makes its parts one after another (prepare.py), Apache Beam makes them
as elements (beam/), `verify` makes some again and compares them (verify.py), and a database that changes
makes more of the same (databases/segment.py).

A step is one class in one file of `steps/`, and one line of the recipe (recipe.py).
"""

from collections.abc import Callable, Iterator
from pathlib import Path

from retro_jax.store.columns import Columns, equal

Advance = Callable[[int], None]  # called with how much was done since the last call
Some = Callable[[int], set[int]]  # from a number of things to a few of their numbers


def nothing_done(count: int):
    """An `Advance` for whoever does not watch."""


class Step:
    """A step. It sees nothing of the experiment but its settings.

    Args:
      base: the directory of all steps.
      name: where it lies below that; "chunks/train" is the step `chunks` of the split `train`.
      settings: {config field: value}, all that it depends on beside its inputs; what its manifest holds.
      inputs: the names of the steps that it reads.

    Attributes:
      unit: what `verify` compares at a time, in words.
    """

    unit = ""

    def __init__(self, base: Path, name: str, settings: dict, inputs: tuple[str, ...] = ()):
        self.base, self.name, self.settings, self.inputs = base, name, settings, inputs
        self.split = name.partition("/")[2]

    @property
    def out(self) -> Path:
        """Where the finished step lies."""
        return self.base / self.name

    def at(self, step: str) -> Path:
        """Where an input lies."""
        if step not in self.inputs:
            raise ValueError(f"{self.name} reads {step}, which is none of its inputs")
        return self.base / step

    def check(self):
        """Raises UserError if something from outside, a file for example, is missing that it needs."""

    def again(self, some: Some) -> Iterator[tuple[str, bool]]:
        """Makes a share of it again, and yields of each what it is and whether it is the same."""
        return iter(())


class Whole(Step):
    """A step that is made in one go."""

    def make(self, out: Path) -> dict:
        """Fills a directory, or goes on where an earlier call was killed; returns the counts."""
        raise NotImplementedError


class Rows(Step):
    """A step whose parts are blocks of rows, one after another in columns (store/columns.py).

    Attributes:
      doing: what a progress bar says; total: of how much.
    """

    doing = ""

    @property
    def layout(self) -> dict:
        """The columns."""
        raise NotImplementedError

    def parts(self) -> int:
        """How many parts there are; known when the inputs are there."""
        raise NotImplementedError

    def total(self) -> int:
        """What `advance` adds up to."""
        raise NotImplementedError

    def make(self, part: int, advance: Advance = nothing_done) -> tuple[dict, dict]:
        """The rows of a part by column, as if it were the first; and its counts, which are added up."""
        raise NotImplementedError

    def moved(self, rows: dict, before: dict[str, int]) -> dict:
        """Rows where so many stand before them, by column."""
        return rows

    def finish(self, out: Path, counts: dict) -> dict:
        """The counts of the manifest, from those of all parts; raises UserError if it cannot be used."""
        raise NotImplementedError

    def begins(self, part: int) -> int:
        """The first row of a part; for `again`, where all but the last part have equally many."""
        raise NotImplementedError

    def again(self, some: Some) -> Iterator[tuple[str, bool]]:
        """Some parts: whole ones, as they were made. A batch of another shape may round otherwise."""
        stored = Columns(self.out)
        for part in sorted(some(self.parts())):
            rows, begin = self.make(part)[0], self.begins(part)
            count = len(next(iter(rows.values())))
            same = all(
                equal(stored[name][begin : begin + count], value) for name, value in rows.items()
            )
            yield f"chunks {begin} to {begin + count - 1}", same


class Files(Step):
    """A step whose parts are files or directories of their own."""

    doing = ""

    def parts(self) -> int:
        """How many parts there are; known when the inputs are there."""
        raise NotImplementedError

    def there(self, part: int, out: Path) -> bool:
        """Whether a part is complete."""
        raise NotImplementedError

    def make(self, part: int, out: Path, advance: Advance = nothing_done):
        """Writes a part into the step's directory, whole or absent."""
        raise NotImplementedError

    def finish(self, out: Path) -> dict:
        """Writes what all parts are together; returns the counts of the manifest."""
        raise NotImplementedError
