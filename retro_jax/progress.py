"""Progress bars for a person, plain lines for a log."""

import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.progress import TimeRemainingColumn as Remaining

from retro_jax.terminal import Terminal

console = Terminal(stderr=True)
LOGGED = 60  # seconds between two lines about one bar in a log


@contextlib.contextmanager
def bar(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A progress bar over `total` items; yields `advance(n)`. In a log: a line a minute, and its last state."""
    columns = (
        TextColumn("{task.description:<28}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        Remaining(),
    )
    with Progress(*columns, console=console) as progress:
        progress.add_task(what, total=total)
        (task,) = progress.tasks
        said = time.monotonic()

        def advance(n: int = 1):
            nonlocal said
            progress.advance(task.id, n)
            if not console.is_terminal and time.monotonic() - said >= LOGGED:
                said = time.monotonic()
                of = f" of {total:,}" if total is not None else ""
                say(f"{what}: {task.completed:,}{of} after {task.elapsed / 60:.0f} minutes")

        yield advance


def counted(number: int, what: str) -> str:
    """1 document, 2 documents."""
    return f"{number:,} {what}{'s' * (number != 1)}"


@contextlib.contextmanager
def no_bar(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """In the place of `bar`: shows nothing."""
    yield lambda n=1: None


@contextlib.contextmanager
def hushed() -> Iterator[None]:
    """What a library in C++ writes to standard error by itself is kept back, and shown if it fails."""
    with tempfile.TemporaryFile() as kept:
        real = os.dup(2)
        shown = os.fdopen(os.dup(real), "w") if _writes_to(2) else None
        console.file = shown  # bars go on
        os.dup2(kept.fileno(), 2)
        try:
            yield
        except BaseException:
            kept.seek(0)
            os.write(real, kept.read())
            raise
        finally:
            os.dup2(real, 2)
            console.file = None
            if shown:
                shown.close()
            os.close(real)


def _writes_to(number: int) -> bool:
    try:
        return sys.stderr.fileno() == number
    except (OSError, ValueError, AttributeError):
        return False


def be_quiet():
    """Nothing more is shown: of several processes one speaks for all."""
    console.quiet = True


def show(what):
    """Something that rich can draw."""
    console.print(what)


def say(line: str):
    """One line on the terminal or in the log."""
    console.print(line, markup=False, soft_wrap=True)
