"""A step that workers make: its parts, where they lie, and how they become one."""

import functools
import json
from collections.abc import Callable, Iterable

from upath import UPath

from retro_jax.config import Experiment, from_config_dict, to_config_dict
from retro_jax.pipeline.recipe import recipe
from retro_jax.pipeline.step import Step
from retro_jax.store import columns, files

_COUNTS = "counts.json"


class Job:
    """One step, and a way to have its parts made by workers.

    It goes to the workers as text (`key`), from which they make it again.

    Args:
      options: of the pipeline, as Beam takes them.
    """

    def __init__(self, e: Experiment, base: UPath, name: str, options=()):
        self.step: Step = recipe(e, base)[name]
        self.out, self.options = base / name, options
        self.parts = self.out / "parts"
        self.key = json.dumps([to_config_dict(e).to_dict(), str(base), name], default=list)

    @classmethod
    @functools.lru_cache(maxsize=4)
    def of(cls, key: str) -> "Job":
        """The job of a key, once a process."""
        fields, base, name = json.loads(key)
        return cls(from_config_dict(fields), UPath(base), name)

    def part(self, number: int) -> UPath:
        """The directory of a part; it is complete when it has a counts.json."""
        return self.parts / f"{number:08d}"

    def put(self, number: int, data: dict[str, bytes], counts: dict):
        """Writes a part."""
        part = self.part(number)
        part.mkdir(parents=True, exist_ok=True)
        for name, content in data.items():
            (part / name).write_bytes(content)
        files.write_json(part / _COUNTS, counts)

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

    def is_done(self, number: int) -> bool:
        """Whether a part is complete."""
        return (self.part(number) / _COUNTS).exists()

    def counts_of(self, number: int) -> dict:
        """What `put` was told of one part."""
        return json.loads((self.part(number) / _COUNTS).read_bytes())

    def _found(self) -> dict[int, dict]:
        """The counts of the parts that are there."""
        fs = self.parts.fs
        paths = fs.find(str(self.parts.path)) if self.parts.exists() else []
        paths = [path for path in paths if path.endswith("/" + _COUNTS)]
        data = fs.cat(paths) if paths else {}  # of a bucket many at a time
        return {int(path.split("/")[-2]): json.loads(text) for path, text in data.items()}

    def join(self, count: int, state: dict):
        """Makes the step's columns of its parts."""
        parts = [self.part(n) for n in range(count)]
        columns.join(self.out, self.step.layout, parts, {"parts": count} | state)
