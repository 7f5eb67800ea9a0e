"""Programs that requests can need are compiled while the server answers already."""

import threading
import time
from collections.abc import Sequence
from concurrent.futures import CancelledError

from retro_jax import progress
from retro_jax.generate.generator import Generator
from retro_jax.serve.sources import Sources


class Warming:
    """What is compiled for generators, one after the other, and then for what tells the sources of their sentences.

    Attributes:
      done: whether no more is to be compiled; True also before it begins.
    """

    def __init__(self, generators: Sequence[Generator], sources: Sources):
        self._generators, self._sources, self.done = generators, sources, True

    def begin(self):
        """Has all compiled, for each generator while it has no request."""
        self.done = False
        progress.say("compiling, which can take minutes: until all is, an answer may wait for it")
        threading.Thread(target=self._compile, name="warming", daemon=True).start()

    def _compile(self):
        begin = time.monotonic()
        try:
            for generator in self._generators:
                generator.warm_up().result()
            for generator in self._generators:
                self._sources.warm_up(generator)
            progress.say(f"all is compiled, after {time.monotonic() - begin:.0f} seconds")
        except CancelledError:
            pass  # the server ends
        except Exception as error:
            progress.say(
                f"not all is compiled ({error}): an answer that needs more waits for the compiler"
            )
        finally:
            self.done = True
