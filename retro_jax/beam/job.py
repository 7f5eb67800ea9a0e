"""A step that workers make: its parts, where they lie, and how they become one."""

import functools
import json
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

from upath import UPath

from retro_jax import columns, workdir
from retro_jax.config import Experiment, from_config_dict, to_config_dict

_COPIES: dict[str, tempfile.TemporaryDirectory] = {}
_COPYING = threading.Lock()


class Job:
    """One step of one split: where it lies, and a way to have its parts made by workers.

    It goes to the workers as text (`key`), from which they make it again.
    """

    def __init__(self, e: Experiment, base: UPath, split: str, out: UPath, options=()):
        self.e, self.base, self.split, self.out, self.options = e, base, split, out, options
        self.parts = out / "parts"
        self.key = json.dumps(
            [to_config_dict(e).to_dict(), str(base), split, str(out)], default=list
        )

    @classmethod
    @functools.lru_cache(maxsize=4)
    def of(cls, key: str) -> "Job":
        """The job of a key, once a process."""
        fields, base, split, out = json.loads(key)
        return cls(from_config_dict(fields), UPath(base), split, UPath(out))

    def part(self, number: int) -> UPath:
        """The directory of a part; it is complete when it has a counts.json."""
        return self.parts / f"{number:08d}"

    def put(self, number: int, files: dict[str, bytes], counts: dict):
        """Writes a part."""
        part = self.part(number)
        part.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            (part / name).write_bytes(data)
        workdir.write_json(part / "counts.json", counts)

    def make(
        self,
        numbers: Iterable[int],
        transform: Callable,
        done: Callable = lambda counts: True,
        element: Callable = lambda number: number,
    ):
        """Runs `transform`, of a collection of an element for each part, on those that are not done."""
        there = self._found()
        missing = [n for n in numbers if n not in there or not done(there[n])]
        if missing:
            import apache_beam as beam
            from apache_beam.options.pipeline_options import PipelineOptions

            with beam.Pipeline(options=PipelineOptions(self.options)) as pipeline:
                transform(pipeline | beam.Create(map(element, missing)) | beam.Reshuffle())

    def map(self, numbers: Iterable[int], function: Callable, *done_and_element: Callable):
        """Makes parts, each by function(key, its element), which puts it; the rest as in `make`."""
        import apache_beam as beam

        make = "make parts" >> beam.Map(functools.partial(function, self.key))
        self.make(numbers, lambda elements: elements | make, *done_and_element)

    def counts(self, count: int) -> list[dict]:
        """What `put` was told of each part."""
        found = self._found()
        return [found[n] for n in range(count)]

    def _found(self) -> dict[int, dict]:
        """The counts of the parts that are there."""
        fs = self.parts.fs
        paths = fs.find(str(self.parts.path)) if self.parts.exists() else []
        paths = [path for path in paths if path.endswith("/counts.json")]
        data = fs.cat(paths) if paths else {}  # of a bucket many at a time
        return {int(path.split("/")[-2]): json.loads(text) for path, text in data.items()}

    def join(self, layout: dict, count: int, state: dict):
        """Makes the step's columns of its parts."""
        columns.join(self.out, layout, [self.part(n) for n in range(count)], state)


def remove(directory: UPath):
    if directory.exists():
        directory.fs.rm(directory.path, recursive=True)


def copy(source: UPath, target: UPath):
    """Copies what is in a directory, a piece at a time."""
    source, target = UPath(source), UPath(target)
    for file in sorted(p for p in source.rglob("*") if p.is_file()):
        to = target / str(file.path)[len(str(source.path)) :].lstrip("/")
        to.parent.mkdir(parents=True, exist_ok=True)
        with file.open("rb") as data, to.open("wb") as out:
            shutil.copyfileobj(data, out, 2**22)


def local(where: str) -> Path:
    """A directory as a local one: itself, or a copy of it that stays until two others are asked for."""
    source = UPath(where)
    if isinstance(source, Path):
        return Path(source)
    with _COPYING:
        if where not in _COPIES:
            if len(_COPIES) > 1:  # on Linux who has its files open can still read them
                _COPIES.pop(next(iter(_COPIES))).cleanup()
            aside = tempfile.TemporaryDirectory(prefix="retro_jax_")
            copy(source, UPath(aside.name))
            _COPIES[where] = aside
        return Path(_COPIES[where].name)
