"""Training, from shards to checkpoints: read it from top to bottom."""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from retro_jax import progress
from retro_jax.config import TrainConfig
from retro_jax.errors import UserError
from retro_jax.pipeline.prepare import check_prepared
from retro_jax.pipeline.prepared import Prepared
from retro_jax.store import artefact, files
from retro_jax.store.workdir import WorkDir
from retro_jax.train import checkpoint, data, memory, processes, restore, sharding
from retro_jax.train.checkpoint import Checkpoints
from retro_jax.train.failure import Watch
from retro_jax.train.log import Log, run_flops, show_parameters
from retro_jax.train.optimizer import decay_begins
from retro_jax.train.profile import tracing
from retro_jax.train.step import init_state, make_train_step
from retro_jax.train.trainable import Trainable
from retro_jax.train.validate import make_validation
from retro_jax.weights.base import open_base


def train(work: WorkDir, method: Trainable, profile: int = 0) -> dict:
    """Trains a method; continues where an earlier run stopped.

    All methods see the same sequences in the same order. A finished run whose learning rate is constant
    goes on if it is given more steps, from its last checkpoint before the rate fell.

    profile: steps that are traced (profile.py), to train/METHOD/profile.

    Returns:
      The manifest of the training run's directory.

    Raises:
      UserError: nothing was prepared, what is there was made with another config, or another process
        trains here.
      Interrupted: SIGTERM or Ctrl-C; it has saved.
      NotFinite: with train.nonfinite = stop.
    """
    e, name, directory = (
        method.trained_with(work.experiment),
        method.name,
        work.trained(method.name),
    )
    check_prepared(work)
    settings, inputs = restore.settings_of(e, method), restore.inputs_of(work, method)
    done = artefact.check(directory, settings, inputs)
    trains = restore.trains(e, method)
    if (
        done
        and done["counts"].get("complete")
        and (not trains or restore.has_all_steps(e.train, done["counts"]))
    ):
        progress.say(f"train/{name}: complete")
        return done
    prepared = Prepared(work)
    vocab = prepared.tokenizer.vocab
    if not trains:
        return _as_it_is(work, method, settings, inputs, vocab)
    sharding.keep_memory()
    mesh = sharding.make_mesh(e.mesh)
    part = e.train.batch // e.train.accumulate
    sharding.check_divides(mesh, e.model, vocab, train_batch=part)
    planned = {"planned": e.train.steps}
    writes = jax.process_index() == 0
    with _alone(work), jax.set_mesh(mesh), processes.StopRequest() as stop:
        given = restore.weights_of_base(e, work, method, mesh)  # refuses a base that does not fit
        if writes:
            files.make_directory(directory)
            checkpoint.clear(directory / "checkpoints")
        processes.wait("directory")
        milestone = decay_begins(e.train) if e.train.schedule == "constant" else None
        checkpoints = Checkpoints(directory / "checkpoints", settings, e.train.keep, milestone)
        if status := stop.status():
            raise processes.Interrupted("stopped before the first step", status)
        if done and done["counts"]["planned"] != e.train.steps:
            _go_back(e.train, done["counts"]["planned"], checkpoints)
            if writes:
                artefact.write(directory, settings, inputs, done["seconds"], planned)
        if checkpoints.latest() is None:
            start, state = 0, init_state(method, e.train, vocab, given)
            show_parameters(state)
        else:
            like = restore.state_like(e, method, vocab, given)
            state, start = checkpoints.restore_newest(like, mesh, given)
            progress.say(f"train/{name}: continues from step {start}")
            if e.train.nonfinite == "stop":  # a run that skipped before
                state = dataclasses.replace(state, skipped=jnp.zeros_like(state.skipped))
        del given  # of a base that is trained the state has copies
        parameters = sum(p.size for p in (state.frozen | state.params).values())
        progress.say(f"train/{name}: {parameters:,} parameters, {e.train.steps} steps")
        if e.train.warmup >= e.train.steps:
            progress.say(
                f"train.warmup = {e.train.warmup} is not less than train.steps: the learning rate only rises; a tenth "
                f"of the steps is usual (train.warmup={max(1, e.train.steps // 10)})"
            )
        if doubtful := method.warning(e.train.steps):
            progress.say(doubtful)
        earlier = (done and done["seconds"]) or 0.0  # of the runs that this one continues
        flops = functools.partial(run_flops, method, e.train, vocab)
        log = Log(directory, start, earlier, e.train, flops)
        read = functools.partial(data.batches, prepared.records("train"), e.train, method)
        watch = Watch(
            directory, settings, e.train.nonfinite == "stop", lambda step: next(read(step))
        )
        watch.start_at(state)
        step_fn = make_train_step(method, e.train)
        validate = make_validation(e.train, prepared.records("heldout"), mesh, method)
        rows = sharding.rows_of(mesh, e.train.batch)

        def placed(batch: dict) -> dict:
            return sharding.shard_batch(mesh, data.arrays(batch), e.train.batch)

        progress.say(f"train/{name}: compiling the train step")
        for at in sorted({start, max(start, method.read_from)}):  # with neighbours it is another
            if at < e.train.steps:
                memory.check_fits(step_fn, e.train, state, placed(next(read(at, rows))))
        if writes and not done:  # claims the directory, so that no other config continues it
            artefact.write(directory, settings, inputs, None, planned)
        batches = read(start, rows)
        with (
            progress.bar(f"training {name}", e.train.steps) as advance,
            tracing(directory / "profile", start, profile if writes else 0) as before,
        ):
            advance(start)
            for step in range(start, e.train.steps):
                before(step, state)
                state, metrics = step_fn(state, placed(next(batches)))
                watch.check(log.report(step + 1, metrics), state)
                advance(1)
                last, status = step + 1 == e.train.steps, stop.status()
                due = (step + 1) % e.train.checkpoint_every == 0 or step + 1 == milestone
                if due or last or status:
                    watch.check(log.finish(), state)
                    # A machine that is preempted has no time to score.
                    nats = None if status and not last else validate(state)
                    if nats is not None:
                        log.validated(step + 1, nats)
                    checkpoints.save(state, step + 1, nats)
                if status and not last:
                    checkpoints.close()
                    log.close()
                    if writes:
                        artefact.write(directory, settings, inputs, log.seconds(), planned)
                    raise processes.Interrupted(
                        f"stopped at step {step + 1} of {e.train.steps} and saved; "
                        "run the same command to continue",
                        status,
                    )
        best = checkpoints.best()
        checkpoints.close()
        log.close()
        counts = planned | {
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
            artefact.write(directory, settings, inputs, log.seconds(), counts)
        processes.wait("manifest")
    if status:
        raise processes.Interrupted(
            f"train/{name} is complete; run the same command to continue", status
        )
    return artefact.read(directory)


@contextlib.contextmanager
def _alone(work: WorkDir) -> Iterator[None]:
    """Nobody else trains here, or prepares anew what is read; of several processes the first one sees to it."""
    refused = None
    with contextlib.ExitStack() as stack:
        if jax.process_index() == 0:
            try:
                stack.enter_context(work.lock("train"))
                stack.enter_context(work.reading())
            except UserError as error:
                refused = error
        if not processes.all_say(refused is None):  # before any leaves the others waiting
            raise refused or UserError("process 0 cannot train here; its message says why")
        yield


def _go_back(train: TrainConfig, planned: int, checkpoints: Checkpoints):
    """Drops the checkpoints that a run of other steps would not have: those where the rate had fallen."""
    before = decay_begins(dataclasses.replace(train, steps=planned))
    limit = min(before, decay_begins(train))
    checkpoints.drop_after(limit)
    if checkpoints.latest() is None:
        progress.say(f"no checkpoint is as early as step {limit}: the run begins anew")


def _as_it_is(work: WorkDir, method: Trainable, settings: dict, inputs: list, vocab: int) -> dict:
    """The manifest of a model that is its base, untrained."""
    directory = work.trained(method.name)
    base = open_base(work.experiment, work.prepared("tokenizer"))  # refuses one that does not fit
    if method.network and not base.retrieval:
        raise UserError(
            f"config field train.steps = 0: {base.path} has no weights by which {method.name} reads, and untrained "
            "ones say nothing: train some (docs/retrofit.md), or leave it out of `methods`"
        )
    progress.say(f"train/{method.name}: the base as it is, nothing is trained")
    counts = {"complete": True, "parameters": restore.parameters(method, vocab), "steps": 0}
    counts |= {"tokens_per_second": None, "best": None, "planned": 0}
    if jax.process_index() == 0:
        files.make_directory(directory)
        artefact.write(directory, settings, inputs, 0.0, counts)
    processes.wait("manifest")
    return artefact.read(directory)
