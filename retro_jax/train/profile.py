"""A trace of some training steps, for XProf or Perfetto: where their time goes."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import jax

from retro_jax import progress

_AFTER = 2  # steps, of which the first one compiles


@contextlib.contextmanager
def tracing(directory: Path, start: int, steps: int) -> Iterator[Callable[[int, object], None]]:
    """Yields what is called before each step with its number and the state; `steps` of them are traced, the first two
    of a run never. None: nothing is.

    Args:
      directory: where the trace is written. start: the number of the run's first step.
    """
    first, last = start + _AFTER, start + _AFTER + steps
    under_way = False

    def before(step: int, state):
        nonlocal under_way
        if steps and step == first:
            jax.block_until_ready(state)  # what was begun before is no part of it
            jax.profiler.start_trace(str(directory))
            under_way = True
        elif under_way and step == last:
            end(state)

    def end(state=None):
        nonlocal under_way
        jax.block_until_ready(state)
        jax.profiler.stop_trace()
        under_way = False
        progress.say(f"a trace of the steps {first + 1} to {last}: {directory}")

    try:
        yield before
    finally:
        if under_way:  # the run is shorter, or was stopped
            end()
