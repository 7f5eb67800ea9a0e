"""`retro config`, `retro database`, `retro describe`."""

import textwrap
from pathlib import Path

from rich.table import Table

from retro_jax import progress
from retro_jax.cli.command import Command, Flag
from retro_jax.cli.experiment import experiment_of, open_work, ready
from retro_jax.config import Experiment
from retro_jax.errors import UserError
from retro_jax.progress import counted
from retro_jax.terminal import Terminal


def _config(args, fields) -> int:
    if args.config or args.workdir or args.workdir_flag:
        e = experiment_of(args, fields)
    elif fields:
        raise UserError("name a working directory or give --config=FILE to change fields of")
    else:
        e = Experiment()
    from retro_jax.cli.field_list import decided, rows

    print(
        "# [decides STEP]: if the field changes, that step and what is made of it are made again. A field "
        "without\n# this changes no shard; settings of what is not chosen decide nothing until it is."
    )
    steps = decided(e)
    for name, value, default, meaning in rows(e):
        usual = "" if value == default else f"  (default: {default!r})"
        anew = f"  [decides {steps[name]} and what is made of it]" if name in steps else ""
        print(f"{name} = {value!r}{usual}{anew}")
        print(textwrap.fill(meaning, 100, initial_indent="    ", subsequent_indent="    "))
    return 0


def _database(args, fields) -> int:
    from retro_jax.corpus import sources
    from retro_jax.corpus.document import in_words
    from retro_jax.databases.database import PREPARED, Databases
    from retro_jax.pipeline.prepare import check_prepared
    from retro_jax.pipeline.prepared import Prepared

    if args.add is not None and args.delete is not None:
        raise UserError(f"--add={args.add} with --delete={args.delete}: give one at a time")
    work = ready(open_work(args, fields))
    if args.add is not None or args.delete is not None:
        work.own("change its databases")
    check_prepared(work, only_live=True)
    databases = Databases(Prepared(work))
    name = PREPARED if args.database is None else args.database
    if args.add is not None:
        sources.check(args.add, "--add")
        with progress.bar(f"adding to {name}", None) as advance:
            largest = work.experiment.corpus.largest_document
            before = databases.held_out(name) if name in databases.names() else 0
            done = databases.add(name, sources.documents(args.add, "--add", largest), advance)
        skipped = f"; left out: {in_words(done['skipped'])}" if done["skipped"] else ""
        progress.say(
            f"{name}: {counted(done['documents'], 'document')} added in {counted(done['chunks'], 'chunk')}, "
            f"{done['replaced']:,} of them in place of older ones{skipped}"
        )
        if (held := databases.held_out(name)) > before:
            progress.say(
                f"{name}: {counted(held - before, 'document')} of these held out for evaluation, which no longer "
                "measures unseen text"
            )
    elif args.delete is not None:
        ids = [id for id in args.delete.split(",") if id]
        if not ids:
            raise UserError(f"--delete={args.delete}: names no document; give ids, --delete=ID,ID")
        progress.say(
            f"{name}: {counted(databases.delete(name, ids)['documents'], 'document')} deleted"
        )
    elif args.list:
        for id in databases.documents(name):
            print(id)
    else:
        if args.database is not None:
            databases.state(name)  # refuses an unknown one
        _print([d for d in databases.describe() if args.database in (None, d["database"])])
    return 0


def _print(rows: list[dict]):
    table = Table()
    for column in rows[0]:
        table.add_column(column, justify="left" if column == "database" else "right")
    for row in rows:
        table.add_row(*(v if isinstance(v, str) else f"{v:,}" for v in row.values()))
    Terminal().print(table)


def _describe(args, fields) -> int:
    from retro_jax.cli.describe import describe

    if args.path is None:
        raise UserError(
            "name a path, for example: retro describe runs/quickstart/prepare/shards/train 2"
        )
    describe(Path(args.path), args.records)
    return 0


COMMANDS = (
    Command(
        "config",
        "every field of a config: its value, its default, its meaning, and the first step that it decides",
        "retro config --config=experiments/quickstart.py",
        "nothing",
        _config,
    ),
    Command(
        "database",
        "what is retrieved: listed, or changed",
        "retro database runs/mine --add='text:new/*.txt'",
        "DIR/databases/NAME, which live retrieval reads at once",
        _database,
        (
            Flag("--database", "the database to change, `prepared` by default, or to list alone"),
            Flag(
                "--add",
                "documents to add, 'text:new/*.txt'; one whose id is there replaces that one",
            ),
            Flag("--delete", "ids of documents to delete, with commas"),
            Flag(
                "--list",
                "print the ids of its documents: of a file, its path below the folder",
                bool,
            ),
        ),
    ),
    Command(
        "describe",
        "what shards, a working directory or a model's directory hold",
        "retro describe runs/mine/prepare/shards/train 2",
        "nothing",
        _describe,
        (
            Flag("path", "shards, a working directory, or a model's"),
            Flag("records", "of shards: how many records to show", int, 1),
        ),
        experiment=False,
    ),
)
