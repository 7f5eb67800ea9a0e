"""With what something was made: versions of packages, and the memory that it took."""

import functools
import importlib.metadata
import platform
import re
import resource
import sys
from pathlib import Path

_PACKAGES = ("retro_jax", "jax", "flax", "optax", "orbax-checkpoint", "grain", "scann", "numpy")


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
    return dict(_versions())


@functools.cache  # each of them is a file to read and parse
def _versions() -> dict:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
