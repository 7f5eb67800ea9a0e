"""Programs that requests can need are compiled while the server answers already."""

import time
from collections.abc import Sequence
from concurrent.futures import Future

from retro_jax import progress
from retro_jax.generate.generator import Generator
from retro_jax.serve.sources import Sources


class Warming:
    """What is compiled for generators, and for what tells the sources of their sentences."""

    def __init__(self, generators: Sequence[Generator], sources: Sources):
        self._generators, self._sources = generators, sources
        self._begun, self._warm = 0.0, []

    @property
    def done(self) -> bool:
        """Whether no more is to be compiled; True also before it begins."""
        return all(warm.done() for warm in self._warm)

    def begin(self):
        """Has all compiled, whenever no request is there."""
        self._begun = time.monotonic()
        progress.say("until all is compiled, which can take minutes, an answer may wait for that")
        self._warm = [g.warm_up() for g in self._generators]
        self._warm += filter(None, map(self._sources.warm_up, self._generators))
        for warm in self._warm:
            warm.add_done_callback(self._say)

    def _say(self, ended: Future):
        if self.done and not any(w.cancelled() or w.exception() for w in self._warm):
            progress.say(f"all is compiled, after {time.monotonic() - self._begun:.0f} seconds")
