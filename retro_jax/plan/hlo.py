"""What a compiled program sends between chips, read off its text."""

import re
from collections import defaultdict

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_BITS = {"pred": 8, "s8": 8, "u8": 8, "bf16": 16, "f16": 16, "s16": 16, "u16": 16, "f32": 32,
         "s32": 32, "u32": 32, "f64": 64, "s64": 64, "u64": 64}  # fmt: skip
_START = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) .*\{$")
_ARRAY = re.compile(r"\b(" + "|".join(_BITS) + r")\[([\d,]*)\]")
_COLLECTIVE = re.compile(r"= (.*?) (" + "|".join(KINDS) + r")(-start)?\(")
_CALLED = re.compile(r"(?:calls|to_apply|body|branch_computations)=\{?%?([\w.\-, %]+)\}?")
_CONDITION = re.compile(r" while\(.*condition=%?([\w.\-]+)")
_CONSTANT = re.compile(r"s32\[\].* constant\((\d+)\)")
_CHANNEL = re.compile(r"channel_id=(\d+)")


def collectives(text: str) -> dict[str, dict]:
    """{kind: {count, bytes}} of a step on one chip, loops counted as often as they run.

    Bytes are those of the whole array: of the result, for a reduce-scatter of the operand.

    text: `compiled.as_text()`. A collective that the compiler spreads over several fusions, so that it
    runs beside them, stands in each of them, with one channel: it counts once.
    """
    bodies, entry = _computations(text)
    times: dict[str, int] = defaultdict(int)

    def visit(name: str, factor: int):
        times[name] += factor
        for line in bodies[name]:
            condition = _CONDITION.search(line)
            often = _trips(bodies[condition[1]]) if condition else 1
            for group in _CALLED.finditer(line):
                for called in re.findall(r"[\w.\-]+", group[1]):
                    if called in bodies:
                        visit(called, factor * often)

    visit(entry, 1)
    channels: dict[tuple, tuple[int, int]] = {}
    for name, factor in times.items():
        for at, line in enumerate(bodies[name]):
            match = _COLLECTIVE.search(line)
            if match:
                sizes = [_size(*array) for array in _ARRAY.findall(match[1])]
                # A started one holds its operand beside its result: the larger or the smaller.
                pick = min if match[2] == "reduce-scatter" else max
                kind, size = match[2], pick(sizes) if match[3] else sum(sizes)
                if name.startswith("all-reduce-scatter"):  # fused, its result scattered at once
                    kind = "reduce-scatter"
                elif kind == "reduce-scatter":
                    size *= _group(line)
                channel = _CHANNEL.search(line)
                key = (kind, channel[1] if channel else (name, at))
                channels[key] = max(channels.get(key, (0, 0)), (factor, size))
    found = {}
    for kind in KINDS:
        sent = [value for (of, _), value in channels.items() if of == kind]
        if sent:
            count, size = sum(n for n, _ in sent), sum(n * s for n, s in sent)
            found[kind] = {"count": count, "bytes": size}
    return found


def _group(line: str) -> int:
    """Chips that a collective is among, of `replica_groups=[4,2]<=[8]` or `{{0,1},{2,3}}`."""
    found = re.search(r"replica_groups=(?:\[\d+,(\d+)\]|\{\{([\d,]+)\})", line)
    if not found:
        return 1
    return int(found[1]) if found[1] else found[2].count(",") + 1


def _trips(condition: list[str]) -> int:
    """How often a loop runs: the number that its counter is compared with."""
    return max((int(m[1]) for line in condition if (m := _CONSTANT.search(line))), default=1)


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    bodies, entry, current = {}, "", None
    for line in text.splitlines():
        if not line.startswith(" "):
            match = _START.match(line)
            current = bodies.setdefault(match[1], []) if match else None
            if match and line.startswith("ENTRY"):
                entry = match[1]
        elif current is not None:
            current.append(line)
    return bodies, entry


def _size(kind: str, shape: str) -> int:
    size = _BITS[kind] // 8
    for n in filter(None, shape.split(",")):
        size *= int(n)
    return size
