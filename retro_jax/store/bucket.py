"""Directories in buckets (gs://, s3://, ... whatever fsspec reaches), copied and removed."""

import shutil
import tempfile
import threading
from pathlib import Path

from upath import UPath

_COPIES: dict[str, tempfile.TemporaryDirectory] = {}
_COPYING = threading.Lock()


def remove(directory: UPath):
    """Deletes a directory, here or in a bucket; it need not be there."""
    if directory.exists():
        directory.fs.rm(directory.path, recursive=True)


def copy(source: UPath, target: UPath):
    """Copies what is in a directory, a piece at a time."""
    source, target = UPath(source), UPath(target)
    for file in sorted(p for p in source.rglob("*") if p.is_file()):
        to = target / str(file.path)[len(str(source.path)) :].lstrip("/")
        to.parent.mkdir(parents=True, exist_ok=True)
        with file.open("rb") as data, to.open("wb") as out:
            shutil.copyfileobj(data, out, 2**22)


def local(directory: Path | UPath) -> Path:
    """A directory as a local one: itself, or a copy that stays until two others are asked for."""
    if isinstance(directory, Path):
        return directory
    where = str(directory)
    with _COPYING:
        if where not in _COPIES:
            if len(_COPIES) > 1:  # on Linux whoever has its files open can still read them
                _COPIES.pop(next(iter(_COPIES))).cleanup()
            made = tempfile.TemporaryDirectory(prefix="retro_jax_")
            copy(directory, UPath(made.name))
            _COPIES[where] = made
        return Path(_COPIES[where].name)
