"""The `retro` command: one function a stage, flags, and nothing else.

  retro run      --config=FILE [--workdir=DIR]   every stage in order, then a summary
  retro prepare  --config=FILE [--workdir=DIR]   text -> tokens, chunks, index, neighbours, shards
  retro train    --config=FILE [--workdir=DIR]   shards -> checkpoints
  retro evaluate --config=FILE [--workdir=DIR]   checkpoints -> held-out bits per byte
  retro generate --config=FILE [--workdir=DIR]   a prompt -> text, with the neighbours it read
  retro verify   --config=FILE [--workdir=DIR]   a random share of `prepare`, made again and compared
  retro replay   --config=FILE [--workdir=DIR]   a training step that was not finite, made again
  retro plan     --config=FILE --topology=v5e:4x4 [--mesh=1x16x1] [--baseline] [--json]
                                                 what a train step needs on a machine that is not here
  retro describe PATH [RECORDS]                  what shards or a working directory hold
  retro sizes    [--json]                        the paper's four sizes, counted from the model
  retro prepare  --config=FILE --estimate=1TB    what it would cost for so much text, from a sample

A stage that is complete is skipped, one that was interrupted continues; one that was made with another
config is refused, but `retro prepare --rebuild` makes again what depends on what was changed. Without
--workdir the artefacts go to runs/NAME, NAME being the config's. Any field of the config can be set:

  retro run --config=experiments/quickstart.py --config.train.steps=100 --workdir=runs/short
  retro generate --config=experiments/quickstart.py --config.generate.prompt='import os'
"""

import contextlib
import functools
import os
import sys
import time
from pathlib import Path

STAGES = (
    "run", "prepare", "train", "evaluate", "generate", "verify", "replay", "plan", "describe",
    "sizes",
)  # fmt: skip

# Flags of one stage.
FLAGS = {
    "estimate": ("prepare", str),
    "rebuild": ("prepare", bool),
    "distributed": ("train", bool),
    "topology": ("plan", str),
    "mesh": ("plan", str),
    "baseline": ("plan", bool),
    "json": ("plan", bool),
}


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status. 2: bad input. 1: training stopped at a step that was not
    finite. 75: SIGTERM (a preempted machine), 130: Ctrl-C; the same command continues."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(__doc__)
        return 0 if argv else 2
    from retro_jax.errors import UserError

    try:
        return _dispatch(argv[0], argv[1:])
    except UserError as error:
        return _fail(str(error))
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        why = error.strerror or error
        return _fail(f"{where}{why}; make room or mend it, or choose another --workdir")
    except KeyboardInterrupt:
        print("retro: interrupted; run the same command to continue", file=sys.stderr)
        return 130


def _dispatch(stage: str, argv: list[str]) -> int:
    from retro_jax.errors import UserError

    if stage not in STAGES:
        raise UserError(f"no stage {stage!r}: one of {', '.join(STAGES)} (retro --help)")
    if {"-h", "--help"} & set(argv):
        print(__doc__)
        return 0
    if stage == "sizes":
        if set(argv) - {"--json"}:
            raise UserError(f"retro sizes takes --json and nothing else, not {' '.join(argv)}")
        return sizes("--json" in argv)
    if stage == "describe":
        if len(argv) not in (1, 2) or not all(a.isdecimal() for a in argv[1:]):
            raise UserError(
                f"retro describe takes a path and a number of records, not {' '.join(argv) or 'nothing'};"
                " for example: retro describe runs/quickstart/prepare/shards/train 2"
            )
        return describe(Path(argv[0]), *map(int, argv[1:]))
    if stage == "plan":  # libtpu is to compile only: it looks for no chip, and says nothing
        os.environ |= {
            "JAX_PLATFORMS": "cpu",
            "TPU_SKIP_MDS_QUERY": "1",
            "TPU_WORKER_HOSTNAMES": "localhost",
            "TPU_ACCELERATOR_TYPE": "v5litepod-8",
            "TPU_STDERR_LOG_LEVEL": "3",
            "TPU_MIN_LOG_LEVEL": "3",
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # another plan may be under way
        }
    experiment, root, flags = parse(stage, argv)
    if "://" in (flags.workdir or ""):
        raise UserError(
            f"--workdir={flags.workdir}: must be a folder, local or mounted; only `python -m retro_jax.beam` "
            "prepares in a bucket"
        )
    if flags.topology is not None:
        return plan(experiment, flags)
    from retro_jax import progress
    from retro_jax.train import processes, sharding
    from retro_jax.train.failure import NotFinite

    sharding.set_up_cpu(experiment.mesh.cpu_devices)
    if flags.distributed:
        processes.join()
    if flags.estimate is not None:
        return estimate(experiment, flags.estimate)
    try:
        {
            "run": run,
            "prepare": functools.partial(prepare, rebuild=flags.rebuild),
            "train": train,
            "evaluate": evaluate,
            "generate": generate,
            "verify": verify,
            "replay": replay,
        }[stage](experiment, root)
    except processes.Interrupted as stop:
        progress.say(f"retro: {stop}")  # of several processes one says it
        return stop.status
    except NotFinite as error:
        progress.say(f"retro: {error}")
        return 1
    return 0


