"""Devices along each axis of the mesh (retro_jax/train/sharding.py)."""

from dataclasses import dataclass

from retro_jax.config.fields import require, require_at_least, setting


@dataclass(frozen=True)
class MeshConfig:
    """The fields `mesh.*` of an experiment; -1 is what is left."""

    replica: int = setting(
        1, "copies of the model, on data x model devices each: slices, or hosts", free=True
    )
    data: int = setting(-1, "devices that split the batch and, at rest, every matrix", free=True)
    model: int = setting(1, "devices that split heads, feed-forward and vocabulary", free=True)
    # XLA runs many operations of a device on one core, so a device a core is faster, as long as the
    # batch divides by it.
    cpu_devices: int = setting(
        1, "devices that a host without an accelerator pretends to have", free=True
    )

    def __post_init__(self):
        require_at_least(1, "mesh.", self, "cpu_devices")
        for name in ("replica", "data", "model"):
            value = getattr(self, name)
            require(
                value >= 1 or value == -1,
                f"mesh.{name}",
                value,
                "must be a number of devices, or -1",
            )
