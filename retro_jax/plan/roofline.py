"""How long a step takes at best and at worst: what it multiplies, what it reads and writes, what it sends.

    t = FLOPs / peak,   bytes / bandwidth of memory,   bytes sent along an axis / bandwidth of its links

All three are counted in the traced program, whose arrays say how they are sharded; nothing is compiled. At best they
hide one another, and the longest of them is the step; at worst they follow one another. (Williams et al. 2009,
"Roofline"; the costs of collectives are those of rings.)
"""

import math
from collections import defaultdict
from dataclasses import dataclass, field

from jax.extend.core import Var, jaxprs_in_params

from retro_jax.train.hardware import Chip

# What a compiler does not fuse into what comes before it: their operands are read from memory, their results written.
_APART = {
    "dot_general", "reshard", "gather", "scatter", "scatter-add", "sort", "cumsum", "concatenate",
    "dynamic_update_slice",
}  # fmt: skip
_VIEWS = {"reshape", "transpose", "squeeze", "expand_dims"}  # as good as what they are of
_LOOPS = {"scan", "while", "cond", "pallas_call"}
_REDUCES = {"reduce_sum", "reduce_max", "reduce_min", "argmax", "argmin", "reduce_and", "reduce_or"}

# What the largest products and copies reached on an H100, of what its maker says (docs/speed.md).
REACHED = 0.67


@dataclass
class Work:
    """What one chip does in a step.

    flops: of its matrix products, what is computed again included. bytes: read from memory and written.
    sent: bytes along each axis of the mesh.
    """

    flops: float = 0
    bytes: float = 0
    sent: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    def add(self, other: "Work", times: int = 1):
        """The same with `times` of another's."""
        self.flops += times * other.flops
        self.bytes += times * other.bytes
        for axis, sent in other.sent.items():
            self.sent[axis] += times * sent


@dataclass(frozen=True)
class Times:
    """Seconds of a step, each as if there were nothing else, at the maker's peaks.

    axes: of what is sent along each axis of the mesh.
    """

    products: float
    memory: float
    axes: dict[str, float]

    @property
    def bound(self) -> str:
        """The longest of them."""
        each = {"products": self.products, "memory": self.memory}
        each |= {f"links along {axis}": t for axis, t in self.axes.items()}
        return max(each, key=each.get)

    @property
    def best(self) -> float:
        """They hide one another."""
        return max(self.products, self.memory, *self.axes.values(), 0.0)

    @property
    def worst(self) -> float:
        """They follow one another, and a chip reaches `REACHED` of what its maker says."""
        return (self.products + self.memory + sum(self.axes.values())) / REACHED


def times(of: Work, chip: Chip, speeds: dict[str, float]) -> Times:
    """How long one chip needs.

    speeds: bytes a second along each axis of the mesh (`topology.speeds`).
    """
    axes = {axis: sent / speeds[axis] for axis, sent in of.sent.items() if sent}
    return Times(of.flops / chip.flops, of.bytes / chip.bandwidth, axes)


def work(jaxpr, mesh) -> Work:
    """Counted in a traced program whose arrays have explicit shardings."""
    made, apart = Work(), set(jaxpr.invars)
    for eqn in jaxpr.eqns:
        name, inner = eqn.primitive.name, list(jaxprs_in_params(eqn.params))
        if name == "pallas_call":  # its blocks are loops of unknown length
            cost = eqn.params["cost_estimate"]
            made.flops, made.bytes = made.flops + cost.flops, made.bytes + cost.bytes_accessed
        elif name == "cond":  # one of them runs
            made.add(max((work(one, mesh) for one in inner), key=lambda w: w.flops))
        elif inner:
            often = eqn.params.get("length", 1) if name == "scan" else 1
            for one in inner:
                made.add(work(one, mesh), often)
            if name == "scan":  # each result is put in its place
                made.bytes += 2 * sum(_local(v) for v in eqn.outvars)
        elif name == "dot_general":
            made.flops += _product(eqn)
        if name in _APART:
            # What was made in passing is written for it; what stands in memory is only read.
            own = [v for v in eqn.invars if isinstance(v, Var)]
            made.bytes += sum(_local(v) * (1 if v in apart else 2) for v in own)
            made.bytes += sum(_local(v) for v in eqn.outvars)
        elif name in _REDUCES:
            made.bytes += sum(_local(v) for v in eqn.invars)
        of_memory = name in _VIEWS and eqn.invars[0] in apart
        if name in _LOOPS | _APART | _REDUCES or of_memory:
            apart |= set(eqn.outvars)
        if not inner:
            for axis, sent in _sent(eqn, mesh).items():
                made.sent[axis] += sent
    return made


