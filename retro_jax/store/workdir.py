"""A working directory: one experiment, and all that was made of it. Every path below it is named here.

config.json               the experiment, with every field; and where it is prepared, if that is not here
prepare/STEP              text to shards (pipeline/recipe.py has the steps)
train/METHOD              checkpoints and the log of a training run
datastore/METHOD          what a method made of the database with a trained network
evaluate/SPLIT            the rows of an evaluation, its figures and its report
evaluate/tasks/NAME.json  the answers to a task
scores/SPLIT/METHOD       log-probabilities of a split's tokens, for a comparison
compare/SPLIT             a comparison of methods: those beside each other, and its figures
seeds/S                   train, datastore and scores of another train.seed, for a comparison
databases/NAME            what was added to a database after it was prepared
completions/NAME          the continuations of a file of prompts
generate.json summary.json
.locks                    which process is in which stage
"""

import contextlib
import dataclasses
import functools
import os
from pathlib import Path

from upath import UPath

from retro_jax import __version__
from retro_jax.config import Experiment, from_config_dict
from retro_jax.errors import UserError
from retro_jax.store import files
from retro_jax.store.lock import lock

CONFIG = "config.json"
_PREPARED_IN = "prepared_in"  # of config.json, relative to it
TASKS = "tasks"


class WorkDir:
    """A working directory, here or (for `retro beam`) in a bucket. It may be moved or renamed.

    Args:
      root: the directory; it need not exist.
      experiment: the experiment; by default the one that is stored there.
      prepared_in: the working directory whose prepared text it uses; by default the one that is stored, or its own.

    Raises:
      UserError: `experiment` is asked for, was not given, and none is stored.
    """

    def __init__(
        self,
        root: Path | str,
        experiment: Experiment | None = None,
        prepared_in: Path | None = None,
    ):
        path = UPath(root)
        self.root = Path(path) if isinstance(path, Path) else path
        if prepared_in is not None:
            self.prepared_in = prepared_in
        if experiment is not None:
            self.experiment = experiment

    @classmethod
    def of(cls, work: "WorkDir | Path | str") -> "WorkDir":
        """A working directory that is given as one, or by its path."""
        return work if isinstance(work, cls) else cls(work)

    @functools.cached_property
    def experiment(self) -> Experiment:
        """What config.json holds."""
        path = self.root / CONFIG
        try:
            stored = self._stored()
        except (FileNotFoundError, NotADirectoryError) as error:
            experiment = f" (an experiment is given by --config={self.root})"
            raise UserError(
                f"{self.root}: is no working directory (it has no {CONFIG}); make one with "
                "`retro run --config=FILE --workdir=DIR`" + experiment * (".py" in self.root.name)
            ) from error
        try:
            return from_config_dict(stored["config"])
        except UserError as error:
            raise UserError(f"{path} (retro_jax {stored.get('retro_jax')}): {error}") from error

    @functools.cached_property
    def prepared_in(self) -> Path:
        """The working directory whose prepared text it uses: its own, unless config.json names another."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            if there := self._stored().get(_PREPARED_IN):
                return Path(os.path.normpath(self.root / there))
        return self.root

    def _stored(self) -> dict:
        path = self.root / CONFIG
        remedy = "it is the experiment: restore it, or give --config=FILE"
        stored = files.read_json(path, remedy)
        if isinstance(stored, dict) and "model_type" in stored:
            raise UserError(
                f"{self.root}: a language model, and no working directory; `retro prepare --config=chat:{self.root} "
                "--workdir=DIR` makes one of it"
            )
        if not isinstance(stored, dict) or not isinstance(stored.get("config"), dict):
            raise UserError(f"{path}: holds no config; restore it, or give --config=FILE")
        return stored

    @property
    def exists(self) -> bool:
        """Whether an experiment is stored there."""
        try:
            return (self.root / CONFIG).exists()
        except ImportError as error:  # of fsspec, for a kind of bucket
            raise UserError(f"--workdir={self.root}: {error}") from error

    def save(self):
        """Stores the experiment."""
        files.make_directory(self.root)
        stored = {"retro_jax": __version__, "config": dataclasses.asdict(self.experiment)}
        if self.prepared_in != self.root:  # so that both can be moved together
            stored[_PREPARED_IN] = os.path.relpath(self.prepared_in, self.root)
        stored = files.as_json(stored)
        if not (self.exists and files.read_json(self.root / CONFIG, "") == stored):
            files.write_json(self.root / CONFIG, stored)

    def lock(self, stage: str, shared: bool = False) -> contextlib.AbstractContextManager:
        """Holds a stage; see `lock.lock`."""
        return lock(self.root / ".locks", stage, shared)

    def own(self, does: str):
        """Raises UserError if what is prepared is another directory's, which others may read; does: what was asked."""
        if self.prepared_in != self.root:
            raise UserError(
                f"{self.root} uses what is prepared in {self.prepared_in}: {does} there"
            )

    def reading(self) -> contextlib.AbstractContextManager:
        """Holds what is prepared, together with others that read it, against whoever would make it again."""
        return lock(self.prepared_in / ".locks", "prepare", shared=True)

    def prepared(self, step: str = "") -> Path:
        """Where a step of the pipeline lies, chunks/train for example; all steps without a name."""
        base = self.prepared_in / "prepare"
        return base / step if step else base

    def asking(self, experiment: Experiment) -> "WorkDir":
        """The same directory for another experiment."""
        return WorkDir(self.root, experiment, self.prepared_in)

    def seeded(self, more: int) -> "WorkDir":
        """Where what is trained with a seed `more` above the experiment's is; it is no directory of its own."""
        if not more:
            return self
        e = self.experiment
        seed = e.train.seed + more
        e = dataclasses.replace(e, train=dataclasses.replace(e.train, seed=seed))
        return WorkDir(self.root / "seeds" / str(seed), e, self.prepared_in)

    def trained(self, method: str) -> Path:
        """The directory of a training run."""
        return self.root / "train" / method

    def datastore(self, method: str) -> Path:
        """The directory of what a method made in advance, of the database and a trained network."""
        return self.root / "datastore" / method

    def evaluated(self, name: str) -> Path:
        """The directory of an evaluation, of a held-out split or of a text."""
        return self.root / "evaluate" / name

    def compared(self, split: str) -> Path:
        """The directory of a comparison of methods on a held-out split."""
        return self.root / "compare" / split

    def scored(self, split: str, method: str) -> Path:
        """The directory of what a comparison's method says of a held-out split's tokens."""
        return self.root / "scores" / split / method

    def evaluations(self) -> list[Path]:
        """The directories of all evaluations that are there."""
        found = (self.root / "evaluate").glob("*/manifest.json")
        return sorted(p.parent for p in found if not p.parent.name.startswith("."))

    def task(self, name: str) -> Path:
        """The file of a task's answers."""
        return self.root / "evaluate" / TASKS / f"{name}.json"

    def completions(self, name: str) -> Path:
        """The directory of the continuations of a file of prompts."""
        return self.root / "completions" / name

    def sources(self, method: str) -> Path:
        """The file that says from when on a document is a sentence's source."""
        return self.root / "sources" / f"{method}.json"

    def failures(self) -> list[Path]:
        """The directories of training steps that were not finite, the newest last."""
        found = (self.root / "train").glob("*/failure-*/failure.json")
        return [p.parent for p in sorted(found, key=lambda p: p.stat().st_mtime)]

    @property
    def databases(self) -> Path:
        """The directory of the databases that were changed or made after `prepare`."""
        return self.prepared_in / "databases"

    @property
    def generated(self) -> Path:
        """The file of the last continuation of `generate.prompt`."""
        return self.root / "generate.json"

    @property
    def summary(self) -> Path:
        """The file of the figures of `retro run`."""
        return self.root / "summary.json"

    @property
    def history(self) -> Path:
        """The file of what a person typed at `retro generate --interactive`."""
        return self.root / ".generate_history"
