"""The same report as Markdown, for a terminal or a review."""

import re

from retro_jax.report.numbers import nats, percent, plain
from retro_jax.report.section import Section
from retro_jax.terminal import visible


def render(whole: dict) -> str:
    """Markdown of title, verdict, evidence, examples and facts; text from data stands as code or escaped."""
    v = whole["verdict"]
    out = [f"# {_escaped(v['head'])}: {_escaped(whole['title'])}", _escaped(v["effect"])]
    out += [f"**{_escaped(text)}**" for text in v["alarms"]]
    out += map(_escaped, [*v["sentences"], *v["advice"]])
    tiles = [[t["label"], t["value"], t["note"]] for t in v["tiles"]]
    if tiles:
        out.append(_table(["", "value", ""], tiles))
    out.append("## Evidence")
    for section in whole["evidence"]:
        out += _section(section)
    if whole["examples"] is not None:
        out.append("## Examples")
        for e in whole["examples"]:
            out += _example(e)
    out.append("## Facts")
    for section in whole["facts"]:
        out += _section(section)
    return "\n\n".join(out) + "\n"


def _section(s: Section) -> list[str]:
    return [f"### {_escaped(s.title)}", _escaped(s.caption), _table(s.head, s.rows)]


def _example(e: dict) -> list[str]:
    against = e["against_random"]
    random = "" if against is None else f", {nats(against)} against random chunks"
    out = [
        f"### {e['kind']}: {_escaped(e['document'])}, chunk {e['chunk']}",
        f"tokens {e['place'][0]} to {e['place'][1]}; {nats(e['gain'])} nats per token against none{random}; "
        f"{e['class']}",
        _code("".join(text for text, _, _ in e["tokens"])),
    ]
    for i, n in enumerate(e["neighbours"]):
        out.append(
            f"neighbour {i + 1}: {_escaped(n['source'])}; distance {plain(n['distance'])}; longest run "
            f"shared {n['run']} tokens; attention N {percent(n['mass'][0])}, F {percent(n['mass'][1])}"
        )
        out += [_code("".join(text for text, _ in n[half])) for half in "NF" if n[half]]
    return out


def _table(head: list[str], rows: list[list[str]]) -> str:
    def line(cells):
        return "| " + " | ".join(_escaped(c) for c in cells) + " |"

    return "\n".join([line(head), "|" + " --- |" * len(head), *map(line, rows)])


def _escaped(text: str) -> str:
    """Text that is neither markup nor HTML, on one line."""
    return re.sub(r"([\\`*_\[\]<>|#&])", r"\\\1", " ".join(visible(str(text)).split()))


def _code(text: str) -> str:
    """A block of code whose fence is longer than any in it."""
    text = visible(text)
    fence = "`" * max(3, 1 + max(map(len, re.findall(r"`+", text)), default=0))
    return f"{fence}\n{text}\n{fence}"
