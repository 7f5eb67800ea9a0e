"""What the makers say of their chips: peak bfloat16 FLOP/s, memory, and links.

Sources: cloud.google.com/tpu/docs (v4, v5e, v5p, v6e: "Peak compute per chip (bf16)", "HBM capacity and bandwidth",
"inter-chip interconnect bandwidth", "NIC configuration"); NVIDIA's data sheets of A100 SXM, H100 SXM, H200 and B200
(dense) and of their DGX, which have a network adapter of 200 or 400 Gbit/s for each. JAX calls v5e `TPU v5 lite`, v5p
`TPU v5` and v6e `TPU v6 lite`.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Chip:
    """One chip, which is one JAX device."""

    kind: str  # how jax.Device.device_kind begins
    flops: float  # bfloat16, a second
    memory: int  # bytes
    bandwidth: float  # bytes a second, of its memory
    # Bytes a second that it sends in a ring: along one dimension of a TPU's torus, both ways together; to the GPUs of
    # its host.
    links: float
    network: float  # bytes a second, to other slices, or other hosts of GPUs


GIB = 2**30
GPUS = 8  # of a host
CHIPS = {
    "v4": Chip("TPU v4", 275e12, 32 * GIB, 1228e9, 100e9, 6.25e9),
    "v5e": Chip("TPU v5 lite", 197e12, 16 * GIB, 819e9, 100e9, 3.125e9),
    "v5p": Chip("TPU v5", 459e12, 95 * GIB, 2765e9, 200e9, 6.25e9),
    "v6e": Chip("TPU v6 lite", 918e12, 32 * GIB, 1638e9, 200e9, 12.5e9),
    "a100": Chip("NVIDIA A100", 312e12, 80 * GIB, 2039e9, 300e9, 25e9),
    "h100": Chip("NVIDIA H100", 989e12, 80 * GIB, 3350e9, 450e9, 50e9),
    "h200": Chip("NVIDIA H200", 989e12, 141 * GIB, 4800e9, 450e9, 50e9),
    "b200": Chip("NVIDIA B200", 2250e12, 180 * GIB, 8000e9, 900e9, 50e9),
}


def peak_flops(devices: list) -> float | None:
    """bfloat16 FLOP/s of all devices together; None for what the table does not have, as a CPU."""
    kind = devices[0].device_kind
    # The longest name that fits: `TPU v5 lite` begins with `TPU v5`.
    fits = [chip for chip in CHIPS.values() if kind.startswith(chip.kind)]
    if not fits:
        return None
    return len(devices) * max(fits, key=lambda chip: len(chip.kind)).flops
