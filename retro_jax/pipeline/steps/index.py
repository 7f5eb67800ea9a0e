"""The step `index`: the vectors, or the words, of the database, in shards that are searched."""

import functools
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from retro_jax.config import RetrievalConfig
from retro_jax.pipeline.step import Advance, Files, Some, nothing_done
from retro_jax.retrieval.bm25 import Statistics
from retro_jax.retrieval.division import Division
from retro_jax.retrieval.index import INDEXES, Given
from retro_jax.store.bucket import local
from retro_jax.store.columns import Columns


class BuildIndex(Files):
    """Builds the index of the database; a part is a shard of it.

    Args:
      config: what `settings` has, as the index takes it. given: for what; the statistics of words are read
        when they are there.
    """

    unit = "shards"
    doing = "building the index"

    def __init__(
        self, base: Path, name: str, settings: dict, inputs: tuple, config: RetrievalConfig,
        given: Given,
    ):  # fmt: skip
        super().__init__(base, name, settings, inputs)
        self._config, self._asked = config, given

    @functools.cached_property
    def given(self) -> Given:
        """What the index is built for."""
        if len(self.inputs) == 1:
            return self._asked
        return self._asked._replace(statistics=Statistics.load(local(self.at(self.inputs[1]))))

    @functools.cached_property
    def vectors(self) -> np.ndarray:
        """What is searched [N, E]."""
        return Columns(self.at(self.inputs[0]))[INDEXES[self._config.index].takes]

    @functools.cache  # noqa: B019 - as long as the step
    def division(self, out: Path) -> Division:
        """What the shards hold, of an index that is built in `out`."""
        return Division(self.vectors, out, self._config, self.given)

    def parts(self) -> int:
        """Shards."""
        return self.division(self.out).shards

    def there(self, part: int, out: Path) -> bool:
        """Whether a shard is complete."""
        return self.division(out).there(part)

    def make(self, part: int, out: Path, advance: Advance = nothing_done):
        """Builds a shard."""
        self.division(out).build(part)
        advance(1)

    def finish(self, out: Path) -> dict:
        """See `Division.finish`."""
        return self.division(out).finish()

    def again(self, some: Some) -> Iterator[tuple[str, bool]]:
        """Every shard, as its kind can be compared (see `Index.again`), and the route to them."""
        division = self.division(self.out)
        for number in range(division.shards):
            told, same = division.again(number)
            yield f"shard {number}" + (f", {told}" if told else ""), same
        if division.routed:
            told, same = division.route_again()
            yield f"the route, {told}", same
