"""When a loss or a gradient is not finite: what is kept of the step, and the step made again from it."""

import json
from collections import deque
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from retro_jax import progress, steps, workdir
from retro_jax.config import Experiment
from retro_jax.errors import UserError
from retro_jax.model import functional
from retro_jax.model.retro import PAD
from retro_jax.train import sharding
from retro_jax.train.checkpoint import Checkpoints
from retro_jax.train.step import TrainState, init_state, loss


class NotFinite(Exception):
    """Training stopped at a step whose loss or gradient is not finite."""


class Watch:
    """Remembers the batches of the last steps, until it is known that their losses are finite."""

    def __init__(self, directory: Path, settings: dict):
        self._directory, self._settings = directory, settings
        self._batches = deque(maxlen=2)  # metrics come one step late

    def remember(self, step: int, batch: dict[str, np.ndarray]):
        """Keeps the rows that this process gave to a step (counted from 0)."""
        self._batches.append((step, batch))

    def check(self, metrics: dict, state: TrainState):
        """Writes a dump and raises NotFinite if the step of `metrics` (from `Log.last`) failed.

        `state` is the one that the failing step had: later steps have changed nothing but counts.
        """
        if not metrics.get("skipped"):
            return
        step = metrics["step"] - 1
        batch = next(batch for at, batch in self._batches if at == step)
        out = self._directory / f"failure-{step}"
        out.mkdir(parents=True, exist_ok=True)
        np.savez(out / f"batch-{jax.process_index()}.npz", **batch)
        checkpoints = Checkpoints(out / "checkpoints", self._settings)
        checkpoints.save(state, step)
        checkpoints.close()
        if jax.process_index() == 0:
            about = {
                "step": step,
                "loss": str(metrics["loss"]),
                "grad_norm": str(metrics["grad_norm"]),
            }
            about |= {"records": batch["records"].tolist(), "settings": self._settings}
            workdir.write_json(out / "failure.json", about)
        raise NotFinite(
            f"step {step}: loss {metrics['loss']}, gradient norm {metrics['grad_norm']}, on records "
            f"{_short(batch['records'])} of the training shards. State and batch are in {out}; `retro "
            "replay` makes the step again. Lower train.learning_rate, or set train.nonfinite=skip"
        )


def replay(experiment: Experiment, root: Path) -> dict:
    """Makes the last failed step of a working directory again, and says where it is not finite.

    Returns:
      step, loss, rows (of the batch, whose own loss is not finite, with their record), parameters and
      gradients: the names of those that are not finite.
    """
    e = experiment
    found = sorted(
        Path(root).glob("train/*/failure-*/failure.json"), key=lambda p: p.stat().st_mtime
    )
    if not found:
        raise UserError(f"{root}/train: no step has failed here")
    out = found[-1].parent
    about, retrieval = json.loads(found[-1].read_text()), out.parent.name == "retro"
    parts = sorted(out.glob("batch-*.npz"), key=lambda p: int(p.stem.partition("-")[2]))
    read = [np.load(part) for part in parts]
    batch = {name: np.concatenate([part[name] for part in read]) for name in read[0].files}
    vocab = steps.load_tokenizer(Path(root) / "prepare").vocab
    mesh = sharding.make_mesh(e.mesh)
    with jax.set_mesh(mesh):
        like = jax.eval_shape(lambda: init_state(e.model, e.train, vocab, retrieval))
        checkpoints = Checkpoints(out / "checkpoints", about["settings"])
        state = checkpoints.restore(about["step"], like, mesh)
        checkpoints.close()
        given = sharding.shard_batch(mesh, {k: v for k, v in batch.items() if k != "records"})
        given = (given["tokens"], given.get("neighbours"))
        of_params = lambda params, *batch: loss(e.model, state.frozen | params, *batch)  # noqa: E731
        value, gradients = jax.jit(jax.value_and_grad(of_params))(state.params, *given)
        score = jax.jit(lambda p, x, n: functional.token_logprobs(e.model, p, x, n))
        logprobs = np.asarray(score(state.frozen | state.params, *given))
    scored = (batch["tokens"] != PAD) & (np.arange(batch["tokens"].shape[1]) > 0)
    bad = ~np.isfinite(np.where(scored, logprobs, 0)).all(axis=1)
    result = {
        "step": about["step"],
        "loss": float(value),
        "rows": [{"row": int(i), "record": int(batch["records"][i])} for i in np.flatnonzero(bad)],
        "parameters": _not_finite(state.params),
        "gradients": _not_finite(gradients),
    }
    progress.say(f"{out}: step {result['step']} again: loss {result['loss']}")
    progress.say(f"rows without a finite loss: {_short([r['record'] for r in result['rows']])}")
    for kind in ("parameters", "gradients"):
        progress.say(f"{kind} that are not finite: {_short(result[kind])}")
    return result


def _not_finite(values: dict) -> list[str]:
    return [name for name, value in values.items() if not bool(jnp.isfinite(value).all())]


def _short(values) -> str:
    values = list(map(str, values))
    return (
        ", ".join(values[:8]) + (f" and {len(values) - 8} more" if len(values) > 8 else "")
        or "none"
    )
