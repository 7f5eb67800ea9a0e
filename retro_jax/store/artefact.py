"""Artefacts of a working directory: whole or absent, and made with the settings that are asked for.

An artefact is a directory with a `manifest.json`: its settings, what it was made from, the size and
checksum of every file, counts, seconds and versions. It is built aside and renamed when it is complete,
so that no later stage can read a half of it.
"""

import datetime
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from safetensors import SafetensorError

from retro_jax import progress
from retro_jax.errors import UserError
from retro_jax.store import files, provenance

_GOING = re.compile(r"(^|/)(\.nfs|[^/]*\.removed(/|$))")  # what NFS keeps while it is open
PURPOSE = "building.json"  # in a directory that is being built: settings and inputs
MANIFEST = "manifest.json"
_SAID = 4  # fields that differ, of which a refusal tells


def build(path: Path, settings: dict, inputs: Iterable[Path], make: Callable[[Path], dict]) -> dict:
    """The manifest of the artefact at `path`, which is built if it is not there.

    What a build that was killed, or that could not write, has left aside is built on, if it was to
    become the same.

    Args:
      path: the artefact's directory.
      settings: every config field that it depends on, {"corpus.vocab": 4096}.
      inputs: the artefacts that it is made from.
      make: writes the artefact into the directory that it is given, which is empty or holds what an
        earlier call had written when it was stopped; returns its counts.

    Raises:
      UserError: what is there was made with other settings or from other inputs, or it cannot be
        written.
    """
    done = check(path, settings, inputs)
    if done:
        return done
    partial, purpose = files.aside(path), purpose_of(path, settings, inputs)
    try:
        if not _is_finished(partial, purpose):
            if read_purpose(partial) != purpose:
                files.remove_directory(partial)
                files.make_directory(partial)
                files.write_json(partial / PURPOSE, purpose)
            start, cpu = time.perf_counter(), time.process_time()
            counts = make(partial)
            seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
            for left in [p for p in partial.rglob(".*.partial") if p.is_file()]:
                left.unlink()  # of a kill in the middle of `files.write`
            write(partial, settings, inputs, seconds, counts, cpu, sums(partial))
        (partial / PURPOSE).unlink(missing_ok=True)
        files.replace(partial, path)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{path}: cannot be written ({error}); make room, or choose another working directory"
        ) from error
    except UserError:  # the config or the input has to change first
        files.remove_directory(partial)
        raise
    return read(path)


def renew(path: Path, settings: dict, inputs: Iterable[Path], make: Callable[[Path], dict]) -> dict:
    """As `build`, but what was made with other settings, from other inputs, or is damaged is made again: for what no
    stage reads that would not be made again too."""
    inputs = list(inputs)
    if wrong := outdated(path, settings, inputs):
        progress.say(f"{path.parent.name}/{path.name}: made again, because {'; '.join(wrong)}")
        files.remove_directory(path)
    return build(path, settings, inputs, make)


def write(
    path: Path,
    settings: dict,
    inputs: Iterable[Path],
    seconds: float | None,
    counts: dict,
    cpu_seconds: float | None = None,
    files_of: dict | None = None,
):
    """Writes the manifest of the artefact at `path`; files_of: see `sums`."""
    manifest = purpose_of(path, settings, inputs) | {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,  # of all threads
        "counts": counts,
        "files": files_of or {},
        "peak_memory_bytes": provenance.peak_memory(),
        "versions": provenance.versions(),
        "made": datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds"),
    }
    files.write_json(path / MANIFEST, manifest)


def sums(path: Path) -> dict[str, list]:
    """{file: [bytes, CRC-32C]} of an artefact, whose files are on the disk when this returns."""
    if isinstance(path, Path):
        files.force_all(path)
    found = sorted(sizes(path).items())
    return {name: [size, files.checksum(path / name)] for name, size in found}


def sizes(path: Path) -> dict[str, int]:
    """{file: bytes} of all that lies below an artefact, but for its manifest and its purpose."""
    if isinstance(path, Path):
        below = {
            p.relative_to(path).as_posix(): p.stat().st_size for p in path.rglob("*") if p.is_file()
        }
    else:
        root = str(path.path).rstrip("/")
        details = path.fs.find(root, detail=True)
        below = {p[len(root) :].lstrip("/"): about["size"] for p, about in details.items()}
    own = {name: size for name, size in below.items() if name not in (MANIFEST, PURPOSE)}
    return {name: size for name, size in own.items() if not _GOING.search(name)}


