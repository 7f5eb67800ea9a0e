"""The mesh, and how arrays lie on it.

Axes: `replica` and `data` split the rows of a batch; `data` splits, at rest, every matrix; `model` splits
attention heads, feed-forward width and the vocabulary. A weight is gathered over `data` where it is used
(`gather`, model/layers.py); between replicas only gradients travel.
"""

import ctypes
import functools
import math
import sys

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from retro_jax.config import MeshConfig, ModelConfig
from retro_jax.errors import UserError
from retro_jax.model.layers import AXES, ROWS

# glibc's malloc.h: M_MMAP_MAX, M_TRIM_THRESHOLD, M_ARENA_MAX, and what keeps all memory in one heap.
_KEEP = ((-4, 0), (-1, -1), (-8, 1))
_COMPILED = "/jax/core/compile/backend_compile_duration"


def set_up_cpu(devices: int):
    """Splits the CPU into `devices`, unless JAX_NUM_CPU_DEVICES or a test did; before JAX first runs."""
    if jax.config.jax_num_cpu_devices < 0:
        jax.config.update("jax_num_cpu_devices", devices)


@functools.cache
def keep_memory():
    """Has this process keep the memory of a step for the next one, where the CPU computes: otherwise it
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


def mesh_shape(config: MeshConfig, devices: int, slices: int = 1) -> tuple[int, int, int]:
    """Sizes of replica, data and model; -1 in the config is what is left.

    Raises:
      UserError: they do not multiply to the number of devices, or `replica` is no multiple of the TPU
        slices, over which it runs because the network between them is the slow one.
    """
    shape = [config.replica, config.data, config.model]
    if shape.count(-1) == 1:
        shape[shape.index(-1)] = max(1, devices // max(1, -math.prod(shape)))
    if -1 in shape or math.prod(shape) != devices:
        raise UserError(
            f"config field mesh = (replica {config.replica}, data {config.data}, model "
            f"{config.model}): does not multiply to the {devices} device(s); set one axis to -1"
        )
    if shape[0] % slices:
        raise UserError(
            f"config field mesh.replica: {shape[0]} must be a multiple of the {slices} slices"
        )
    return tuple(shape)


def make_mesh(config: MeshConfig, devices: list | None = None) -> jax.sharding.Mesh:
    """A mesh of all devices, or of those given.

    Raises:
      UserError: as `mesh_shape`.
    """
    devices = jax.devices() if devices is None else devices
    tpu = devices[0].platform == "tpu"  # GPUs call every host a slice
    slices = len({getattr(d, "slice_index", 0) for d in devices}) if tpu else 1
    shape = mesh_shape(config, len(devices), slices)
    if slices > 1:
        grid = mesh_utils.create_hybrid_device_mesh(
            (shape[0] // slices, *shape[1:]),
            (slices, 1, 1),
            devices,
            allow_split_physical_axes=True,
        )
    else:
        grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return jax.sharding.Mesh(grid, AXES, axis_types=(AxisType.Explicit,) * 3)


def one_device() -> jax.sharding.Mesh:
    """A mesh of the first device of this process."""
    return jax.make_mesh((1, 1, 1), AXES, devices=jax.local_devices()[:1])


def check_divides(mesh: jax.sharding.Mesh, model: ModelConfig, vocab: int, **batches: int):
    """Raises UserError if a sharded dimension is not a multiple of its mesh axes."""
    replica, data, axis = (mesh.shape[name] for name in AXES)
    d, n = model.decoder, model.encoder
    for name, size, parts in (
        *((name.replace("_", "."), size, replica * data) for name, size in batches.items()),
        ("model.decoder.d", d.d, data),
        ("model.encoder.d", n.d, data),
        ("model.decoder.ffw", d.ffw or 4 * d.d, axis),
        ("model.encoder.ffw", n.ffw or 4 * n.d, axis),
        ("model.decoder.heads", d.heads, axis),
        ("model.decoder.kv_heads", d.kv_heads or d.heads, axis),
        ("model.encoder.heads", n.heads, axis),
        ("corpus.vocab", vocab, axis),
    ):
        if size % parts:
            raise UserError(
                f"config field {name}: {size} must be a multiple of {parts}, the size of its mesh "
                f"axis (mesh: replica {replica}, data {data}, model {axis})"
            )


def rows_for(mesh: jax.sharding.Mesh, count: int, most: int) -> int:
    """Rows of a batch that has room for `count`, `most` at most: of few sizes, so that there are few programs, and no
    larger than need be, since a row of padding takes as long as any."""
    rows = mesh.shape["replica"] * mesh.shape["data"]
    while rows < count:
        rows *= 2
    return min(rows, most)


def shapes_on(mesh: jax.sharding.Mesh, tree):
    """What `jax.eval_shape` gives, which lies on no mesh, on a mesh."""

    def on_mesh(x):
        spec = x.sharding.spec if x.sharding else P()  # a scalar has none
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree.map(on_mesh, tree)


def rows_of(mesh: jax.sharding.Mesh, size: int) -> list[int]:
    """Which rows of a batch of `size` this process has to give, in order.

    They need not follow one another: a mesh lays its axes along the wires between chips, and a host's
    chips are a square of them.
    """
    parts = NamedSharding(mesh, ROWS).addressable_devices_indices_map((size,)).values()
    return sorted({row for (part,) in parts for row in range(*part.indices(size))})


def shard_batch(
    mesh: jax.sharding.Mesh, batch: dict[str, np.ndarray], size: int | None = None
) -> dict[str, jax.Array]:
    """Host arrays [rows of this process, ...] to global arrays [size, ...], split over the rows.

    size: of the whole batch; without it, this process has all rows.
    """
    sharding = NamedSharding(mesh, ROWS)
    return {
        name: jax.make_array_from_process_local_data(
            sharding, value, (size or len(value), *value.shape[1:])
        )
        for name, value in batch.items()
    }
