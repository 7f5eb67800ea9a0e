"""The `retro` command: one function a stage, flags, and nothing else.

  retro run      --config=FILE [--workdir=DIR]   every stage in order, then a summary
  retro prepare  --config=FILE [--workdir=DIR]   text -> tokens, chunks, index, neighbours, shards
  retro train    --config=FILE [--workdir=DIR]   shards -> checkpoints
  retro evaluate --config=FILE [--workdir=DIR]   checkpoints -> held-out bits per byte
                 [--text=SOURCE [--name=NAME] [--databases=NAME,NAME=WEIGHT]]   of any text
                 [--task=lambada:FILE|choice:FILE|qa:FILE [--limit=N] [--k=K] [--align]]   of tasks
  retro report   WORKDIR|FILE                    evaluations -> pages that say whether it helps
  retro generate --config=FILE [--workdir=DIR] [--interactive | --prompts=FILE [--rows=8]]
                                                 prompts -> text, with the neighbours that were read
  retro export   --config=FILE --to=DIRECTORY [--baseline] [--decoder]
                                                 weights, tokenizer and a model card, for others to read
  retro serve    --config=FILE [--host=HOST] [--port=8000] [--rows=8] [--length=1024]
                                                 the same over HTTP, for OpenAI's clients and browsers
  retro verify   --config=FILE [--workdir=DIR]   a random share of `prepare`, made again and compared
  retro replay   --config=FILE [--workdir=DIR]   a training step that was not finite, made again
  retro plan     --config=FILE --topology=v5e:4x4 [--mesh=1x16x1] [--baseline] [--json]
                                                 what a train step needs on a machine that is not here
  retro describe PATH [RECORDS]                  what shards, a working directory or a model's hold
  retro database --config=FILE [--database=NAME] [--add=SOURCE | --delete=ID,ID]
                                                 what is retrieved: listed, or changed
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
    "database", "serve", "sizes", "report", "export",
)  # fmt: skip


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
    if stage == "report":
        if len(argv) != 1 or argv[0].startswith("-"):
            raise UserError(
                f"retro report takes a working directory or a tokens.parquet, not {' '.join(argv) or 'nothing'};"
                " for example: retro report runs/quickstart"
            )
        return report(Path(argv[0]))
    if stage == "plan":  # counts and compiles; runs on no chip
        os.environ["JAX_PLATFORMS"] = "cpu"
    from retro_jax.flags import parse

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
            "run": run, "train": train, "verify": verify, "replay": replay,
            "evaluate": functools.partial(evaluate, flags=flags),
            "generate": functools.partial(generate, flags=flags),
            "prepare": functools.partial(prepare, rebuild=flags.rebuild),
            "database": functools.partial(database, flags=flags),
            "serve": functools.partial(serve, flags=flags),
            "export": functools.partial(export, flags=flags),
        }[stage](experiment, root)  # fmt: skip
    except processes.Interrupted as stop:
        progress.say(f"retro: {stop}")  # of several processes one says it
        return stop.status
    except NotFinite as error:
        progress.say(f"retro: {error}")
        return 1
    return 0


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


def evaluate(experiment, root: Path, flags):
    """Checkpoints to held-out bits per byte: of what is prepared, or of any text. Or to answers to a task."""
    from retro_jax import summary
    from retro_jax.errors import UserError
    from retro_jax.evaluate import evaluate as stage

    if flags.task is not None:
        from retro_jax.evaluate import tasks

        if flags.text is not None:
            raise UserError("--task and --text are two evaluations; give one of them")
        databases = (flags.databases or "prepared").split(",")
        tasks.run(
            experiment, root, flags.task, flags.limit, flags.k, flags.align, flags.name, databases
        )
        return
    if flags.limit is not None or flags.k is not None or flags.align:
        raise UserError("--limit, --k and --align are for an evaluation of --task=KIND:FILE")
    if flags.text is None:
        if flags.name is not None or flags.databases is not None:
            raise UserError(
                "--name and --databases are for an evaluation of --text=SOURCE or --task=KIND:FILE"
            )
        results = stage.evaluate(experiment, root)
    else:
        name, databases = flags.name or "text", (flags.databases or "prepared").split(",")
        results = {name: stage.evaluate_text(experiment, root, flags.text, name, databases)}
    summary.print_evaluations({split: m["counts"] for split, m in results.items()})


def generate(experiment, root: Path, flags):
    """Prompts to text: the config's one, those of a file, or what a person types."""
    from retro_jax.errors import UserError
    from retro_jax.generate import interactive, show, stage

    if flags.rows is not None and flags.prompts is None:
        raise UserError(f"--rows={flags.rows}: is for --prompts=FILE")
    if flags.rows is not None and flags.rows < 1:
        raise UserError(f"--rows={flags.rows}: must be at least 1")
    if flags.interactive and flags.prompts is not None:
        raise UserError(f"--interactive with --prompts={flags.prompts}: give one of them")
    if flags.interactive:
        return interactive.converse(experiment, root)
    if flags.prompts is None:
        return show.print_sample(stage.generate(experiment, root))
    rows = flags.rows or stage.ROWS
    print(stage.generate_file(experiment, root, Path(flags.prompts), rows))
    return None


def serve(experiment, root: Path, flags):
    """Prompts that come over HTTP to text, until it is stopped."""
    from retro_jax.errors import UserError

    given = {"host": "127.0.0.1", "port": 8000, "rows": 8, "length": 1024}
    given |= {name: flags[name].value for name in given if flags[name].present}
    for name, most in (("port", 65535), ("rows", 2**10), ("length", 2**20)):
        if not 1 <= given[name] <= most:
            raise UserError(f"--{name}={given[name]}: must lie between 1 and {most:,}")
    from retro_jax.serve import server

    server.serve(experiment, root, **given)


def export(experiment, root: Path, flags):
    """Weights to a directory that others read."""
    from retro_jax.errors import UserError
    from retro_jax.interop import export as stage

    if flags.to is None:
        raise UserError("retro export: --to is missing, for example --to=models/fitted")
    retrieval = "retro" in experiment.train.models and not flags.baseline
    stage.export(experiment, root, Path(flags.to), retrieval, flags.decoder)
    print(flags.to)


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


def database(experiment, root: Path, flags):
    """The databases, or a change of one."""
    from retro_jax.retrieval import command

    command.run(experiment, root, flags.database, flags.add, flags.delete)


def run(experiment, root: Path):
    """Every stage, then the summary."""
    from retro_jax import summary
    from retro_jax.evaluate import evaluate as evaluation
    from retro_jax.generate.stage import generate as generation

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


def report(path: Path) -> int:
    """The rows of evaluations to pages; prints what was written."""
    from retro_jax import report as stage

    for file in stage.find(path):
        page = stage.report(file)
        for suffix in (".html", ".json", ".md"):
            print(page.with_suffix(suffix))
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
