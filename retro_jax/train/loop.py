"""Training, from shards to checkpoints: read it from top to bottom."""

import dataclasses
import json
import os
import signal
import time
from pathlib import Path

import jax

from retro_jax import progress, steps, workdir
from retro_jax.config import Experiment
from retro_jax.errors import UserError
from retro_jax.prepare import check_prepared
from retro_jax.records import Records
from retro_jax.train import data, sharding
from retro_jax.train.checkpoint import Checkpoints
from retro_jax.train.step import TrainState, init_state, make_train_step


class Interrupted(Exception):
    """Training was asked to stop, and has saved."""


def train(experiment: Experiment, root: Path, retrieval: bool) -> dict:
    """Trains the model, or without retrieval its baseline; continues where an earlier run stopped.

    Both see the same sequences in the same order, for the same number of steps.

    Returns:
      The manifest of WORKDIR/train/retro or WORKDIR/train/baseline.
    """
    e, base = experiment, Path(root) / "prepare"
    name = "retro" if retrieval else "baseline"
    directory = Path(root) / "train" / name
    settings, inputs = train_settings(e, retrieval), [base / "shards" / "train", base / "tokenizer"]
    check_prepared(e, root)
    done = workdir.check(directory, settings, inputs)
    if done and done["counts"].get("complete"):
        progress.say(f"train/{name}: complete")
        return done

    sharding.keep_memory()
    mesh = sharding.make_mesh(e.mesh)
    vocab = steps.load_tokenizer(base).vocab
    sharding.check_divides(mesh, e.model, vocab, train_batch=e.train.batch)
    directory.mkdir(parents=True, exist_ok=True)
    if not done:  # claims the directory, so that no other config continues it
        workdir.write_manifest(directory, settings, inputs, None, {})
    records = Records(base / "shards" / "train")
    with jax.set_mesh(mesh), _StopRequest() as stop:
        checkpoints = Checkpoints(directory / "checkpoints")
        start = checkpoints.latest() or 0
        if start:
            progress.say(f"train/{name}: continues from step {start}")
            like = jax.eval_shape(lambda: init_state(e.model, e.train, vocab, retrieval))
            state = checkpoints.restore(start, like, mesh)
        else:
            state = init_state(e.model, e.train, vocab, retrieval)
        parameters = sum(p.size for p in state.weights().values())
        progress.say(f"train/{name}: {parameters:,} parameters, {e.train.steps} steps")
        earlier = (done and done["seconds"]) or 0.0  # of the runs that this one continues
        log = _Log(directory / "metrics.jsonl", start, earlier, e)
        step_fn = make_train_step(e.model, e.train)
        batches = data.batches(records, e.train, start, retrieval)
        with progress.bar(f"training {name}", e.train.steps) as advance:
            advance(start)
            for step in range(start, e.train.steps):
                batch = sharding.shard_batch(mesh, next(batches))
                state, metrics = step_fn(state, batch["tokens"], batch.get("neighbours"))
                log.report(step + 1, metrics)
                advance(1)
                if (step + 1) % e.train.checkpoint_every == 0 or stop.requested:
                    checkpoints.save(state, step + 1)
                if stop.requested and step + 1 < e.train.steps:
                    log.finish()
                    checkpoints.close()
                    workdir.write_manifest(directory, settings, inputs, log.seconds(), {})
                    raise Interrupted(
                        f"stopped at step {step + 1} of {e.train.steps} and saved; "
                        "run the same command to continue"
                    )
            log.finish()
        checkpoints.save(state, e.train.steps)
        checkpoints.close()
    counts = {
        "complete": True,
        "parameters": parameters,
        "tokens_per_second": log.tokens_per_second(),
        "loss": log.last.get("loss"),
        "steps": e.train.steps,
        "devices": mesh.size,
    }
    workdir.write_manifest(directory, settings, inputs, log.seconds(), counts)
    if stop.requested:
        raise Interrupted(f"train/{name} is complete; run the same command to continue")
    return workdir.read_manifest(directory)


def train_settings(e: Experiment, retrieval: bool) -> dict:
    """The config fields that a trained model depends on."""
    settings = {f"train.{k}": v for k, v in dataclasses.asdict(e.train).items()}
    settings |= {f"model.{k}": v for k, v in dataclasses.asdict(e.model).items()}
    ours = ("cca_", "retrieved", "encoder_", "share_embedding", "own_continuation")
    free = {"train.baseline", "train.checkpoint_every", "train.log_every"}
    free |= {"model.remat", "model.attention_block"}  # how it is computed, not what
    return {
        k: v
        for k, v in settings.items()
        if k not in free and (retrieval or not k.partition(".")[2].startswith(ours))
    }


