"""A study: many runs of one experiment, which differ in some of its fields."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ml_collections

from retro_jax.config.experiment import Experiment, from_config_dict
from retro_jax.errors import UserError


@dataclass(frozen=True)
class Study:
    """What the function `get_study` of an experiment file returns.

    Attributes:
      name: what it is called; its working directory is runs/NAME.
      base: what its runs have in common; an Experiment, or what `get_config` returns.
      runs: of each run its name, and {config field: value}, what it has otherwise: {"train.seed": 1}.
      databases: more databases that are made beside the prepared one, name and source, and with which every run that
        reads is scored as well, on the held-out split of its own text.
      curves: of a method (language_model, retro) the names of those runs that differ in size and seed alone: what is
        set side by side, and what laws are put through.
      rows: a file of rows that earlier runs left (study/sums.py): what is done in it is not done again.
      folder: where the text of its sources lies, if that is for the user to say; a run is the same wherever it lies.

    Raises:
      UserError: there is no run, a name that cannot name a directory, or a field or value that cannot be meant.
    """

    name: str
    base: Experiment | ml_collections.ConfigDict
    runs: Mapping[str, Mapping[str, Any]]
    databases: Mapping[str, str] = dataclasses.field(default_factory=dict)
    curves: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    rows: str = ""
    folder: str = ""

    def __post_init__(self):
        if not self.runs:
            raise UserError(f"study {self.name}: has no run; give it some")
        for name in (self.name, *self.runs, *self.databases):
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
                raise UserError(
                    f"study {self.name}: {name!r} names a directory: use letters, digits, '.', '_', '-'"
                )
        if "prepared" in self.databases:
            raise UserError(
                f"study {self.name}: a database cannot be called prepared; choose another name"
            )
        for name in self.runs:
            self.experiment(name)
        for method, names in self.curves.items():
            if unknown := [n for n in names if n not in self.runs]:
                raise UserError(
                    f"study {self.name}: curves of {method}: there is no run {unknown[0]!r}"
                )
            for name in names:
                if method not in (own := self.experiment(name).methods):
                    raise UserError(
                        f"study {self.name}: curves of {method}: run {name} has another method, {', '.join(own)}"
                    )

    def experiment(self, name: str) -> Experiment:
        """The experiment of a run.

        Raises:
          UserError: as the class.
        """
        base = self.base
        base = (
            base.to_dict()
            if isinstance(base, ml_collections.ConfigDict)
            else dataclasses.asdict(base)
        )
        for field, value in {"name": name, **self.runs[name]}.items():
            *parts, last = field.split(".")
            at = base
            for part in parts:
                at = at.setdefault(part, {})
                if not isinstance(at, dict):
                    raise UserError(
                        f"study {self.name}, run {name}: {field} is no field of a config"
                    )
            at[last] = value
        try:
            return from_config_dict(base)
        except UserError as error:
            raise UserError(f"study {self.name}, run {name}: {error}") from error
