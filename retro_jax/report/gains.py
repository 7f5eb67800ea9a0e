"""What retrieval is worth: by condition, token, overlap, distance, place and source.

Each function takes figures and rows, and makes a section, or None where there is nothing to say.
"""

import numpy as np

from retro_jax.evaluate.beside import PARTS
from retro_jax.evaluate.chunks import EPS
from retro_jax.evaluate.figures import sign
from retro_jax.evaluate.signals import EFFECTS
from retro_jax.report import charts
from retro_jax.report.numbers import bits, change, interval, nats, percent, total
from retro_jax.report.section import Section

_BITS = "bits per byte (lower is better)"
LITTLE = PARTS["filtered"]  # what it is called
_TOLD = {
    1: "is above 0",
    0: "cannot be told from 0",
    -1: "is below 0",
}


def conditions(f: dict, rows) -> Section:
    means, every = rows.facts["conditions"], f["bits_per_byte"]
    names = sorted(every, key=lambda n: (every[n] is None, every[n]))
    few = f["bits_per_byte_filtered"]
    best = min((n for n in names if n not in ("self", "on")), key=lambda n: every[n] or 0)
    share = percent(f["filtered_share_of_bytes"])
    ahead = "better" if (every["on"] or 0) < (every[best] or 0) else "no better"
    caption = (
        f"Bits per byte under what the model reads; the axis does not begin at 0. Real neighbours (on) "
        f"have {bits(every['on'])}, {ahead} than the best other condition, {best}, with {bits(every[best])}. "
        f"Little overlap: the {share} of the bytes in chunks that share little with what was found."
    )
    if "self" in every:
        caption += " self is shown the answer: no retriever can do better."
    series = {"all": [every[n] for n in names], LITTLE: [few[n] for n in names]}
    chart = ""
    if any(v is not None for v in every.values()):
        chart = charts.dots("conditions", caption, names, series, _BITS, bits)
    head = [
        "condition",
        "what the model reads",
        "bits per byte",
        LITTLE,
        "perplexity per token",
    ]
    table = [
        [n, means[n], bits(every[n]), bits(few[n]), f"{f['perplexity'][n]['token']:,.2f}"]
        for n in names
    ]
    return Section("conditions", "Conditions", caption, head, table, chart, wide=True, open=True)


def effects(f: dict, rows) -> Section:
    every, few = f["effects"], f["effects_filtered"]
    names = list(every)
    name = f["verdict"]["by"]
    words = {n: f"{n.replace('_', ' ')}: {EFFECTS[n][0]} - {EFFECTS[n][1]}" for n in names}
    caption = (
        "How many bits per byte one condition loses against another, with a 95 % interval over documents; "
        "right of 0 the second is better."
    )
    for n in dict.fromkeys([name, *(["content"] if "content" in every else [])]):
        caption += f" {words[n]} {_TOLD[sign(every[n])]}"
        caption += f", and with {LITTLE} {_TOLD[sign(few[n])]}." if few.get(n) else "."
    series = {"all": list(every.values()), LITTLE: [few.get(n) for n in names]}
    labels = [f"{n.replace('_', ' ')}\n{EFFECTS[n][0]} - {EFFECTS[n][1]}" for n in names]
    chart = charts.forest("effects", caption, labels, series, "gain, bits per byte")
    table = [[words[n], interval(every[n]), interval(few.get(n))] for n in names]
    head = ["effect", "all, bits per byte [95 %]", LITTLE]
    return Section("effects", "What each part is worth", caption, head, table, chart)


def spread(rows) -> tuple[np.ndarray, np.ndarray]:
    """Edges [41] and counts [40] of the tokens' gains, nats of off less on; the ends hold what is beyond."""
    gain = rows.nats["off"] - rows.nats["on"]
    most = max(1.0, float(np.ceil(np.percentile(np.abs(gain), 99.9))))
    edges = np.linspace(-most, most, 41)
    return edges, np.histogram(np.clip(gain, -most, most), edges)[0]


def histogram(f: dict, rows) -> Section:
    edges, counts = spread(rows)
    h = f["harm"]
    caption = (
        f"Tokens by what neighbours are worth to them (off - on; the count is logarithmic, the ends hold what is "
        f"beyond). {percent(h['help_rate'])} gain and {percent(h['rate'])} lose more than {EPS} nats: "
        f"{total(h['help'])} nats of help against {total(-h['harm'])} of harm; the best hundredth of the tokens "
        f"has {percent(h['concentration'])} of the help."
    )
    chart = charts.histogram(
        "histogram", caption, edges, counts, "gain, nats (right: neighbours help)", "tokens"
    )
    table = [
        [f"{a:+.2f} to {b:+.2f}", f"{n:,}"]
        for a, b, n in zip(edges[:-1], edges[1:], counts.tolist())
    ]
    return Section(
        "histogram", "Help and harm by token", caption, ["gain, nats", "tokens"], table, chart
    )