def parse(stage: str, argv: list[str]):
    """--config, --workdir and the stage's own flags -> (Experiment, Path, flags)."""
    from absl import flags
    from ml_collections import config_flags

    from retro_jax.config import from_config_dict
    from retro_jax.errors import UserError

    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "Experiment file.", flag_values=values)
    flags.DEFINE_string("workdir", None, "Directory of the artefacts.", flag_values=values)
    for name, (own, kind) in FLAGS.items():
        define, unset = (flags.DEFINE_bool, False) if kind is bool else (flags.DEFINE_string, None)
        define(name, unset, f"Of {own}.", flag_values=values)
    for path in (a.removeprefix("--config=") for a in argv if a.startswith("--config=")):
        if not Path(path.partition(":")[0]).is_file():
            raise UserError(f"--config={path}: no such file")
    sys.argv = ["retro", *argv]  # where ml_collections looks for --config.FIELD=VALUE
    try:
        left = values(sys.argv)[1:]
        # A file that cannot be loaded shows only when the config is read.
        config = values.config and values.config.to_dict()
    except UserError:
        raise
    except Exception as error:  # whatever an experiment file can raise
        # str() of a KeyError, which an unknown field is, would quote its text.
        text = error
        while isinstance(text, Exception):
            text = text.args[0] if len(text.args) == 1 else str(text)
        words = str(text).strip()
        if "Traceback (most recent call last)" in words:  # ends with what was raised
            last = words.splitlines()[-1]
            words = last.partition("Error: ")[2] or last
        raise UserError(
            f"config: {' '.join(words.split())} (`retro --help` shows how fields are set)"
        ) from error
    if config is None:
        raise UserError("--config is missing, for example --config=experiments/quickstart.py")
    if left:
        raise UserError(f"not understood: {' '.join(left)} (retro --help)")
    for name, (own, _) in FLAGS.items():
        if values[name].present and own != stage:
            raise UserError(f"--{name} is for retro {own}, not retro {stage}")
    if stage == "plan" and values.topology is None:
        raise UserError("retro plan: --topology is missing, for example --topology=v5e:4x4")
    experiment = from_config_dict(config)
    return experiment, Path(values.workdir or Path("runs") / experiment.name), values


def prepare(experiment, root: Path, rebuild: bool = False):
    """Text to shards."""
    from retro_jax import prepare as stage

    stage.prepare(experiment, root, rebuild)


def estimate(experiment, size: str) -> int:
    """What preparing so much text would cost."""
    from retro_jax import estimate as stage

    stage.show(stage.estimate(experiment, stage.parse_size(size)))
    return 0


def plan(experiment, flags) -> int:
    """What a train step needs on a machine that is not here. Exit status 0 also if it does not fit."""
    import dataclasses

    from retro_jax.plan import plan as stage
    from retro_jax.plan import topology

    if flags.mesh is not None:
        experiment = dataclasses.replace(experiment, mesh=stage.parse_mesh(flags.mesh))
    on, retro = topology.parse(flags.topology), "retro" in experiment.train.models
    made = stage.plan(experiment, on, stage.vocab_of(experiment), retro and not flags.baseline)
    stage.show(made, flags.json)
    return 0


def train(experiment, root: Path):
    """Shards to checkpoints: RETRO, its baseline, or both."""
    from retro_jax.train import loop

    for model in experiment.train.models:
        loop.train(experiment, root, retrieval=model == "retro")


def evaluate(experiment, root: Path):
    """Checkpoints to held-out bits per byte."""
    from retro_jax import summary
    from retro_jax.evaluate import evaluate as stage

    results = stage.evaluate(experiment, root)
    summary.print_evaluations({split: m["counts"] for split, m in results.items()})


def generate(experiment, root: Path):
    """A prompt to text."""
    from retro_jax import generate as stage
    from retro_jax import summary

    summary.print_sample(stage.generate(experiment, root))


def verify(experiment, root: Path):
    """A random share of what is prepared, made again."""
    from retro_jax import progress
    from retro_jax import verify as stage

    compared = stage.verify(experiment, root)
    progress.say(
        "the same, bit for bit: "
        + ", ".join(
            f"{n:,} {stage.PARTS[name.partition('/')[0]]} of {name}" for name, n in compared.items()
        )
    )


def replay(experiment, root: Path):
    """The last training step that was not finite, made again."""
    from retro_jax.train import failure

    failure.replay(experiment, root)


def run(experiment, root: Path):
    """Every stage, then the summary."""
    from retro_jax import summary
    from retro_jax.evaluate import evaluate as evaluation
    from retro_jax.generate import generate as generation

    seconds = {}
    with _timed(seconds, "prepare"):
        prepare(experiment, root)
    with _timed(seconds, "train"):
        train(experiment, root)
    with _timed(seconds, "evaluate"):
        evaluation.evaluate(experiment, root)
    with _timed(seconds, "generate"):
        sample = generation(experiment, root)
    summary.summarise(experiment, root, sample, seconds)


@contextlib.contextmanager
def _timed(seconds: dict, name: str):
    start = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - start


def describe(path: Path, records: int = 1) -> int:
    """What shards or a working directory hold."""
    from retro_jax import describe as stage

    stage.describe(path, records)
    return 0


def sizes(as_json: bool) -> int:
    """The paper's four sizes."""
    from retro_jax import summary
    from retro_jax.model.sizes import table

    summary.print_sizes(table(), as_json)
    return 0


def _fail(message: str) -> int:
    print(f"retro: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
