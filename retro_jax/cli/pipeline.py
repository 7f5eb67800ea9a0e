"""`retro prepare`, `retro beam`, `retro verify`."""

from retro_jax.cli.command import Command, Flag
from retro_jax.cli.experiment import experiment_of, keep, open_work, ready
from retro_jax.errors import UserError


def _prepare(args, fields) -> int:
    if args.estimate is not None:
        return _estimate(args, fields)
    work = ready(keep(open_work(args, fields), args.rebuild))
    from retro_jax.pipeline.prepare import prepare

    prepare(work, args.rebuild)
    return 0


def _estimate(args, fields) -> int:
    from retro_jax.pipeline import estimate

    size = estimate.parse_size(args.estimate)
    estimate.show(estimate.estimate(experiment_of(args, fields), size))
    return 0


def _beam(args, fields) -> int:
    work = open_work(args, fields)
    from retro_jax.pipeline.beam.run import run

    run(work, args.options)
    return 0


def _verify(args, fields) -> int:
    from retro_jax import progress

    work = ready(open_work(args, fields))
    from retro_jax.pipeline.verify import verify

    if not 0 < args.share <= 1:
        raise UserError(f"--share={args.share}: must lie between 0 and 1")
    compared = verify(work, args.share)
    parts = (f"{n:,} {unit} of {name}" for name, (n, unit) in compared.items())
    progress.say("every checksum is right; the same, bit for bit: " + ", ".join(parts))
    return 0


COMMANDS = (
    Command(
        "prepare",
        "text to tokens, chunks, index, neighbours and TFRecord shards",
        "retro prepare --config=experiments/quickstart.py --config.corpus.source='text:my/**/*.txt'",
        "DIR/config.json and DIR/prepare, a directory a step",
        _prepare,
        (
            Flag(
                "--rebuild",
                "make steps again that were made with other fields, and what comes after",
                bool,
            ),
            Flag(
                "--estimate", "print what so much text would cost instead, 30GB or 1TB for example"
            ),
        ),
    ),
    Command(
        "beam",
        "prepare on Apache Beam, for corpora larger than a machine",
        "retro beam --config=experiments/retro.py:172m --workdir=gs://BUCKET/172m -- --runner=DataflowRunner",
        "DIR/prepare, the same as `retro prepare` leaves",
        _beam,
        options="options of Beam's pipeline, its runner among them",
    ),
    Command(
        "verify",
        "every file's checksum, and a random share of what is prepared made again and compared",
        "retro verify runs/mine",
        "nothing new",
        _verify,
        (Flag("--share", "of every step", float, 0.05),),
    ),
)
