"""`retro prepare`, `retro beam`, `retro verify`."""

from retro_jax.cli.command import Command, Flag
from retro_jax.cli.experiment import check, here, keep, load, open_work
from retro_jax.errors import UserError


def _prepare(args, fields) -> int:
    from retro_jax.train import sharding

    if args.estimate is not None:
        return _estimate(args, fields)
    work = keep(open_work(args, fields), args.rebuild)
    sharding.set_up_cpu(work.experiment.mesh.cpu_devices)
    from retro_jax.pipeline.prepare import prepare

    prepare(work, args.rebuild)
    return 0


def _estimate(args, fields) -> int:
    from retro_jax.pipeline import estimate

    size = estimate.parse_size(args.estimate)
    if args.config:
        e = load(args.config, fields)
        check(e)
    else:
        e = open_work(args, fields).experiment
    estimate.show(estimate.estimate(e, size))
    return 0


def _beam(args, fields) -> int:
    work = open_work(args, fields)
    from retro_jax.pipeline.beam.run import run

    run(work, args.options)
    return 0


def _verify(args, fields) -> int:
    from retro_jax import progress
    from retro_jax.train import sharding

    work = here(open_work(args, fields))
    sharding.set_up_cpu(work.experiment.mesh.cpu_devices)
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
