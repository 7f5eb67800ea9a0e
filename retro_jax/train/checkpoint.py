"""Checkpoints of a TrainState with orbax: written aside, complete or absent, restored on any mesh."""

import contextlib
import dataclasses
import functools
import itertools
import json
import logging
import math
import os
import shutil
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from retro_jax import progress
from retro_jax.errors import UserError
from retro_jax.store import artefact, provenance
from retro_jax.train import processes, sharding
from retro_jax.train.step import TrainState

# Orbax logs every file that it writes; what fails it logs with a traceback of each thread, and raises it.
logging.getLogger("absl").setLevel(logging.CRITICAL)


class Damaged(UserError):
    """A checkpoint that cannot be read, or that does not hold what was written: `what`, and the remedy."""

    def __init__(self, what: str):
        super().__init__(f"{what}; delete it, or `retro train` goes back to the one before")
        self.what = what


class Checkpoints:
    """The checkpoints of one training run: the newest `keep`, and the best.

    Each holds the state, what it was trained with (settings, versions, the next step of the data) and a
    fingerprint of all its numbers. Writing goes on while training does.
    """

    def __init__(
        self,
        directory: Path,
        settings: dict | None = None,
        keep: int = 2,
        milestone: int | None = None,
    ):
        """milestone: a step whose checkpoint stays whatever comes after it."""
        self._directory = Path(directory).absolute()
        self._settings = settings

        def score(metrics):
            return -metrics["nats"]  # the highest is the best

        best = policies.BestN(get_metric_fn=score, n=1, keep_checkpoints_without_metrics=False)
        rules = [
            policies.LatestN(keep),
            best,
            policies.CustomSteps([milestone] if milestone else []),
        ]
        policy = policies.AnyPreservationPolicy(rules)
        # Without best_fn, orbax does not read the metrics of checkpoints that were there before.
        self._options = ocp.CheckpointManagerOptions(
            preservation_policy=policy, best_fn=score, create=True
        )
        # Each of several processes reads for itself: the manager's would wait for one that cannot.
        own = jax.process_index()
        alone = ocp.options.MultiprocessingOptions(
            primary_host=own, active_processes={own}, barrier_sync_key_prefix=f"reader{own}"
        )
        handler = ocp.StandardCheckpointHandler(multiprocessing_options=alone)
        self._reader = ocp.Checkpointer(handler, multiprocessing_options=alone)
        _hide_late_reads()
        self._open()

    def _open(self):
        try:
            self._manager = ocp.CheckpointManager(self._directory, options=self._options)
        except json.JSONDecodeError as error:  # orbax reads the scores of all of them at once
            bad = [f for f in self._directory.glob("*/metrics/*") if not _is_json(f)]
            raise UserError(
                f"{', '.join(map(str, bad)) or self._directory}: the score of a checkpoint is damaged "
                "(after a loss of power?); delete this file's folder, `metrics`, and run again"
            ) from error
        except OSError as error:
            raise UserError(
                f"{self._directory}: checkpoints cannot be kept here ({error})"
            ) from error

    def latest(self) -> int | None:
        """The newest complete checkpoint's step, or None."""
        return self._manager.latest_step()

    def best(self) -> tuple[int, float] | None:
        """Step and held-out nats a token of the best checkpoint, or None if none was scored.

        Raises:
          UserError: one that is under way cannot be written.
        """
        with self._writing():
            self._manager.wait_until_finished()
        found = {step: self._manager.metrics(step) for step in self._manager.all_steps()}
        scored = [(m["nats"], step) for step, m in found.items() if m]
        return min(scored)[::-1] if scored else None

    def drop_after(self, step: int):
        """Deletes the checkpoints of later steps."""
        for later in [s for s in self._manager.all_steps() if s > step]:
            self._manager.delete(later)

    def save(self, state: TrainState, step: int, nats: float | None = None):
        """Starts to write a checkpoint; `close` (or the next save) waits for it. What is frozen is not
        written: it is where it came from.

        nats: a token, of held-out text; the lowest is the best.

        Raises:
          UserError: it, or the one before it, cannot be written.
        """
        if step == self.latest():
            return
        state, frozen = _parted(state)
        about = {
            "fingerprint": int(fingerprint(state)),
            "frozen": int(fingerprint(frozen)),
            "settings": self._settings,
            "next_step": step,  # whose batch comes next: all that the order of the data needs
            "versions": provenance.versions(),
        }
        with self._writing():
            self._manager.save(
                step,
                args=ocp.args.Composite(state=ocp.args.StandardSave(state)),
                metrics=None if nats is None or not math.isfinite(nats) else {"nats": nats},
                custom_metadata=about,
                force=True,
            )

    def restore(
        self, step: int, like: TrainState, mesh: jax.sharding.Mesh, base: dict | None = None
    ) -> TrainState:
        """The state of a step, laid on `mesh` as `like` (from `jax.eval_shape`) says.

        base: what was begun with (`init_state`), on the mesh; what of it is frozen stays in the state.

        Raises:
          Damaged: it cannot be read, or holds other numbers than were written.
          UserError: it was made with other settings, or of another base.
        """
        like, frozen = _parted(like)
        frozen = {name: base[name] for name in frozen}
        target, state, refused = sharding.shapes_on(mesh, like), None, None
        why = "another process cannot read it"
        held = int(fingerprint(frozen)) if frozen else None  # of all processes, before any can fail
        try:
            about = self._manager.metadata(step).custom_metadata or {}
            if self._settings is not None:
                differing = artefact.differing(about["settings"], self._settings)
                if differing:
                    refused = UserError(
                        f"{self._directory}/{step} was made with another config "
                        f"({'; '.join(differing)}): use another --workdir, or delete it"
                    )
            if not refused and frozen and about["frozen"] != held:
                refused = UserError(
                    f"{self._directory}/{step} was trained on other weights than train.base now holds"
                )
            if not refused:
                written, read = about["fingerprint"], ocp.args.StandardRestore(target)
                state = self._reader.restore(self._directory / str(step) / "state", args=read)
        except Exception as error:  # whatever damaged files can raise
            why = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        fine = processes.all_say(state is not None)  # before any leaves the others waiting
        if refused:
            raise refused
        if fine and int(fingerprint(state)) != written:
            fine, why = False, "its numbers are not those that were written"
        if not fine:
            raise Damaged(f"{self._directory}/{step}: the checkpoint is damaged ({why})")
        return dataclasses.replace(state, frozen=frozen)

    def restore_newest(
        self, like: TrainState, mesh: jax.sharding.Mesh, base: dict | None = None
    ) -> tuple[TrainState, int]:
        """The newest state that can be read, and its step.

        Damaged ones are reported and, once an older one has been read, moved aside, out of the way of
        what will replace them.

        Raises:
          UserError: none of them can be read.
        """
        damaged, reason = [], None
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                state = self.restore(step, like, mesh, base)
                break
            except Damaged as error:
                progress.say(f"{error.what}; going back to the one before")
                damaged.append(step)
                reason = reason or str(error)  # the error itself would hold the state
        else:
            raise UserError(
                f"{self._directory}: no checkpoint can be read; the newest: {reason}. If that was a "
                "moment's failure, run again; to begin anew, delete the directory"
            )
        if damaged:
            processes.wait("before damaged checkpoints are moved")
            if jax.process_index() == 0:
                for bad in damaged:
                    aside = self._aside(bad)
                    os.rename(self._directory / str(bad), aside)
                    progress.say(f"the damaged checkpoint {bad} is now {aside}")
            processes.wait("after damaged checkpoints were moved")
            self._manager.close()
            self._open()
        return state, step

    def _aside(self, step: int) -> Path:
        """A name that is free."""
        names = (f"damaged-{step}" + (f"-{i}" if i else "") for i in itertools.count())
        return next(p for name in names if not (p := self._directory / name).exists())

    def close(self):
        """Waits for writes that are under way."""
        with self._writing():
            self._manager.wait_until_finished()
            self._manager.close()

    @contextlib.contextmanager
    def _writing(self):
        try:
            yield
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(
                f"{self._directory}: a checkpoint cannot be written "
                f"({' '.join(str(error).split())[:300]}); make room, and run the same command again"
            ) from error