def damaged(path: Path, manifest: dict, checksums: bool = False) -> Iterator[str]:
    """What is not as it was made, in words, a file at a time.

    checksums: read every byte; otherwise only sizes are looked at.
    """
    there = sizes(path)
    for name, (size, crc) in manifest.get("files", {}).items():
        if name not in there:
            yield f"{path / name} is missing"
        elif there[name] != size:
            yield f"{path / name} has {there[name]:,} bytes, and had {size:,} when it was made"
        elif checksums and files.checksum(path / name) != crc:
            yield f"{path / name} holds other bytes than when it was made (checksum)"


def check(path: Path, settings: dict, inputs: Iterable[Path]) -> dict | None:
    """The manifest of a finished artefact, or None if there is none.

    Raises:
      UserError: it was made with other settings or from other inputs, or a file of it is missing or of
        another size.
    """
    manifest = read(path)
    if manifest is None:
        return None
    if changed := changes(path, manifest, settings, inputs):
        raise UserError(
            f"{path} was made with another config ({'; '.join(changed)}): give the fields that it "
            "was made with, use another working directory, or delete it and every stage after it to "
            "have them made again"
        )
    look(path, manifest)
    return manifest


def outdated(path: Path, settings: dict, inputs: Iterable[Path]) -> list[str]:
    """Why what is at `path` is not what would be made now, in words; nothing where it is, or where there is nothing."""
    try:
        made = read(path)
        if not made:
            return []
        return changes(path, made, settings, inputs) or list(damaged(path, made))
    except UserError as error:
        return [str(error)]


def changes(path: Path, manifest: dict, settings: dict, inputs: Iterable[Path]) -> list[str]:
    """What an artefact was made with, or from, that is otherwise now, in words."""
    now, before = purpose_of(path, settings, inputs)["inputs"], manifest["inputs"]
    anew = [f"{name} was made anew" for name, made in now.items() if before.get(name) != made]
    return differing(manifest["settings"], settings) + anew


def look(path: Path, manifest: dict):
    """Raises UserError if a file of an artefact is missing or of another size than when it was made."""
    if wrong := next(damaged(path, manifest), None):
        raise UserError(
            f"{wrong}: it was damaged or changed; delete {path}, and run the same stage again"
        )


def differing(old: dict, settings: dict) -> list[str]:
    """Which settings are not those that a file holds, in words: the first few of them."""
    settings = files.as_json(settings)
    names = [n for n in sorted(old.keys() | settings.keys()) if old.get(n) != settings.get(n)]
    names.sort(key=lambda n: not (n in old and n in settings))  # what has both values says more
    said = [f"{n} was {old.get(n)!r}, is now {settings.get(n)!r}" for n in names[:_SAID]]
    more = len(names) - _SAID
    return [*said, f"and {more} more"] if more > 0 else said


def read(path: Path) -> dict | None:
    """The manifest of the artefact at `path`, or None if there is none."""
    try:
        manifest = files.read_json(path / MANIFEST, f"delete {path}, and run the same stage again")
    except FileNotFoundError:
        return None
    if not isinstance(manifest, dict) or not {"settings", "inputs", "counts"} <= manifest.keys():
        raise UserError(
            f"{path / MANIFEST}: is no manifest; delete {path}, and run the stage again"
        )
    return manifest


def require(path: Path, stage: str, settings: dict, inputs: Iterable[Path]) -> dict:
    """The manifest of an artefact that an earlier stage must have made.

    Raises:
      UserError: it is missing, or as `check`.
    """
    manifest = check(path, settings, inputs)
    if manifest is None:
        raise UserError(
            f"{path} is missing or incomplete: run `retro {stage}` on this working directory"
        )
    return manifest


def purpose_of(path: Path, settings: dict, inputs: Iterable[Path]) -> dict:
    """What the artefact at `path` is to be made with and from."""
    inputs = {_name(i, path): fingerprint(i) for i in inputs}
    return files.as_json({"settings": settings, "inputs": inputs})


def read_purpose(partial: Path) -> dict | None:
    """What a directory that was left aside was to become."""
    try:
        return json.loads((partial / PURPOSE).read_bytes())
    except (OSError, ValueError):
        return None


def _is_finished(partial: Path, purpose: dict) -> bool:
    """Whether what a killed build left aside lacks nothing but its name."""
    manifest = read(partial) or {}
    return all(manifest.get(name) == value for name, value in purpose.items())


def _name(artefact: Path, beside: Path) -> str:
    return os.path.relpath(str(artefact), str(beside.parent))


def fingerprint(artefact: Path) -> str:
    """What tells what is at `artefact` apart from what was or will be there."""
    return hashlib.sha256((artefact / MANIFEST).read_bytes()).hexdigest()[:16]
