"""`retro run`, `retro train`, `retro replay`."""

import contextlib
import time

from retro_jax.cli.command import CONDITIONS, PREPARED, Command, Flag
from retro_jax.cli.experiment import keep, open_work, ready
from retro_jax.errors import UserError


@contextlib.contextmanager
def _timed(seconds: dict, name: str):
    start = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - start


def run_all(work) -> dict:
    """Every stage of a working directory, then the summary, which it returns."""
    from retro_jax.evaluate.evaluate import evaluate, possible
    from retro_jax.generate.stage import generate
    from retro_jax.methods.train_all import train_all
    from retro_jax.pipeline.prepare import prepare
    from retro_jax.pipeline.recipe import heldout_splits
    from retro_jax.report.summary import summarise

    heldout_splits(work.experiment, own=True)  # before anything slow
    possible(work.experiment)
    seconds: dict[str, float] = {}
    with _timed(seconds, "prepare"):
        prepare(work)
    with _timed(seconds, "train"):
        train_all(work)
    with _timed(seconds, "evaluate"):
        evaluate(work)
    with _timed(seconds, "generate"):
        sample = generate(work)
    return summarise(work, sample, seconds)


def _run(args, fields) -> int:
    work = keep(open_work(args, fields))
    return stopping(work, lambda: run_all(work), False)


def _train(args, fields) -> int:
    if args.profile < 0:
        raise UserError(f"--profile={args.profile}: must be a number of steps")
    work = keep(open_work(args, fields))
    from retro_jax.methods.train_all import train_all
    from retro_jax.pipeline.prepare import prepare

    if work.prepared_in != work.root:
        prepare(work)  # which looks at it, and keeps where it is
    return stopping(work, lambda: train_all(work, profile=args.profile), args.distributed)


def _replay(args, fields) -> int:
    work = open_work(args, fields)

    def again():
        from retro_jax.methods.method import method_of
        from retro_jax.train.failure import replay

        replay(work, lambda name: method_of(work.experiment, name))

    return stopping(work, again, False)


def stopping(work, what, distributed: bool) -> int:
    """Does something that trains; returns the exit status."""
    from retro_jax import progress
    from retro_jax.train import processes
    from retro_jax.train.failure import NotFinite

    ready(work)
    if distributed:
        processes.join()
    try:
        what()
    except processes.Interrupted as stop:
        progress.say(f"retro: {stop}")  # of several processes one says it
        return stop.status
    except NotFinite as error:
        progress.say(f"retro: {error}")
        return 1
    return 0


COMMANDS = (
    Command(
        "run",
        "every stage in order: prepare, train, evaluate, generate; then a summary",
        "retro run --config=experiments/quickstart.py --workdir=runs/mine",
        "DIR with config.json, prepare/, train/, evaluate/, generate.json and summary.json",
        _run,
        (CONDITIONS, PREPARED),
    ),
    Command(
        "train",
        "shards to checkpoints, for each method of the experiment",
        "retro train runs/mine --config.train.log_every=100",
        "DIR/train/METHOD with checkpoints and metrics.jsonl",
        _train,
        (
            PREPARED,
            Flag("--profile", "steps to trace, to DIR/train/METHOD/profile", int, 0),
            Flag("--distributed", "find the other processes of this job (docs/training.md)", bool),
        ),
        more="A run that was stopped goes on from its last checkpoint. A finished run whose learning rate is\n"
        "constant (train.schedule=constant) goes on if train.steps is raised.",
    ),
    Command(
        "replay",
        "the last training step that was not finite, made again: where it is not",
        "retro replay runs/mine",
        "nothing new",
        _replay,
    ),
)
