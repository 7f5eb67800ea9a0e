"""Artefacts of a working directory: whole or absent, and made with the settings that are asked for.

An artefact is a directory with a `manifest.json`: its settings, what it was made from, counts,
seconds and versions. It is built aside and renamed when it is complete, so that no later stage can
read a half of it.
"""

import datetime
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from safetensors import SafetensorError

from retro_jax.errors import UserError

PURPOSE = "building.json"  # in a directory that is being built: settings and inputs
_PACKAGES = ("retro_jax", "jax", "flax", "optax", "orbax-checkpoint", "grain", "scann", "numpy")


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
    partial = path.with_name(f".{path.name}.partial")
    purpose = purpose_of(path, settings, inputs)
    try:
        if read_purpose(partial) != purpose:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            write_json(partial / PURPOSE, purpose)
        start, cpu = time.perf_counter(), time.process_time()
        counts = make(partial)
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        write_manifest(partial, settings, inputs, seconds, counts, cpu)
        (partial / PURPOSE).unlink()
        os.rename(partial, path)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{path}: cannot be written ({error}); make room, or choose another --workdir"
        ) from error
    except UserError:  # the config or the input has to change first
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return read_manifest(path)


def write_manifest(
    path: Path,
    settings: dict,
    inputs: Iterable[Path],
    seconds: float | None,
    counts: dict,
    cpu_seconds: float | None = None,
):
    """Writes (aside, then renames) the manifest of the artefact at `path`."""
    manifest = purpose_of(path, settings, inputs) | {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,  # of all threads
        "counts": counts,
        "peak_memory_bytes": peak_memory(),
        "versions": versions(),
        "made": datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds"),
    }
    write_json(path / "manifest.json", manifest)


def check(path: Path, settings: dict, inputs: Iterable[Path]) -> dict | None:
    """The manifest of a finished artefact, or None if there is none.

    Raises:
      UserError: it was made with other settings or from other inputs.
    """
    manifest = read_manifest(path)
    if manifest is None:
        return None
    changed = differing(manifest["settings"], settings)
    changed += [
        f"{name} was made anew"
        for name, fingerprint in ((_name(i, path), _fingerprint(i)) for i in inputs)
        if manifest["inputs"].get(name) != fingerprint
    ]
    if changed:
        raise UserError(
            f"{path} was made with another config ({'; '.join(changed)}): give the flags that it "
            "was made with, use another --workdir, or delete it and every stage after it to have them made again"
        )
    return manifest


def differing(old: dict, settings: dict) -> list[str]:
    """Which settings are not those that a file holds, in words."""
    settings = json.loads(json.dumps(settings))  # tuples become lists, as in the file
    return [
        f"{name} was {old.get(name)!r}, is now {settings.get(name)!r}"
        for name in sorted(old.keys() | settings.keys())
        if old.get(name) != settings.get(name)
    ]


def read_manifest(path: Path) -> dict | None:
    """The manifest of the artefact at `path`, or None if there is none."""
    try:
        return json.loads((path / "manifest.json").read_text())
    except FileNotFoundError:
        return None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}/manifest.json is damaged ({error}); delete {path}") from error


def require(path: Path, stage: str) -> dict:
    """The manifest of an artefact that an earlier stage must have made."""
    manifest = read_manifest(path)
    if manifest is None:
        raise UserError(f"{path} is missing or incomplete: run `retro {stage}` with this --workdir")
    return manifest


def write_json(path: Path, value):
    """Writes JSON aside, then renames; in a bucket a file is whole or absent anyway."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    if not isinstance(path, Path):
        path.write_text(text, encoding="utf-8")
        return
    aside = path.with_name(f".{path.name}.partial")
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, path)


def peak_memory() -> int:
    """Peak resident memory of this process so far, bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # the other counts what the process that started this one had, too
        found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
        if found:
            return int(found[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def versions() -> dict:
    """Versions of Python and of the packages that shape a result."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def purpose_of(path: Path, settings: dict, inputs: Iterable[Path]) -> dict:
    """What the artefact at `path` is to be made with and from."""
    found = {"settings": settings, "inputs": {_name(i, path): _fingerprint(i) for i in inputs}}
    return json.loads(json.dumps(found))


def read_purpose(partial: Path) -> dict | None:
    """What a directory that was left aside was to become."""
    try:
        return json.loads((partial / PURPOSE).read_text())
    except (OSError, json.JSONDecodeError):
        return None


def _name(artefact: Path, beside: Path) -> str:
    return os.path.relpath(str(artefact), str(beside.parent))


def _fingerprint(artefact: Path) -> str:
    return hashlib.sha256((artefact / "manifest.json").read_bytes()).hexdigest()[:16]
