"""What a loss of power leaves: of a file what was forced to the disk; of names perhaps what they were before.

POSIX promises no more: what fsync of a file has said is written; what fsync of a directory has said are its names.
A process notes what it forces; after it was killed, `lose` takes away what was not, or some of it.
"""

import contextlib
import json
import os
import random
import shutil
from pathlib import Path


def remember(directory: Path, notes: Path):
    """From now on this process writes into an empty folder `notes` what it forces and what names it changes."""
    out = os.open(notes / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    begin = f"{directory}/"

    def note(*what):
        os.write(out, json.dumps(what).encode() + b"\n")

    for folder, _, _ in os.walk(directory):
        note("names", folder, os.listdir(folder))
    for path in directory.rglob("*"):
        if path.is_file():
            _note_file(note, path.stat())
    sync, count = os.fsync, iter(range(10**9))

    def fsync(descriptor):
        sync(descriptor)
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        if f"{path}/".startswith(begin):
            if os.path.isdir(path):
                note("names", path, os.listdir(path))
            else:
                _note_file(note, os.fstat(descriptor))

    def renaming(rename):
        def renamed(source, target, **more):
            source, target, kept = os.path.abspath(source), os.path.abspath(target), None
            if target.startswith(begin) and os.path.isfile(target):
                kept = str(notes / f"{next(count)}-{os.getpid()}")
                os.link(target, kept)
            rename(source, target, **more)
            if target.startswith(begin):
                note("rename", source, target, kept)

        return renamed

    os.fsync, os.rename, os.replace = fsync, renaming(os.rename), renaming(os.replace)


def _note_file(note, stat: os.stat_result):
    note("file", stat.st_ino, stat.st_size, stat.st_mtime_ns)


def _moved(names: dict[str, set], source: str, target: str):
    """What is known of the names in a directory, and in those below it, is known under its new name."""
    for path in [p for p in names if f"{p}/".startswith(f"{source}/")]:
        names[target + path[len(source) :]] = names.pop(path)


def lose(directory: Path, notes: Path, draw: random.Random) -> int:
    """Takes away what was not forced, each thing or not, by chance; returns how many. `notes` is empty then."""
    log = [json.loads(line) for line in (notes / "log").read_text().splitlines()]
    lost, forced, names, renames = 0, {}, {}, []
    for what, *said in log:
        if what == "file":
            forced[said[0]] = said[1:]
        elif what == "names":
            names[said[0]] = set(said[1])
            renames = [r for r in renames if os.path.dirname(r[1]) != said[0]]
        else:
            renames.append(said)
            _moved(names, said[0], said[1])
    for source, target, kept in reversed(
        renames
    ):  # an earlier one may be the folder of a later one
        if draw.random() < 0.5 and os.path.exists(target) and not os.path.exists(source):
            with contextlib.suppress(FileNotFoundError):
                os.rename(target, source)
                _moved(names, target, source)
                lost += 1
                if kept:
                    os.link(kept, target)
    for folder, below, files in os.walk(directory, topdown=True):
        for name in (n for n in (*below, *files) if n not in names.get(folder, ())):
            if draw.random() < 0.3:
                path = os.path.join(folder, name)
                shutil.rmtree(path) if os.path.isdir(path) else os.unlink(path)
                lost += 1
        below[:] = [n for n in below if os.path.isdir(os.path.join(folder, n))]
        for path in (os.path.join(folder, n) for n in files):
            if not os.path.exists(path):
                continue
            stat = os.stat(path)
            size, time = forced.get(stat.st_ino, (0, -1))
            if stat.st_mtime_ns > time and stat.st_size > size and draw.random() < 0.7:
                os.truncate(path, draw.randint(size, stat.st_size - 1))
                lost += 1
    shutil.rmtree(notes)
    notes.mkdir()
    return lost
