"""Programs that were compiled once are kept, so that a command that is run again does not compile them anew."""

import hashlib
import os
import platform
from pathlib import Path

MOST = 2**31  # bytes that are kept; the longest unused make room


def keep_compiled():
    """Tells JAX, before it is imported, where it keeps what it compiled: in the user's cache directory, unless
    JAX_COMPILATION_CACHE_DIR names another. JAX_ENABLE_COMPILATION_CACHE=0 turns it off.

    A directory for each kind of processor, since a home may be shared by several.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    try:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        there = root / "retro_jax" / f"compiled-{_processor()}"
        there.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # no home, or one that cannot be written to
        return
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(there)
    os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(MOST))
    # JAX keeps what took a second; the many small programs of a first answer take as long together.
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")


def _processor() -> str:
    """A name for all processors that can run the same programs."""
    try:
        said = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        said = []
    features = next((line for line in said if line.startswith(("flags", "Features"))), "")
    return hashlib.sha256(f"{platform.machine()} {features}".encode()).hexdigest()[:8]