def copied(f: dict, rows) -> Section:
    c = f["copied"]
    names = [
        f"{b['from']}" if b["from"] == b["to"] else f"{b['from']}+" if b["to"] is None
        else f"{b['from']}-{b['to']}" for b in c["bins"]
    ]  # fmt: skip
    gains, shares = [b["nats_per_token"] for b in c["bins"]], [b["share"] for b in c["bins"]]
    caption = (
        "Gain (off - on) by the longest run of tokens that ends with the token and stands in what was read; "
        "above each bar its share of the tokens. Where there is none (0), neighbours are worth "
        f"{nats(c['novel'])} nats per token"
    )
    if c["copy_share"] is not None and sum(b["nats"] for b in c["bins"]) > 0:
        more = " (more than all: the others lose)" if c["copy_share"] > 1 else ""
        caption += f"; tokens that end one have {percent(c['copy_share'])} of the gain{more}"
    caption += "."
    chart = charts.columns(
        "copied", caption, names, gains, "copied run, tokens", "gain, nats per token",
        [f"{100 * s:.0f} %" if s >= 0.01 or not s else "<1 %" for s in shares],
    )  # fmt: skip
    table = [
        [n, percent(b["share"]), nats(b["nats_per_token"]), total(b["nats"])]
        for n, b in zip(names, c["bins"])
    ]
    head = ["copied run", "share of tokens", "nats per token", "nats in all"]
    return Section("copied", "Copied or not", caption, head, table, chart)


def _shown(rows) -> list[str]:
    """The conditions that the tables of parts of a text have."""
    return [n for n in ("on", "off", "random", "language_model") if n in rows.nats]


def filtered(f: dict, rows) -> Section | None:
    parts = [p for p in f["filtered"] if p["content"]]
    if not parts:
        return None
    shown = _shown(rows)
    pair = "random - on" if "random" in rows.nats else "off - on"
    first = parts[0]
    lowest = min(shown, key=lambda n: first["bits_per_byte"][n] or 0)
    caption = (
        f"Only chunks of which less than such a share stands, in one run, in what was found. Below {first['below']:g} "
        f"({percent(first['share_of_bytes'])} of the bytes) the best of the curves is {lowest}, and {pair} is worth "
        f"{interval(first['content'])}; over everything {change(parts[-1]['content']['value'])}."
    )
    series = {n: [p["bits_per_byte"][n] for p in parts] for n in shown}
    x = [p["below"] for p in parts]
    chart = charts.lines(
        "filtered", caption, x, series, "allowed overlap, share of a chunk", "bits per byte"
    )
    gain = [[p["content"][n] for p in parts] for n in ("value", "low", "high")]
    chart += charts.lines(
        "content", f"{pair} against the allowed overlap", x, {pair: gain[0]},
        "allowed overlap, share of a chunk", f"{pair}, bits per byte", {pair: gain[1:]},
    )  # fmt: skip
    head = ["overlap below", "share of bytes", *shown, f"{pair} [95 %]"]
    table = []
    for p in parts:
        curves = (bits(p["bits_per_byte"][n]) for n in shown)
        kept = percent(p["share_of_bytes"])
        table.append(
            ["any" if p["below"] == 1 else f"{p['below']:g}", kept, *curves, interval(p["content"])]
        )
    return Section("filtered", "Without what is shared", caption, head, table, chart, wide=True)


def nearest(f: dict, rows) -> Section:
    """By how near the nearest neighbour is: known before reading, as what is copied is not."""
    parts, by = f["nearest"], f["verdict"]["by"]
    told = " - ".join(EFFECTS[by])
    hurt = [p["label"] for p in parts if sign(p["effects"][by]) < 0]
    caption = (
        "Tokens by the distance of their nearest neighbour, in quarters. It is known before the tokens are: what is "
        "chosen by an overlap, or by the end of a copy, leaves out those that copying got right, and a reader that is "
        f"right to trust a neighbour loses on the rest. {told} is below 0 "
        + (f"in: {', '.join(hurt)}." if hurt else "in none of them.")
    )
    names = [p["label"] for p in parts]
    shown = _shown(rows)
    series = {told: [p["effects"][by] for p in parts]}
    chart = charts.forest("nearest", caption, names, series, "gain, bits per byte")
    head = ["nearest neighbour", "share of bytes", *shown, f"{told} [95 %]"]
    table = [
        [p["label"], percent(p["share_of_bytes"]), *(bits(p["bits_per_byte"][n]) for n in shown),
         interval(p["effects"][by])]
        for p in parts
    ]  # fmt: skip
    return Section("nearest", "Where it finds little", caption, head, table, chart, wide=True)
