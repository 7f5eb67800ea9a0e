"""The mesh, and how arrays lie on it.

Axes: `data` splits the batch and, at rest, every matrix; `model` splits attention heads, feed-forward
width and the vocabulary. A weight is gathered over `data` where it is used (`gather`, model/layers.py).
"""

import ctypes
import sys

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from retro_jax.config import MeshConfig, ModelConfig
from retro_jax.errors import UserError

# glibc's malloc.h: M_MMAP_MAX, M_TRIM_THRESHOLD, M_ARENA_MAX, and what keeps all memory in one heap.
_KEEP = ((-4, 0), (-1, -1), (-8, 1))
_COMPILED = "/jax/core/compile/backend_compile_duration"


def set_up_cpu(devices: int):
    """Splits the CPU into `devices`, unless JAX_NUM_CPU_DEVICES or a test did; before JAX first runs."""
    if jax.config.jax_num_cpu_devices < 0:
        jax.config.update("jax_num_cpu_devices", devices)


def keep_memory():
    """Has this process keep the memory of a step for the next one, where the CPU trains: otherwise it
    goes back to the system, which hands it out again page by page, and a small model's train step
    takes a sixth longer."""
    if jax.default_backend() != "cpu":
        return
    libc = ctypes.CDLL(None)
    if sys.platform == "linux" and hasattr(libc, "mallopt"):
        for option, value in _KEEP:
            libc.mallopt(option, value)
        # But for what the compiler took: it is much, and in the way of what comes after.
        jax.monitoring.register_event_duration_secs_listener(
            lambda event, *_, **__: event == _COMPILED and libc.malloc_trim(0)
        )


def make_mesh(config: MeshConfig) -> jax.sharding.Mesh:
    """A mesh of all devices; -1 in the config is what is left.

    Raises:
      UserError: the axes do not multiply to the number of devices.
    """
    shape, devices = [config.data, config.model], jax.device_count()
    if shape.count(-1) == 1:
        shape[shape.index(-1)] = max(1, devices // max(1, -shape[0] * shape[1]))
    if -1 in shape or shape[0] * shape[1] != devices:
        raise UserError(
            f"config field mesh = (data {config.data}, model {config.model}): does not multiply to "
            f"the {devices} device(s) of this machine; set one axis to -1"
        )
    return jax.make_mesh(tuple(shape), ("data", "model"))


def check_divides(mesh: jax.sharding.Mesh, model: ModelConfig, vocab: int, **batches: int):
    """Raises UserError if a sharded dimension is not a multiple of its mesh axis."""
    data, axis = mesh.shape["data"], mesh.shape["model"]
    for name, size, parts in (
        *((name.replace("_batch", ".batch"), size, data) for name, size in batches.items()),
        ("model.d", model.d, data),
        ("model.encoder_d", model.encoder_d, data),
        ("model.ffw", model.ffw or 4 * model.d, axis),
        ("model.encoder_ffw", model.encoder_ffw or 4 * model.encoder_d, axis),
        ("model.heads", model.heads, axis),
        ("model.kv_heads", model.kv_heads or model.heads, axis),
        ("model.encoder_heads", model.encoder_heads, axis),
        ("corpus.vocab", vocab, axis),
    ):
        if size % parts:
            raise UserError(
                f"config field {name}: {size} must be a multiple of {parts}, the size of its mesh "
                f"axis (mesh: data {data}, model {axis})"
            )


def shard_batch(mesh: jax.sharding.Mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Host arrays [B / processes, ...] to global arrays [B, ...] split over `data`."""
    sharding = NamedSharding(mesh, P("data"))
    return {
        name: jax.make_array_from_process_local_data(sharding, value)
        for name, value in batch.items()
    }
