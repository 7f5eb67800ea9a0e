"""Files that are whole or absent: written aside, forced to the disk, and only then given their name."""

import contextlib
import glob
import itertools
import json
import os
import shutil
from pathlib import Path

import google_crc32c

from retro_jax.errors import UserError

_REMOVED = ".removed"
_PIECE = 2**22  # bytes read at a time


def aside(path: Path) -> Path:
    """Where a file or directory is made before it gets its name."""
    return path.with_name(f".{path.name}.partial")


def make_directory(path: Path):
    """Makes a directory, and those above it, unless they are there: for good, so that a loss of power does not take
    away what is put into it. In a bucket there is nothing to force."""
    new = [p for p in (path, *path.parents) if not p.exists()]
    path.mkdir(parents=True, exist_ok=True)
    if isinstance(path, Path):
        for made in reversed(new):
            force(made.parent)


def remove_directory(path: Path):
    """Removes a local directory if it is there. It loses its name first, because on NFS it cannot go while a file of
    it is open: what is left of it then, `.NAME.removed`, goes with the next one of that name."""
    for left in path.parent.glob(f".*{glob.escape(path.name.removesuffix(_REMOVED))}{_REMOVED}"):
        shutil.rmtree(left, ignore_errors=True)
    if path.name.endswith(_REMOVED):
        return
    gone = path.with_name(f".{path.name}{_REMOVED}")
    free = (gone.with_name(f".{n}{gone.name}") if n else gone for n in itertools.count())
    gone = next(p for p in free if not p.exists())
    with contextlib.suppress(FileNotFoundError):
        os.rename(path, gone)
        shutil.rmtree(gone, ignore_errors=True)


def replace(made: Path, path: Path):
    """Gives a file or directory its name, for good: a loss of power leaves the old or the new, whole."""
    force_all(made)
    os.replace(made, path)
    force(path.parent)


def force(path: Path):
    """Has the system write a file, or the names in a directory, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def force_all(path: Path):
    """Has the system write a file to the disk, or a directory with all that is in it."""
    for inside in [path, *path.rglob("*")] if path.is_dir() else [path]:
        force(inside)


def write(path: Path, data: bytes | str):
    """Writes a file that is whole or absent; in a bucket every file is."""
    data = data.encode() if isinstance(data, str) else data
    if isinstance(path, Path):
        write_together({path: data})
    else:
        path.write_bytes(data)


def write_together(contents: dict[Path, bytes]):
    """Writes files that are whole or absent; none gets its name before all are written."""
    asides = {aside(path): path for path in contents}
    try:
        for made, path in asides.items():
            made.write_bytes(contents[path])
        for made, path in asides.items():
            replace(made, path)
    except OSError:
        for made in asides:
            made.unlink(missing_ok=True)
        raise


def write_json(path: Path, value):
    """Writes a value as JSON, whole or absent."""
    write(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def as_json(value):
    """A value as a JSON file gives it back: tuples are lists."""
    return json.loads(json.dumps(value))


def read_json(path: Path, remedy: str):
    """The value of a JSON file.

    remedy: what to do about a damaged one, "delete it and run prepare again" for example.

    Raises:
      FileNotFoundError: there is none.
      UserError: it is damaged; names the file and the remedy.
    """
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is damaged, no JSON ({error}); {remedy}") from error


def checksum(path: Path) -> str:
    """CRC-32C of a file's bytes, in hexadecimal."""
    crc = 0
    with path.open("rb") as file:
        while data := file.read(_PIECE):
            crc = google_crc32c.extend(crc, data)
    return f"{crc:08x}"
