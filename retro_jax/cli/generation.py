"""`retro generate`, `retro sources`, `retro serve`."""

import re
from pathlib import Path

from retro_jax.cli.command import Command, Flag
from retro_jax.cli.config_file import over
from retro_jax.cli.experiment import open_work, ready
from retro_jax.errors import UserError
from retro_jax.store.workdir import WorkDir


def _generate(args, fields) -> int:
    if args.rows is not None and args.prompts is None:
        raise UserError(f"--rows={args.rows}: is for --prompts=FILE")
    if args.rows is not None and args.rows < 1:
        raise UserError(f"--rows={args.rows}: must be at least 1")
    if args.chat and args.prompts is not None:
        raise UserError(f"--chat with --prompts={args.prompts}: give one of them")
    if args.interactive and args.prompts is not None:
        raise UserError(f"--interactive with --prompts={args.prompts}: give one of them")
    work = ready(open_work(args, fields))
    if args.prompt is not None:
        given = over(work.experiment, ["--config.generate.prompt=" + args.prompt])
        work = WorkDir(work.root, given)
    from retro_jax.generate import interactive, show, stage

    if args.interactive:
        interactive.converse(work, _method(args, work), args.chat)
    elif args.prompts is None:
        show.print_sample(stage.generate(work, _method(args, work), args.chat))
    else:
        method = _method(args, work)
        print(stage.generate_file(work, Path(args.prompts), args.rows or stage.ROWS, method))
    return 0


def _sources(args, fields) -> int:
    work, questions = ready(open_work(args, fields)), []
    if args.questions is not None:
        try:
            lines = Path(args.questions).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"--questions={args.questions}: cannot be read ({error}); give a file with a question a line"
            ) from error
        questions = [line.strip() for line in lines if line.strip()]
        if not questions:
            raise UserError(f"--questions={args.questions}: holds none; write one a line")
    from retro_jax import progress
    from retro_jax.evaluate import sources_threshold

    told = sources_threshold.calibrate(work, _method(args, work), questions)
    progress.say(
        f"a document is a sentence's source from {told['threshold']:.2f} nats on: {told['named']:.1%} of "
        f"{told['sentences']:,} sentences have one; by another text's documents {told['false']:.1%} would"
    )
    if told["false"] > sources_threshold.FALSE:
        more = "Give more questions" if told["chat"] else "Hold out more documents (corpus.heldout)"
        progress.say(
            f"that is more than {sources_threshold.FALSE:.0%}: {told['sentences']:,} sentences are too few to set a "
            f"threshold well; it is used all the same. {more}, and run this again"
        )
    return 0


def _serve(args, fields) -> int:
    for name, most in (("port", 65535), ("rows", 2**10), ("length", 2**20)):
        value = getattr(args, name)
        if not 1 <= value <= most:
            raise UserError(f"--{name}={value}: must lie between 1 and {most:,}")
    origins = tuple(o.lower() for o in args.origins.split(",") if o)
    for origin in origins:
        if origin != "*" and not re.fullmatch(r"https?://[^/?#@,\s]+", origin):
            raise UserError(
                f"--origins={args.origins}: {origin} is none; give https://example.org, or * for all pages"
            )
    work = ready(open_work(args, fields))
    from retro_jax.methods.method import method_of
    from retro_jax.serve import server

    methods = tuple(dict.fromkeys(_method(args, work).split(",")))
    for name in methods:
        method_of(work.experiment, name)  # refuses one that there is not before any is opened
    names = tuple(n.lower() for n in args.names.split(",") if n)
    given = args.host, args.port, args.rows, args.length, methods, names, origins
    server.serve(work, *given)
    return 0


_METHOD = Flag(
    "--method",
    "the method that generates (`retro config` lists them); by default retro, or rag where that is not trained",
)


def _method(args, work: WorkDir) -> str:
    return args.method or ("retro" if "retro" in work.experiment.methods else "rag")


COMMANDS = (
    Command(
        "generate",
        "prompts to text, with the neighbours that were read",
        "retro generate runs/mine --prompt='import os' --config.generate.tokens=64",
        "DIR/generate.json; of --prompts, DIR/completions/NAME/completions.jsonl",
        _generate,
        (
            Flag("--prompt", "the text to continue; by default generate.prompt"),
            Flag(
                "--chat",
                "the prompt is a question to a model with a chat template, which is answered (docs/chat.md)",
                bool,
            ),
            Flag("--interactive", "type prompts, with editing and history", bool),
            Flag("--prompts", "a file: a prompt a line, or of JSONL a request a line"),
            Flag("--rows", "of --prompts: prompts that are continued together", int),
            _METHOD,
        ),
    ),
    Command(
        "sources",
        "from when on a document is named as a sentence's source by `retro serve`",
        "retro sources runs/chat --questions=questions.txt",
        "DIR/sources/METHOD.json",
        _sources,
        (
            _METHOD,
            Flag("--questions", "of a model that chats: a file of questions, one a line"),
        ),
    ),
    Command(
        "serve",
        "the same over HTTP, for OpenAI's clients and browsers",
        "retro serve runs/mine --port=8000",
        "nothing new; databases that clients change are below DIR/databases",
        _serve,
        (
            Flag("--host", "address to listen on", str, "127.0.0.1"),
            Flag("--port", "port to listen on", int, 8000),
            Flag(
                "--names", "more host names by which clients may ask for it, with commas", str, ""
            ),
            Flag(
                "--origins",
                "where pages that may ask are from, https://example.org, with commas, or * for all; by default all "
                "where there is a key, none where there is none",
                str,
                "",
            ),
            Flag("--rows", "continuations that are decoded together", int, 8),
            Flag(
                "--length", "tokens that a prompt and its continuation can have together", int, 1024
            ),
            Flag(
                "--method",
                "methods that requests can name, with commas; the first answers where none is named; by default retro, "
                "or rag where that is not trained",
            ),
        ),
    ),
)
