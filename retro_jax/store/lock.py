"""Two processes do not meet in one directory: a lock for each stage, freed when its holder ends."""

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from retro_jax.errors import UserError

_DOING = {
    "prepare": "preparing",
    "train": "training",
    "evaluate": "evaluating",
    "generate": "generating",
    "run": "at work",
}


@contextlib.contextmanager
def lock(directory: Path, stage: str, shared: bool = False, wait: bool = False) -> Iterator[None]:
    """Holds a stage of a working directory; others that want it are refused.

    On a disk the lock is the system's (flock), which a kill frees. In a bucket it is a file that is
    made only if it is absent; a kill leaves it there, and the message says which file to delete.

    Args:
      directory: of the locks; made if it is missing.
      shared: hold it together with others that only read what the stage made.
      wait: until it is free, instead of being refused (not in a bucket).

    Raises:
      UserError: another process holds it; says which.
    """
    own = f"pid {os.getpid()} on {socket.gethostname()}"
    path = directory / f"{stage}.lock"
    if not isinstance(path, Path):
        with _in_bucket(path, stage, own):
            yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            how = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
            fcntl.flock(file, how if wait else how | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise UserError(_refusal(path, stage, file.read().strip())) from error
        file.truncate(0)
        file.write(own)
        file.flush()
        yield


@contextlib.contextmanager
def _in_bucket(path, stage: str, own: str) -> Iterator[None]:
    try:
        with path.fs.open(path.path, "xb") as file:
            file.write(own.encode())
    except FileExistsError as error:
        holder = path.read_text()
        raise UserError(
            f"{_refusal(path, stage, holder)} (if it was killed, delete {path})"
        ) from error
    except (ValueError, NotImplementedError):  # this kind of bucket cannot say "only if absent"
        path.write_text(own)
    try:
        yield
    finally:
        path.fs.rm(path.path)


def _refusal(path, stage: str, holder: str) -> str:
    doing = _DOING.get(stage, f"in stage {stage}")
    return (
        f"{path.parent.parent}: another retro, {holder or 'which has just begun'}, is {doing} here, or "
        "reads what is there; wait for it, or end it"
    )
