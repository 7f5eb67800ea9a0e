"""`retro generate --interactive`: a person types prompts, with editing and history."""

import ast
import contextlib
import dataclasses
import queue
import readline
from pathlib import Path

from rich.live import Live

from retro_jax import progress
from retro_jax.config import Experiment, Request, from_config_dict
from retro_jax.errors import UserError
from retro_jax.generate import show
from retro_jax.generate.chat import Chat, asks
from retro_jax.generate.generator import Generator
from retro_jax.store.workdir import WorkDir

LENGTH = 2048  # tokens of a prompt and its continuation
HELP = """\
Type a prompt; a line that ends in \\ goes on in the next one. Up and down: what was typed before.
:set FIELD=VALUE   one of: {fields}
                   for example :set stop=["\\n\\n"]  :set where={{"licence": ["CC0"]}}
:show              how the next prompt will be continued
:new               begins another conversation (--chat)
:help  :quit       (or Ctrl-D); Ctrl-C ends a continuation"""


def converse(work: WorkDir, method: str = "retro", chat: bool = False):
    """Reads prompts from the terminal until there are no more; shows each continuation as it comes, and
    then what it read. chat: lines are a user's messages of one conversation, until `:new`."""
    experiment = work.experiment
    request = dataclasses.replace(experiment.generate, contributions=True)
    rows = 1 + experiment.retrieval.neighbours
    opened = Generator.open(work, method, rows=rows, length=LENGTH)
    with opened as generator, _history(work.history):
        made, messages = Chat(generator.tokenizer) if chat else None, []
        progress.say(_help())
        while True:
            try:
                line = _read()
            except EOFError:
                return
            except KeyboardInterrupt:
                print()
                continue
            if line in (":quit", ":q"):
                return
            try:
                if line == ":new":
                    messages.clear()
                elif line.startswith(":"):
                    request = command(experiment, request, line)
                elif line and chat:
                    _answer(generator, made, messages, dataclasses.replace(request, prompt=line))
                elif line:
                    continue_one(generator, dataclasses.replace(request, prompt=line))
            except UserError as error:
                progress.say(f"retro: {error}")


def command(experiment: Experiment, request: Request, line: str) -> Request:
    """What a line that begins with a colon makes of the request.

    Raises:
      UserError: no such command, field or value.
    """
    word, _, rest = line[1:].strip().partition(" ")
    if word == "help":
        progress.say(_help())
    elif word == "show":
        for name, value in dataclasses.asdict(request).items():
            progress.say(f"{name} = {value!r}")
    elif word == "set" and "=" in rest:
        name, _, text = (part.strip() for part in rest.partition("="))
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = text
        if isinstance(value, str) and isinstance(getattr(request, name, None), tuple):
            value = [value]
        return from_config_dict(
            {"name": experiment.name, "generate": dataclasses.asdict(request) | {name: value}}
        ).generate
    else:
        raise UserError(f"{line}: no such command; `:set k=0`, `:show`, `:help` or `:quit`")
    return request


def _answer(generator: Generator, chat: Chat, messages: list[dict], request: Request):
    """Answers one more message, and adds both to the conversation."""
    asked = [*messages, {"role": "user", "content": request.prompt}]
    made, passages = asks(generator, chat, asked, request)
    told = {"question": request.prompt, "passages": passages}
    sample = continue_one(generator, made, told)
    messages[:] = [*asked, {"role": "assistant", "content": sample["text"]}]


def continue_one(generator: Generator, request: Request, told: dict | None = None) -> dict:
    """Shows a continuation as it comes, then coloured, with what it read; returns it. Ctrl-C ends it.

    told: what is to be shown beside it (`show.print_sample`).
    """
    told = told or {}
    pieces, text = queue.SimpleQueue(), ""
    work = generator.submit(request, pieces.put)
    with Live("", console=show.out, transient=True) as live:
        with contextlib.suppress(KeyboardInterrupt):
            while (piece := pieces.get()) is not None:
                text += piece.text
                live.update(show.plain(told.get("question", request.prompt), text))
        work.cancel()
        sample = work.result().to_json() | told
    show.print_sample(sample)
    return sample


def _read() -> str:
    line = input("> ")
    while line.endswith("\\"):
        line = line[:-1] + "\n" + input(". ")
    return line


def _help() -> str:
    return HELP.format(
        fields=", ".join(f.name for f in dataclasses.fields(Request) if f.name != "prompt")
    )


@contextlib.contextmanager
def _history(file: Path):
    """What was typed before, kept in the working directory."""
    readline.set_history_length(1000)
    with contextlib.suppress(OSError):
        readline.read_history_file(file)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            readline.write_history_file(file)
