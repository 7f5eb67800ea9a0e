"""What the makers say of their chips: peak bfloat16 FLOP/s and bytes of memory.

Sources: cloud.google.com/tpu/docs (v4, v5e, v5p, v6e: "Peak compute per chip (bf16)", "HBM capacity");
NVIDIA's data sheets of A100 SXM, H100 SXM, H200 and B200 (dense). JAX calls v5e `TPU v5 lite`, v5p
`TPU v5` and v6e `TPU v6 lite`.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Chip:
    """One chip, which is one JAX device."""

    kind: str  # how jax.Device.device_kind begins
    flops: float  # bfloat16, a second
    memory: int  # bytes


GIB = 2**30
CHIPS = {
    "v4": Chip("TPU v4", 275e12, 32 * GIB),
    "v5e": Chip("TPU v5 lite", 197e12, 16 * GIB),
    "v5p": Chip("TPU v5", 459e12, 95 * GIB),
    "v6e": Chip("TPU v6 lite", 918e12, 32 * GIB),
    "a100": Chip("NVIDIA A100", 312e12, 80 * GIB),
    "h100": Chip("NVIDIA H100", 989e12, 80 * GIB),
    "h200": Chip("NVIDIA H200", 989e12, 141 * GIB),
    "b200": Chip("NVIDIA B200", 2250e12, 180 * GIB),
}


def peak_flops(devices: list) -> float | None:
    """bfloat16 FLOP/s of all devices together; None for what the table does not have, as a CPU."""
    kind = devices[0].device_kind
    # The longest name that fits: `TPU v5 lite` begins with `TPU v5`.
    fits = [chip for chip in CHIPS.values() if kind.startswith(chip.kind)]
    if not fits:
        return None
    return len(devices) * max(fits, key=lambda chip: len(chip.kind)).flops
