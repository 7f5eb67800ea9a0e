"""What a compiled program sends between chips, read off its text."""

import re
from collections import defaultdict

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_BITS = {"pred": 8, "s8": 8, "u8": 8, "bf16": 16, "f16": 16, "s16": 16, "u16": 16, "f32": 32,
         "s32": 32, "u32": 32, "f64": 64, "s64": 64, "u64": 64}  # fmt: skip
_START = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) .*\{$")
_ARRAY = re.compile(r"\b(" + "|".join(_BITS) + r")\[([\d,]*)\]")
_COLLECTIVE = re.compile(r"= (.*?) (" + "|".join(KINDS) + r")(-start)?\(")
_CALLED = re.compile(r"(?:calls|to_apply|condition|body|branch_computations)=\{?%?([\w.\-, %]+)\}?")
_TRIPS = re.compile(r'known_trip_count"?:\{"n":"(\d+)"')


def collectives(text: str) -> dict[str, dict]:
    """{kind: {count, bytes}} of a step on one chip: of the results, loops counted as often as they run.

    text: `compiled.as_text()`.
    """
    bodies, entry = _computations(text)
    times: dict[str, int] = defaultdict(int)

    def visit(name: str, factor: int):
        times[name] += factor
        for line in bodies.get(name, ()):
            trips = _TRIPS.search(line)
            for group in _CALLED.finditer(line):
                often = int(trips[1]) if trips and " while(" in line else 1
                for called in re.findall(r"[\w.\-]+", group[1]):
                    if called in bodies:
                        visit(called, factor * often)

    visit(entry, 1)
    found = {kind: {"count": 0, "bytes": 0} for kind in KINDS}
    for name, factor in times.items():
        for line in bodies[name]:
            match = _COLLECTIVE.search(line)
            if match and factor:
                sizes = [_size(*array) for array in _ARRAY.findall(match[1])]
                # A started one holds its operand beside its result, the larger or the smaller of them.
                pick = min if match[2] == "reduce-scatter" else max
                size = pick(sizes) if match[3] else sum(sizes)
                found[match[2]]["count"] += factor
                found[match[2]]["bytes"] += factor * size
    return {kind: value for kind, value in found.items() if value["count"]}


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
