"""One process of several: how they find one another, and how all of them stop at the same step."""

import os
import signal

import jax
from jax.experimental import multihost_utils

from retro_jax import progress
from retro_jax.errors import UserError


def join():
    """Finds the other processes (`retro train --distributed`), before JAX first runs.

    JAX asks Cloud TPU, GKE, Slurm or Open MPI for them; elsewhere JAX_COORDINATOR_ADDRESS (host:port of
    process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID say it.

    Raises:
      UserError: they cannot be found.
    """
    number, own = os.environ.get("JAX_NUM_PROCESSES"), os.environ.get("JAX_PROCESS_ID")
    if jax.config.jax_platforms == "cpu" or os.environ.get("JAX_PLATFORMS") == "cpu":
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(
            num_processes=number and int(number), process_id=own and int(own)
        )
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"--distributed: the other processes were not found ({str(error).splitlines()[0]}); outside "
            "Cloud TPU, GKE, Slurm and Open MPI, set JAX_COORDINATOR_ADDRESS=HOST:PORT, "
            "JAX_NUM_PROCESSES and JAX_PROCESS_ID"
        ) from error
    if jax.process_index():
        progress.be_quiet()


def wait(what: str):
    """Returns when all processes are here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def all_say(yes: bool) -> bool:
    """Whether all processes say yes; each has to ask."""
    return yes if jax.process_count() == 1 else bool(multihost_utils.process_allgather(yes).all())


class Interrupted(Exception):
    """Training was asked to stop, and has saved. `status` is the exit status."""

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status


class StopRequest:
    """Turns SIGTERM (a preempted machine) and Ctrl-C into a request that the loop sees after a step."""

    _asked = 0

    def __init__(self):
        self._signal = None

    def __enter__(self):
        def request(number, _):
            if self._signal:
                raise KeyboardInterrupt
            self._signal = number
            again = "; press Ctrl-C again to stop at once" if number == signal.SIGINT else ""
            progress.say(f"stopping after this step{again}")

        # Where processes were joined JAX itself listens for SIGTERM, and finds a step for all of them;
        # Ctrl-C reaches one of several, which cannot stop the others: it ends at once.
        signals = [signal.SIGTERM] * (not jax.distributed.is_initialized())
        signals += [signal.SIGINT] * (jax.process_count() == 1)
        self._before = {s: signal.signal(s, request) for s in signals}
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def status(self) -> int:
        """The exit status to stop with now, or 0 to go on; the same in all processes, which have to ask
        equally often, and once before what takes long (restoring, compiling).

        75 (EX_TEMPFAIL of sysexits.h: try again later) after SIGTERM, 130 after Ctrl-C.
        """
        if jax.distributed.is_initialized():
            # JAX lets all stop at one number: the highest that one has asked with, and 1. So numbers
            # are those of this process's questions; steps begin anew with the next model.
            StopRequest._asked += 1
            if multihost_utils.reached_preemption_sync_point(StopRequest._asked):
                return 75
        return {None: 0, signal.SIGTERM: 75, signal.SIGINT: 130}[self._signal]
