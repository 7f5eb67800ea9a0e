"""Whether a step fits into memory: asked before the first one, since who runs out is killed without a word."""

import math
import re
from pathlib import Path

import jax

from retro_jax.config import TrainConfig
from retro_jax.errors import UserError
from retro_jax.train import processes
from retro_jax.train.hardware import GIB

_PROC, _CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


def check_fits(step_fn, train: TrainConfig, *arguments):
    """Compiles a step, which its first call then finds compiled, and compares what it takes with what is free.

    Args:
      step_fn: a jitted function of `arguments`, whose arrays lie in memory already.

    Raises:
      UserError: it takes more.
    """
    of = f"config fields train.batch = {train.batch}, train.length = {train.length}: a step takes"
    remedy = (
        "fewer sequences at a time (--config.train.batch, or --config.train.accumulate, which keeps the batch and goes "
        "through it in parts), shorter ones (--config.train.length) or --config.model.remat=full take less; `retro "
        "plan` says what"
    )
    try:
        memory = step_fn.lower(*arguments).compile().memory_analysis()
    except jax.errors.JaxRuntimeError as error:  # a TPU's compiler knows
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise UserError(f"{of} more memory than a device has: {remedy}") from error
    if memory is None:  # a backend that does not say
        return
    takes = memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    has, where = free()
    takes *= jax.local_device_count() if where == "this machine" else 1
    if not processes.all_say(takes <= has):  # so that none waits for another
        raise UserError(
            f"{of} {takes / GIB:,.1f} GiB of memory beside its weights, and of {where} {has / GIB:,.1f} are free: "
            f"{remedy}"
        )


def free() -> tuple[float, str]:
    """Bytes that can be had, and of what: of one accelerator, or of the machine, whose processors share it.

    Infinite where nobody says."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0), "a device"
    return min(_of_machine(), _of_container()), "this machine"


def _of_machine() -> float:
    """What Linux can give without others losing what they have, and what it can write to disk instead."""
    if not _PROC.exists():
        return math.inf
    said = dict(re.findall(r"^(\w+):\s+(\d+) kB", _PROC.read_text(), re.M))
    return 1024 * (int(said.get("MemAvailable", 2**50)) + int(said.get("SwapFree", 0)))


def _of_container() -> float:
    """What the container may still take; files that it has read can make room."""
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        taken = int((_CGROUP / "memory.current").read_text())
        said = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return math.inf
    files = int(said.get("inactive_file", 0)) + int(said.get("active_file", 0))
    return math.inf if limit == "max" else int(limit) - taken + files
