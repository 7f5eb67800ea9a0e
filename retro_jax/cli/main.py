"""The command `retro`: finds the command that is asked for, and says in one line what went wrong."""

import contextlib
import errno
import glob
import os
import sys

from retro_jax.cli.command import Parser, add
from retro_jax.cli.compiled import keep_compiled

_REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "make room, or choose another working directory"),
    **dict.fromkeys((errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.EROFS), "choose another working directory"),
}  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status. 2: bad input. 1: training stopped at a step that was not
    finite. 75: SIGTERM (a preempted machine), 130: Ctrl-C; the same command continues."""
    argv = list(sys.argv[1:] if argv is None else argv)
    _choose_platform()
    keep_compiled()
    from retro_jax.errors import UserError

    try:
        return _dispatch(argv)
    except UserError as error:
        return _fail(str(error))
    except BrokenPipeError:  # whoever read, `head` for example, has enough
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        advice = f"; {_REMEDIES[error.errno]}" if error.errno in _REMEDIES else ""
        return _fail(f"{where}{error.strerror or error}{advice}")
    except KeyboardInterrupt:
        print("retro: interrupted; run the same command to continue", file=sys.stderr)
        return 130


def _choose_platform():
    """Without an accelerator JAX is told to take the CPU: libtpu, which `retro plan` compiles with, would look for a
    TPU, and say in many lines that there is none."""
    devices = ("/dev/accel*", "/dev/vfio/[0-9]*", "/dev/nvidia[0-9]*", "/dev/kfd", "/dev/dxg")
    if sys.platform == "linux" and not any(map(glob.glob, devices)):
        os.environ.setdefault("JAX_PLATFORMS", "cpu")


def _dispatch(argv: list[str]) -> int:
    from retro_jax import __version__
    from retro_jax.cli.commands import COMMANDS
    from retro_jax.errors import UserError

    parser = Parser(
        prog="retro",
        description="RETRO, the Retrieval-Enhanced Transformer, in JAX and Flax.",
        epilog="A stage that is complete is skipped, one that was interrupted continues. "
        "`retro COMMAND --help` has a page on each.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"retro_jax {__version__}")
    parsers = parser.add_subparsers(dest="command", metavar="COMMAND")
    for command in COMMANDS.values():
        add(parsers, command)
    if argv[:1] == ["help"]:
        argv = [*argv[1:], "--help"]
    at = argv.index("--") if "--" in argv else len(argv)
    words, options = argv[:at], argv[at + 1 :]
    fields = [word for word in words if word.startswith("--config.")]
    words = [
        word for word in words if word not in fields
    ]  # argparse takes one with a space for a file
    try:
        args, rest = parser.parse_known_args(words)
    except SystemExit as end:  # after --help
        sys.stdout.flush()
        return int(end.code or 0)
    if args.command is None:
        parser.print_help()
        return 2
    command = COMMANDS[args.command]
    args.options = options
    unknown = rest + ([] if command.experiment else fields) + ([] if command.options else options)
    if unknown:
        raise UserError(f"not understood: {' '.join(unknown)} (retro {command.name} --help)")
    return command.run(args, fields) or 0


def _fail(message: str) -> int:
    from retro_jax.terminal import visible  # with rich, which takes a moment

    line = visible(message).replace("\n", "\\n")  # of an id, say: a message is one line
    print(f"retro: {line}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