def clear(directory: Path):
    """Removes what saves that were killed have left, before anything is saved there."""
    for left in Path(directory).glob("*.orbax-checkpoint-tmp*"):
        shutil.rmtree(left, ignore_errors=True)


def _parted(state: TrainState) -> tuple[TrainState, dict]:
    """A state without what is frozen, and that."""
    return dataclasses.replace(state, frozen={}), state.frozen


@jax.jit
def fingerprint(state) -> jax.Array:
    """A number of all bits of a state, the same on every mesh: sums of integers know no order."""
    total = jnp.zeros((), jnp.uint32)
    for i, leaf in enumerate(jax.tree.leaves(state)):
        kind = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[leaf.dtype.itemsize]
        bits = jax.lax.bitcast_convert_type(leaf, kind).astype(jnp.uint32)
        total += jnp.uint32(2 * i + 1) * bits.sum(dtype=jnp.uint32)
    return total


@functools.cache
def _hide_late_reads():
    """When a read fails, those that are still under way end in an event loop that is closed, and TensorStore
    prints a traceback of each. They say nothing; what failed is raised."""
    before = sys.unraisablehook

    def hook(raised):
        if str(raised.exc_value) != "Event loop is closed":
            before(raised)

    sys.unraisablehook = hook


def _is_json(file: Path) -> bool:
    try:
        json.loads(file.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError):
        return False
    return True