def check_trained(experiment: Experiment, root: Path, retrieval: bool) -> Path:
    """The directory of a finished training run.

    Raises:
      UserError: it is missing, unfinished, or of another config.
    """
    base = Path(root) / "prepare"
    directory = Path(root) / "train" / ("retro" if retrieval else "baseline")
    manifest = workdir.require(directory, "train")
    inputs = [base / "shards" / "train", base / "tokenizer"]
    workdir.check(directory, train_settings(experiment, retrieval), inputs)
    if not manifest["counts"].get("complete"):
        raise UserError(f"{directory}: training has not finished; run `retro train` to continue it")
    return directory


def restore_trained(
    experiment: Experiment, root: Path, retrieval: bool, mesh: jax.sharding.Mesh
) -> dict:
    """The parameters of a finished training run, on `mesh` (which must be in context)."""
    e, base = experiment, Path(root) / "prepare"
    directory = check_trained(e, root, retrieval)
    checkpoints = Checkpoints(directory / "checkpoints")
    if checkpoints.latest() is None:
        raise UserError(
            f"{directory}/checkpoints holds no checkpoint: delete {directory} and run `retro train`"
        )
    vocab = steps.load_tokenizer(base).vocab
    like: TrainState = jax.eval_shape(lambda: init_state(e.model, e.train, vocab, retrieval))
    state = checkpoints.restore(checkpoints.latest(), like, mesh)
    checkpoints.close()
    return state.weights()


class _StopRequest:
    """Turns SIGINT and SIGTERM into a request that the loop sees after the step under way."""

    requested = False

    def __enter__(self):
        def request(*_):
            if self.requested:
                raise KeyboardInterrupt
            self.requested = True
            progress.say("stopping after this step; press Ctrl-C again to stop at once")

        self._before = {s: signal.signal(s, request) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)


class _Log:
    """A line every `log_every` steps, on the terminal and in metrics.jsonl.

    Metrics are fetched one step late, while the next step runs.
    """

    def __init__(self, path: Path, start: int, earlier: float, e: Experiment):
        self._path, self._every, self._steps = path, e.train.log_every, e.train.steps
        self._tokens = e.train.batch * e.train.length
        self._waiting, self.last = None, {}
        self._begin = time.perf_counter() - earlier
        self._after_compile, self._measured = None, 0
        self._cut(start)

    def _cut(self, start: int):
        """Drops rows of steps that are run again, and a last row that a crash cut short."""
        kept = []
        for line in self._path.read_text().splitlines() if self._path.exists() else []:
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                break
            if row["step"] <= start:
                kept.append(line + "\n")
                self.last = row
        aside = self._path.with_suffix(".partial")
        aside.write_text("".join(kept))
        os.replace(aside, self._path)

    def report(self, step: int, metrics: dict):
        """Takes the metrics of a step that was just started; fetches those of the one before."""
        self.finish()
        self._waiting = (step, metrics)

    def finish(self):
        """Fetches and reports the metrics that are still waited for."""
        if self._waiting is None:
            return
        step, metrics = self._waiting
        rate = self.tokens_per_second()
        self.last = {"step": step, "tokens_per_second": rate}
        self.last |= {k: float(v) for k, v in metrics.items()}
        self._waiting, self._end = None, time.perf_counter()
        if self._after_compile is None:
            self._after_compile = self._end
        else:
            self._measured += 1
        if step % self._every and step != self._steps:
            return
        self.last["tokens_per_second"] = round(self.tokens_per_second(), 1)
        with self._path.open("a") as file:
            file.write(json.dumps(self.last) + "\n")
        progress.say(
            f"step {step:>6}  loss {self.last['loss']:.4f}  "
            f"grad norm {self.last['grad_norm']:.3f}  lr {self.last['learning_rate']:.2e}  "
            f"{self.last['tokens_per_second']:,.0f} tokens/s"
        )

    def tokens_per_second(self) -> float:
        """Training tokens a second, without the first step (which compiles)."""
        if not self._measured:
            return self.last.get("tokens_per_second", 0.0)
        return self._measured * self._tokens / (self._end - self._after_compile)

    def seconds(self) -> float:
        return time.perf_counter() - self._begin
