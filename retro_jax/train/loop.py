"""Training, from shards to checkpoints: read it from top to bottom."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp

from retro_jax import progress, steps, workdir
from retro_jax.config import Experiment
from retro_jax.errors import UserError
from retro_jax.interop import pretrained
from retro_jax.interop.base import base_weights, open_base
from retro_jax.model import functional
from retro_jax.prepare import check_prepared
from retro_jax.records import Records
from retro_jax.train import checkpoint, data, processes, sharding
from retro_jax.train.checkpoint import Checkpoints
from retro_jax.train.failure import Watch
from retro_jax.train.log import Log, show_parameters, step_flops
from retro_jax.train.step import TrainState, init_state, make_train_step
from retro_jax.train.validate import make_validation


def train(experiment: Experiment, root: Path, retrieval: bool) -> dict:
    """Trains the model, or without retrieval its baseline; continues where an earlier run stopped.

    Both see the same sequences in the same order, for the same number of steps.

    Returns:
      The manifest of WORKDIR/train/retro or WORKDIR/train/baseline.

    Raises:
      UserError: nothing was prepared, or what is there was made with another config.
      Interrupted: SIGTERM or Ctrl-C; it has saved.
      NotFinite: with train.nonfinite = stop.
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

    opened, vocab = open_base(e, base / "tokenizer"), steps.load_tokenizer(base).vocab
    if not trains(e, retrieval):
        shapes = functional.shapes(e.model, vocab, retrieval)
        return _as_it_is(directory, settings, inputs, functional.count(shapes))
    sharding.keep_memory()
    mesh = sharding.make_mesh(e.mesh)
    sharding.check_divides(mesh, e.model, vocab, train_batch=e.train.batch // e.train.accumulate)
    writes = jax.process_index() == 0
    if writes:
        directory.mkdir(parents=True, exist_ok=True)
        checkpoint.clear(directory / "checkpoints")
        if not done:  # claims the directory, so that no other config continues it
            workdir.write_manifest(directory, settings, inputs, None, {})
    processes.wait("directory")
    records = Records(base / "shards" / "train")
    with jax.set_mesh(mesh), processes.StopRequest() as stop:
        checkpoints = Checkpoints(directory / "checkpoints", settings, e.train.keep)
        if status := stop.status():
            raise processes.Interrupted("stopped before the first step", status)
        given = base_weights(opened, e.model, retrieval, mesh)
        if checkpoints.latest() is None:
            start, state = 0, init_state(e.model, e.train, vocab, retrieval, given)
            show_parameters(state)
        else:
            like = state_like(e, vocab, retrieval, given)
            state, start = checkpoints.restore_newest(like, mesh, given)
            progress.say(f"train/{name}: continues from step {start}")
            if e.train.nonfinite == "stop":  # a run that skipped before
                state = dataclasses.replace(state, skipped=jnp.zeros_like(state.skipped))
        del given  # of a base that is trained the state has copies
        parameters = sum(p.size for p in (state.frozen | state.params).values())
        progress.say(f"train/{name}: {parameters:,} parameters, {e.train.steps} steps")
        if e.train.warmup >= e.train.steps:
            progress.say(
                f"train.warmup = {e.train.warmup} is not less than train.steps: the learning rate only rises"
            )
        earlier = (done and done["seconds"]) or 0.0  # of the runs that this one continues
        log = Log(directory, start, earlier, e, step_flops(e, vocab, retrieval))
        whole = lambda step: next(data.batches(records, e.train, step, retrieval))  # noqa: E731
        watch = Watch(directory, settings, e.train.nonfinite == "stop", whole)
        watch.start_at(state)
        step_fn = make_train_step(e.model, e.train)
        validate = make_validation(e, Records(base / "shards" / "heldout"), mesh, retrieval)
        batches = data.batches(
            records, e.train, start, retrieval, sharding.rows_of(mesh, e.train.batch)
        )
        with progress.bar(f"training {name}", e.train.steps) as advance:
            advance(start)
            for step in range(start, e.train.steps):
                batch = sharding.shard_batch(mesh, next(batches), e.train.batch)
                state, metrics = step_fn(state, batch["tokens"], batch.get("neighbours"))
                watch.check(log.report(step + 1, metrics), state)
                advance(1)
                last, status = step + 1 == e.train.steps, stop.status()
                if (step + 1) % e.train.checkpoint_every == 0 or last or status:
                    watch.check(log.finish(), state)
                    # Who is preempted has no time to score.
                    nats = None if status and not last else validate(state)
                    if nats is not None:
                        log.validated(step + 1, nats)
                    checkpoints.save(state, step + 1, nats)
                if status and not last:
                    checkpoints.close()
                    log.close()
                    if writes:
                        workdir.write_manifest(directory, settings, inputs, log.seconds(), {})
                    raise processes.Interrupted(
                        f"stopped at step {step + 1} of {e.train.steps} and saved; "
                        "run the same command to continue",
                        status,
                    )
        best = checkpoints.best()
        checkpoints.close()
        log.close()
    counts = {
        "complete": True,
        "parameters": parameters,
        "tokens_per_second": log.tokens_per_second(),
        "mfu": log.mfu(),
        "loss": log.last.get("loss"),
        "best": best and {"step": best[0], "heldout_loss": best[1]},
        "skipped": log.last.get("skipped", 0),
        "steps": e.train.steps,
        "devices": mesh.size,
    }
    if writes:
        workdir.write_manifest(directory, settings, inputs, log.seconds(), counts)
    processes.wait("manifest")
    if status:
        raise processes.Interrupted(
            f"train/{name} is complete; run the same command to continue", status
        )
    return workdir.read_manifest(directory)


def train_settings(e: Experiment, retrieval: bool) -> dict:
    """The config fields that a trained model depends on."""
    settings = {f"train.{k}": v for k, v in dataclasses.asdict(e.train).items()}
    if e.train.base:  # what it is, not where
        settings["train.base"] = pretrained.identity(Path(e.train.base))
    settings |= {f"model.{k}": v for k, v in dataclasses.asdict(e.model).items()}
    ours = (*(n for n in pretrained.READING if n != "chunk"), "own_continuation")
    # How it is computed, kept and told, not what.
    free = {"models", "checkpoint_every", "log_every", "keep", "tensorboard"}
    free = {f"train.{name}" for name in free | {"accumulate", "nonfinite"}}
    free |= {"model.remat", "model.attention_block"}
    return {
        k: v
        for k, v in settings.items()
        if k not in free and (retrieval or not k.partition(".")[2].startswith(ours))
    }


def trains(e: Experiment, retrieval: bool) -> bool:
    """Whether there is anything to train; the language model of a frozen base alone is not."""
    return e.train.steps > 0 and (retrieval or not e.train.base or not e.train.freeze)


def state_like(e: Experiment, vocab: int, retrieval: bool, base: dict) -> TrainState:
    """The shapes of a state that begins with these weights of a base."""
    return jax.eval_shape(lambda base: init_state(e.model, e.train, vocab, retrieval, base), base)


def _as_it_is(directory: Path, settings: dict, inputs: list, parameters: int) -> dict:
    """The manifest of a model that is its base, untrained."""
    counts = {"complete": True, "parameters": parameters, "steps": 0}
    counts |= {"tokens_per_second": None, "best": None}
    if jax.process_index() == 0:
        directory.mkdir(parents=True, exist_ok=True)
        workdir.write_manifest(directory, settings, inputs, 0.0, counts)
    processes.wait("manifest")
    return workdir.read_manifest(directory)


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
    """The parameters of a finished training run, on `mesh` (which must be in context): those of its
    last checkpoint, or with evaluate.checkpoint = best of that whose held-out loss was lowest."""
    e, base = experiment, Path(root) / "prepare"
    directory = check_trained(e, root, retrieval)
    given = base_weights(open_base(e, base / "tokenizer"), e.model, retrieval, mesh)
    vocab = steps.load_tokenizer(base).vocab
    if not trains(e, retrieval):
        but = frozenset(given)
        return functional.init(e.model, vocab, e.train.seed, retrieval, but) | given
    checkpoints = Checkpoints(directory / "checkpoints")
    step = checkpoints.latest()
    if e.evaluate.checkpoint == "best" and (best := checkpoints.best()):
        step = best[0]
    if step is None:
        raise UserError(
            f"{directory}/checkpoints holds no checkpoint: delete {directory} and run `retro train`"
        )
    state = checkpoints.restore(step, state_like(e, vocab, retrieval, given), mesh, given)
    checkpoints.close()
    return state.weights()
