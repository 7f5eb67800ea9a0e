"""When a loss or a gradient is not finite: what is kept of the step, and the step made again from it."""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from retro_jax import progress
from retro_jax.errors import UserError
from retro_jax.pipeline.prepared import Prepared
from retro_jax.store import files
from retro_jax.store.workdir import WorkDir
from retro_jax.train import data, processes, restore, sharding
from retro_jax.train.checkpoint import Checkpoints
from retro_jax.train.step import TrainState, gradients
from retro_jax.train.trainable import Trainable

_IN_A_ROW = 10  # skipped steps after which a run that skips stops, too


class NotFinite(Exception):
    """Training stopped at a step whose loss or gradient is not finite."""


class Watch:
    """Looks at the metrics of every step.

    Args:
      directory: of the run.
      settings: of the run, for the dump.
      stops: whether the first such step ends the run (train.nonfinite = stop).
      batch_of: step (from 0) -> its whole batch as arrays, `records` among them.
    """

    def __init__(
        self, directory: Path, settings: dict, stops: bool, batch_of: Callable[[int], dict]
    ):
        self._directory, self._settings = directory, settings
        self._stops, self._batch_of = stops, batch_of
        self._seen, self._in_a_row = None, 0

    def check(self, metrics: dict | None, state: TrainState):
        """Takes the metrics of a step, fetched at last, or None.

        Raises:
          NotFinite: the run has to stop. `state` is the one that the failing step had, because no step
            after it has changed anything but counts; it and the batch are written.
        """
        if metrics is None:
            return
        skipped, before = metrics["skipped"], self._seen or 0
        self._seen = skipped
        if skipped == before:
            self._in_a_row = 0
            return
        self._in_a_row += 1
        step = metrics["step"] - 1
        batch = self._batch_of(step)
        what = f"step {step}: loss {metrics['loss']}, gradient norm {metrics['grad_norm']}"
        what += f", on records {_short(batch['records'])} of the training shards"
        if not self._stops and self._in_a_row < _IN_A_ROW:
            progress.say(f"skipped {what}")
            return
        out = self._directory / f"failure-{step}"
        checkpoints = Checkpoints(out / "checkpoints", self._settings)
        checkpoints.save(state, step)
        checkpoints.close()
        if jax.process_index() == 0:
            np.savez(out / "batch.npz", **batch)
            about = {name: str(metrics[name]) for name in ("loss", "grad_norm")}
            about |= {
                "step": step,
                "records": batch["records"].tolist(),
                "settings": self._settings,
            }
            files.write_json(out / "failure.json", about)
        processes.wait("failure")
        raise NotFinite(
            f"{what}. State and batch are in {out}; `retro replay` makes the step again. Lower "
            "train.learning_rate" + (", or set train.nonfinite=skip" if self._stops else "")
        )

    def start_at(self, state: TrainState):
        """Steps that were skipped before are not looked at again."""
        self._seen = int(state.skipped)


def replay(work: WorkDir, methods: Callable[[str], Trainable]) -> dict:
    """Makes the last failed step of a working directory again, and says where it is not finite.

    methods: from the name of a method to the method.

    Returns:
      step, loss, records (of the training shards, whose own loss is not finite), parameters and
      gradients: the names of those that are not finite.

    Raises:
      UserError: no step has failed there, or it was trained with other settings.
    """
    found = work.failures()
    if not found:
        raise UserError(f"{work.root}: no training step has failed here")
    out = found[-1]
    about = files.read_json(out / "failure.json", "delete it, and train again")
    method, batch = methods(out.parent.name), dict(np.load(out / "batch.npz"))
    e, vocab = method.trained_with(work.experiment), Prepared(work).tokenizer.vocab
    mesh = sharding.make_mesh(e.mesh)
    with jax.set_mesh(mesh):
        base = restore.weights_of_base(e, work, method, mesh)
        like = restore.state_like(e, method, vocab, base)
        checkpoints = Checkpoints(out / "checkpoints", restore.settings_of(e, method))
        state = checkpoints.restore(about["step"], like, mesh, base)
        checkpoints.close()
        given = sharding.shard_batch(mesh, data.arrays(batch))
        make = jax.jit(lambda state, batch: gradients(method, e.train, state, batch))
        value, grads = make(state, given)
        rows = jax.jit(lambda params, batch: method.row_losses(params, batch))
        losses = np.asarray(rows(state.frozen | state.params, given))
    bad = ~np.isfinite(losses)
    result = {
        "step": about["step"],
        "loss": float(value),
        "records": batch["records"][bad].tolist(),
        "parameters": _not_finite(state.params),
        "gradients": _not_finite(grads),
    }
    progress.say(f"{out}: step {result['step']} again: loss {result['loss']}")
    for kind in ("records", "parameters", "gradients"):
        progress.say(f"{kind} that are not finite: {_short(result[kind])}")
    return result


def _not_finite(values: dict) -> list[str]:
    return [name for name, value in values.items() if not bool(jnp.isfinite(value).all())]


def _short(values) -> str:
    values = list(map(str, values))
    shown = ", ".join(values[:8]) + (f" and {len(values) - 8} more" if len(values) > 8 else "")
    return shown or "none"
