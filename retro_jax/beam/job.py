"""A step that workers make: its parts, where they lie, and how they become one."""

import functools
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

from upath import UPath

from retro_jax import columns
from retro_jax.config import Experiment, from_config_dict, to_config_dict


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
        (part / "counts.json").write_text(json.dumps(counts))

    def make(
        self,
        count: int,
        transform: Callable,
        done: Callable = lambda counts: True,
        element: Callable = lambda number: number,
    ):
        """Runs `transform`, of a collection of an element for each part, on those that are not done."""
        there = self._found()
        missing = [n for n in range(count) if n not in there or not done(there[n])]
        if missing:
            import apache_beam as beam
            from apache_beam.options.pipeline_options import PipelineOptions

            with beam.Pipeline(options=PipelineOptions(self.options)) as pipeline:
                transform(pipeline | beam.Create(map(element, missing)) | beam.Reshuffle())

    def map(self, count: int, function: Callable[[str, int], None]):
        """Makes parts 0 .. count - 1, each by function(key, number), which puts it."""
        import apache_beam as beam

        make = "make parts" >> beam.Map(functools.partial(function, self.key))
        self.make(count, lambda numbers: numbers | make)

    def counts(self, count: int) -> list[dict]:
        """What `put` was told of each part."""
        found = self._found()
        return [found[n] for n in range(count)]

    def _found(self) -> dict[int, dict]:
        """The counts of the parts that are there."""
        fs = self.parts.fs
        paths = fs.glob(f"{self.parts.path}/*/counts.json")
        data = fs.cat(paths) if paths else {}  # of a bucket many at a time
        return {int(path.split("/")[-2]): json.loads(text) for path, text in data.items()}

    def join(self, layout: dict, count: int, state: dict):
        """Makes the step's columns of its parts."""
        columns.join(self.out, layout, [self.part(n) for n in range(count)], count, state)


def remove(directory: UPath):
    if directory.exists():
        directory.fs.rm(directory.path, recursive=True)


def copy(source: Path, target: UPath):
    """Copies what is in a local directory."""
    for file in sorted(p for p in source.rglob("*") if p.is_file()):
        to = target / file.relative_to(source).as_posix()
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_bytes(file.read_bytes())


@functools.lru_cache(maxsize=4)
def local(where: str) -> Path:
    """A directory as a local one: itself, or a copy of it that lives as long as the process."""
    source = UPath(where)
    if isinstance(source, Path):
        return Path(source)
    aside = Path(tempfile.mkdtemp(prefix="retro_jax_"))
    for file in (p for p in source.rglob("*") if p.is_file()):
        to = aside / file.path[len(source.path) :].lstrip("/")
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_bytes(file.read_bytes())
    return aside
