"""Machines that are not here: their chips, and the mesh that training would make of them."""

import os
from dataclasses import dataclass

import jax
from jax.sharding import AbstractMesh, AxisType

from retro_jax.config import MeshConfig
from retro_jax.errors import UserError
from retro_jax.model.layers import AXES
from retro_jax.train import sharding
from retro_jax.train.hardware import CHIPS, GPUS, Chip

# Slices that can be had, by number of chips (cloud.google.com/tpu/docs, "configurations" of each).
_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_DEEP = (
    "2x2x1",
    "2x2x2",
    "2x2x4",
    "2x4x4",
    "4x4x4",
    "4x4x8",
    "4x8x8",
    "8x8x8",
    "8x8x16",
    "8x16x16",
)
SLICES = {"v4": _DEEP, "v5e": _FLAT, "v5p": _DEEP, "v6e": _FLAT}


@dataclass(frozen=True)
class Topology:
    """`slices` slices of `chips` chips each; a GPU's `slices` are 1."""

    kind: str  # a key of CHIPS
    shape: str  # 4x4, or of GPUs their number
    slices: int = 1

    @property
    def chip(self) -> Chip:
        """What one of them can."""
        return CHIPS[self.kind]

    @property
    def chips(self) -> int:
        """All of them."""
        count = self.slices
        for size in self.shape.split("x"):
            count *= int(size)
        return count

    def __str__(self) -> str:
        return f"{self.kind}:{self.shape}" + (f" x {self.slices} slices" if self.slices > 1 else "")


def parse(text: str) -> Topology:
    """`v5e:4x4`, `v5p:4x4x4*2` (two slices) or `h100:8`.

    Raises:
      UserError: a kind of chip, or a shape, that is not known.
    """
    kind, _, shape = text.partition(":")
    shape, _, slices = shape.partition("*")
    sizes = shape.split("x")
    if kind not in CHIPS:
        raise UserError(f"--topology={text}: no chip {kind!r}; known: {', '.join(CHIPS)}")
    dimensions = len(SLICES[kind][0].split("x")) if kind in SLICES else 1
    if not all(map(str.isdecimal, [*sizes, slices or "1"])) or len(sizes) != dimensions:
        example = (
            f"{kind}:{SLICES[kind][3]} or {kind}:{SLICES[kind][3]}*2"
            if kind in SLICES
            else f"{kind}:8"
        )
        raise UserError(f"--topology={text}: write it as {example}")
    return Topology(kind, shape, int(slices or 1))


def abstract_mesh(topology: Topology, config: MeshConfig) -> AbstractMesh:
    """The mesh's shape, without devices.

    Raises:
      UserError: as `sharding.make_mesh`.
    """
    shape = sharding.mesh_shape(config, topology.chips, topology.slices)
    return AbstractMesh(shape, AXES, (AxisType.Explicit,) * 3)


def speeds(topology: Topology, mesh: AbstractMesh) -> dict[str, float]:
    """Bytes a second that a chip sends along each axis of a mesh.

    Of a TPU's slices the first axis goes over the network, as far as there are several; of GPUs what goes beyond a
    host.
    """
    chip, made, inside = topology.chip, {}, 1
    for axis in reversed(mesh.axis_names):  # the last one is of neighbours
        inside *= mesh.shape[axis]
        near = topology.chips // topology.slices if topology.kind in SLICES else GPUS
        made[axis] = chip.links if inside <= near else chip.network
    return made


def device_mesh(topology: Topology, config: MeshConfig) -> jax.sharding.Mesh | None:
    """The mesh on devices that only compile, or None without libtpu or on a GPU."""
    if topology.kind not in SLICES:
        return None
    try:
        import libtpu  # noqa: F401
    except ImportError:
        return None
    from jax.experimental import topologies

    os.environ |= {  # libtpu is to compile only: it looks for no chip, and says nothing
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": "v5litepod-8",
        "TPU_STDERR_LOG_LEVEL": "3",
        "TPU_MIN_LOG_LEVEL": "3",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # another plan may be under way, or have left its lock
    }
    more = {}
    if topology.kind == "v4":  # its two cores are one device
        more = {"chip_config_name": "megacore", "chips_per_host_bounds": (2, 2, 1)}
    try:
        made = topologies.get_topology_desc(
            platform="tpu",
            topology_name=f"{topology.kind}:{topology.shape}",
            num_slices=topology.slices,
            **more,
        )
    except (RuntimeError, ValueError, jax.errors.JaxRuntimeError) as error:
        raise UserError(
            f"--topology={topology}: libtpu has no such slice ({str(error).splitlines()[0][:160]})"
        ) from error
    return sharding.make_mesh(config, made.devices)


def larger(topology: Topology) -> list[Topology]:
    """All slices of this kind, the smallest first; GPUs by doubling."""
    if topology.kind in SLICES:
        return [Topology(topology.kind, shape) for shape in SLICES[topology.kind]]
    return [Topology(topology.kind, str(2**i)) for i in range(11)]