def _product(eqn) -> int:
    """FLOPs of a matrix product on one chip."""
    (_, mine), (_, batch) = eqn.params["dimension_numbers"]
    a, b = eqn.invars[:2]
    shape = _shape(b)
    free = math.prod(n for i, n in enumerate(shape) if i not in mine and i not in batch)
    return 2 * math.prod(_shape(a)) * free


def _sent(eqn, mesh) -> dict[str, float]:
    """Bytes that a chip sends along each axis where an operand is split over an axis and its result is not, or along
    another dimension. Along the last axis, of the nearest chips, all of an array is sent; along one before it, what is
    left of it for each of those."""
    given, kept = (set().union(*map(_axes, of)) for of in (eqn.invars, eqn.outvars))
    size, made = _local(eqn.outvars[0]), {}
    if eqn.primitive.name == "psum":  # in what is written for one chip: an all-reduce
        given, kept = set(eqn.params["axes"]), set()
    for axis in reversed(mesh.axis_names):
        n = mesh.shape[axis]
        if axis not in given:
            continue
        if eqn.primitive.name == "reshard":
            if axis not in kept:  # all-gather
                made[axis] = size * (n - 1) / n
                size /= n
            elif _where(eqn.invars[0], axis) != _where(eqn.outvars[0], axis):  # all-to-all
                made[axis] = size * (n - 1) / n
        elif eqn.primitive.name == "psum" or (
            eqn.primitive.name in _REDUCES | {"dot_general"} and _summed(eqn, axis)
        ):
            if axis in kept:  # reduce-scatter
                made[axis] = size * (n - 1)
            else:  # all-reduce: a reduce-scatter and an all-gather
                made[axis] = 2 * size * (n - 1) / n
                size /= n
    return made


def _where(v, axis: str) -> list[int]:
    """The dimensions of an array that are split over an axis."""
    return [i for i, part in enumerate(_spec(v)) if axis in _named(part)]


def _summed(eqn, axis: str) -> bool:
    """Whether what is summed over is split over an axis."""
    if eqn.primitive.name == "dot_general":
        (contracted, _), _ = eqn.params["dimension_numbers"]
        dims = contracted
    else:
        dims = eqn.params["axes"]
    return any(i in dims for i in _where(eqn.invars[0], axis))


def _spec(v) -> tuple:
    sharding = getattr(v.aval, "sharding", None)
    return tuple(sharding.spec) if sharding is not None else ()


def _named(part) -> tuple[str, ...]:
    return () if part is None else (part,) if isinstance(part, str) else tuple(part)


def _axes(v) -> set[str]:
    return {axis for part in _spec(v) for axis in _named(part)}


def _shape(v) -> tuple[int, ...]:
    """What a chip holds of an array; in what is written for one chip (shard_map) that is all of it."""
    sharding = getattr(v.aval, "sharding", None)
    whole = sharding is None or sharding.mesh.are_all_axes_manual
    return v.aval.shape if whole else sharding.shard_shape(v.aval.shape)


def _local(v) -> int:
    """Bytes that a chip holds of an array."""
    if not hasattr(v.aval, "dtype") or not hasattr(v.aval.dtype, "itemsize"):
        return 0
    return math.prod(_shape(v)) * v.aval.dtype.itemsize
