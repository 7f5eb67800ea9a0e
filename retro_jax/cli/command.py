"""What a command of `retro` is: a name, one page of help, its flags, and a function that runs it."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass

from retro_jax.errors import UserError


@dataclass(frozen=True)
class Flag:
    """One flag of a command, or (without dashes) a word after it; kind: str, int, float, bool (given or not), or of
    words list: any number of them."""

    name: str
    meaning: str
    kind: type = str
    default: object = None


@dataclass(frozen=True)
class Command:
    """A command.

    Attributes:
      does: in one line. example: a command to copy. leaves: what is there afterwards.
      run: from the parsed flags, and the `--config.FIELD=VALUE` that were given, to the exit status.
      experiment: whether it takes a working directory, or --config and --workdir.
      options: whether words after -- are taken, and what they are; else "".
      more: what else its page of help says.
    """

    name: str
    does: str
    example: str
    leaves: str
    run: Callable[[argparse.Namespace, list[str]], int]
    flags: tuple[Flag, ...] = ()
    experiment: bool = True
    options: str = ""
    more: str = ""


EXPERIMENT = (
    Flag("workdir", "the working directory; of a new one, give --config instead"),
    Flag(
        "--config",
        "an experiment: a file experiments/x.py:ARG, or the name x:ARG of an installed one",
    ),
    Flag("--workdir", "where it lies, or is to lie; by default runs/NAME, NAME being the config's"),
)


CONDITIONS = Flag(
    "--conditions",
    "what the network reads in place of its neighbours, beside on and off: names, with commas; all: every one there is",
)


PREPARED = Flag(
    "--prepared",
    "a working directory whose prepared text is used, and not copied; it may be so used by many at once",
)


class Parser(argparse.ArgumentParser):
    """argparse, but a mistake is one line, as every other."""

    def error(self, message: str):
        """Raises UserError."""
        raise UserError(f"{message} ({self.prog} --help)")


def add(parsers, command: Command):
    """Adds a command's parser to sub-parsers."""
    text = f"{command.does}\n\n{command.more}" if command.more else command.does
    after = f"after --:\n  {command.options}\n\n" if command.options else ""
    made = parsers.add_parser(
        command.name,
        help=command.does,
        description=text,
        epilog=f"{after}example:\n  {command.example}\n\nafterwards:\n  {command.leaves}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    for flag in (*(EXPERIMENT if command.experiment else ()), *command.flags):
        _add_flag(made, flag)
    if command.experiment:
        made.add_argument(
            "--config.FIELD", metavar="VALUE", dest="_field", default=argparse.SUPPRESS,
            help="any field of the config (`retro config` lists them)",
        )  # fmt: skip


def _add_flag(parser: argparse.ArgumentParser, flag: Flag):
    given: dict = {"help": flag.meaning}
    if flag.kind is bool:
        given["action"] = "store_true"
    elif flag.name.startswith("--"):
        given |= {"type": flag.kind, "default": flag.default, "metavar": flag.name[2:].upper()}
        if flag.name == "--workdir":
            given["dest"] = "workdir_flag"
        if flag.default is not None:
            given["help"] += f" (default: {flag.default})"
    elif flag.kind is list:
        given["nargs"] = "*"
    else:
        given["nargs"] = "?"
        given["type"] = flag.kind
        given["default"] = flag.default
    parser.add_argument(flag.name, **given)
