"""Processes that are killed when something happens, not after a time: at an operation on a file.

Whoever uses this forks before JAX and BLAS have started threads: they run in the children only.
"""

import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

Moment = Callable[[str, str], object]  # (operation, path below the directory) -> whether it is now
CHANGES = ("write", "mkdir", "rename", "remove", "rmdir", "rmtree")


def live(
    do: Callable[[], None], directory: Path, killed_at: Moment = lambda what, path: False
) -> str:
    """Calls `do` in a process of its own; the operation that it was killed at, or "" if it came to its
    end.

    killed_at: asked before each operation on a file of `directory`: `read` and `write` (a file is
      opened), and the rest of CHANGES; a rename is asked for with the new name. In a directory that is
      being removed names are bare. Also before `record`, if `do` says sys.audit("a.record", path).
      Where it says yes, the process gets SIGKILL.
    """
    told, tell = os.pipe()
    pid = os.fork()
    if not pid:

        def die(what: str, path: str):
            os.write(tell, f"{what} {path}".encode())
            os.kill(os.getpid(), signal.SIGKILL)

        try:
            watch(directory, killed_at, die)
            do()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    os.close(tell)
    with os.fdopen(told) as file:
        where = file.read()
    _, status = os.waitpid(pid, 0)
    assert status == (signal.SIGKILL if where else 0), status
    return where


def watch(directory: Path, moment: Moment, do: Callable[[str, str], None]):
    """Has this process call `do` (with operation and path) before an operation on a file of `directory`,
    whenever it is the moment."""
    begin = f"{directory}/"

    def look(event: str, args: tuple):
        what = event.rpartition(".")[2]
        if event == "open":
            what = "write" if isinstance(args[2], int) and args[2] & 3 else "read"
        elif what not in (*CHANGES, "record"):
            return
        path = str(args[1] if what == "rename" else args[0])
        bare = what in ("remove", "rmdir") and "/" not in path
        if bare or path.startswith(begin):
            path = path.removeprefix(begin)
            if moment(what, path):
                do(what, path)

    sys.addaudithook(look)


def nth(n: int, *operations: str, path: Callable[[str], object] = lambda path: True) -> Moment:
    """The n-th (from 1) of these operations on such a path."""
    seen = 0

    def now(what: str, where: str) -> bool:
        nonlocal seen
        one = what in operations and bool(path(where))
        seen += one
        return one and seen == n

    return now


def then(first: Moment, second: Moment) -> Moment:
    """The second moment, once the first has been."""
    been = False

    def now(what: str, where: str) -> bool:
        nonlocal been
        if not been:
            been = bool(first(what, where))
            return False
        return bool(second(what, where))

    return now
