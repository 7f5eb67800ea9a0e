"""What retrieval is worth against distance, share of chunks, neighbours, database, place and source.

Each function takes figures and rows, and makes a section, or None where there is nothing to say.
"""

from retro_jax.report import charts
from retro_jax.report.numbers import bits, change, interval, nats, percent, plain
from retro_jax.report.section import Section


def distance(f: dict, rows) -> Section | None:
    d = f["distance"]
    if not d:
        return None
    unit = distance_unit(rows.facts)
    groups, auroc = d["groups"], d["auroc"]
    near, far = groups[0]["gain"], groups[-1]["gain"]
    caption = (
        f"Chunks in {len(groups)} equal groups by the {unit} of their nearest neighbour, left the nearest: "
        f"{nats(near)} nats per token among the nearest and {nats(far)} among the farthest."
    )
    if auroc is not None:
        tells = (
            "hardly tells"
            if abs(auroc - 0.5) < 0.05
            else "tells a little of"
            if auroc < 0.7
            else "tells"
        )
        caption += f" With an AUROC of {auroc:.2f} (0.5: chance) the distance {tells} whether a chunk gains."
    series = {"gain": [g["gain"] for g in groups]}
    if any(g["predicted"] is not None for g in groups):
        series["isotonic fit on other documents"] = [g["predicted"] for g in groups]
    x = [g["distance"] for g in groups]
    chart = charts.lines("distance", caption, x, series, unit, "gain, nats per token")
    table = [
        [f"{g['chunks']:,}", plain(g["distance"]), nats(g["gain"]), nats(g["predicted"])]
        for g in groups
    ]
    head = ["chunks", unit, "gain, nats per token", "predicted"]
    return Section(
        "distance", "Does the distance tell what a neighbour is worth?", caption, head, table, chart
    )


def distance_unit(facts: dict) -> str:
    """What the retriever's distances are."""
    return f"distance ({facts['index'].get('distance', 'squared L2')})"


def kept(f: dict, least: float = 0.9) -> float | None:
    """The smallest share of chunks, the nearest first, that has `least` of what reading all gains over
    reading none; None where reading all gains nothing."""
    steps = f["skipping"]
    none, every = steps[0]["bits_per_byte"], steps[-1]["bits_per_byte"]
    if none <= every:
        return None
    enough = (s["share"] for s in steps if none - s["bits_per_byte"] >= least * (none - every))
    return next(enough, 1.0)


def skipping(f: dict, rows) -> Section:
    steps = f["skipping"]
    best, share = min(steps, key=lambda s: s["bits_per_byte"]), kept(f)
    caption = (
        "Bits per byte if only so large a share of the chunks, those with the nearest neighbours, reads any. "
        f"The best share here is {percent(best['share'])} with {bits(best['bits_per_byte'])}"
    )
    caption += (
        "; reading always is no better than never." if share is None
        else f"; {percent(share)} already have nine tenths of the gain."
    )  # fmt: skip
    chart = charts.lines(
        "skipping", caption, [s["share"] for s in steps],
        {"bits per byte": [s["bits_per_byte"] for s in steps]},
        "share of chunks that read neighbours", "bits per byte",
    )  # fmt: skip
    table = [[percent(s["share"]), bits(s["bits_per_byte"])] for s in steps]
    return Section(
        "skipping", "Retrieve or skip", caption, ["share that reads", "bits per byte"], table, chart
    )


def _curve(f: dict, name: str, title: str, points: dict[str, str], x: str) -> Section | None:
    """Bits per byte over conditions {condition: label}, the last of which is `on`."""
    points = {c: label for c, label in points.items() if c in f["bits_per_byte"]}
    if len(points) < 3:
        return None
    values = [f["bits_per_byte"][c] for c in points]
    last, before = values[-1] or 0, values[-2] or 0
    labels = list(points.values())
    caption = (
        f"Bits per byte of the same model against {x}. The last step, from {labels[-2]} to {labels[-1]}, changes "
        f"{change(last - before)} bits per byte: {'more is still better' if last < before else 'more is no better'}."
    )
    chart = charts.lines(
        name,
        caption,
        [int(n) for n in labels] if all(map(str.isdecimal, labels)) else range(len(values)),
        {"bits per byte": values},
        x,
        "bits per byte",
        names=labels,
    )
    table = [[label, c, bits(v)] for (c, label), v in zip(points.items(), values)]
    return Section(name, title, caption, [x, "condition", "bits per byte"], table, chart)


def neighbours(f: dict, rows) -> Section | None:
    k = rows.facts["neighbours"]
    points = {"off": "0"} | {f"k{i}": str(i) for i in range(1, k)} | {"on": str(k)}
    return _curve(f, "neighbours", "How many neighbours", points, "neighbours read")


def database(f: dict, rows) -> Section | None:
    shares = sorted(int(n[9:]) for n in rows.nats if n.startswith("database_"))
    points = {"off": "none"} | {f"database_{n}": f"{n} %" for n in shares} | {"on": "all"}
    if not shares:
        return None
    return _curve(
        f, "database", "How large a database", points, "share of the database's documents"
    )


def place(f: dict, rows) -> Section:
    parts, m = f["by_place"], rows.facts["chunk"]
    ends = [p["from"] for p in parts[1:]] + [m]
    names = [
        f"{p['from']}-{e - 1}" if e - 1 > p["from"] else f"{p['from']}" for p, e in zip(parts, ends)
    ]
    gains = [p["nats_per_token"] for p in parts]
    first, last = gains[0] or 0.0, gains[-1] or 0.0
    caption = (
        "Gain (off - on) by the place in the chunk: neighbours were looked up before it began, and age. "
        f"{nats(first)} nats per token in its first eighth, {nats(last)} in its last"
    )
    caption += (
        ": a look-up more often may be worth its price." if first > 0 and last < 0.7 * first
        else ": they hardly age." if first > 0 else "."
    )  # fmt: skip
    chart = charts.columns(
        "place", caption, names, gains, "token of the chunk", "gain, nats per token"
    )
    table = [[n, nats(g)] for n, g in zip(names, gains)]
    return Section(
        "place", "Place in the chunk", caption, ["token", "nats per token"], table, chart
    )


def sources(f: dict, rows) -> Section | None:
    every = f["by_source"]
    if not every:
        return None
    pair = "random - on" if "random" in rows.nats else "off - on"
    order = sorted(every, key=lambda n: -every[n]["value"])
    caption = (
        f"{pair} by the source of the documents, with 95 % intervals. Retrieval is worth most to {order[0]} "
        f"({change(every[order[0]]['value'])}) and least to {order[-1]} ({change(every[order[-1]]['value'])})."
    )
    shown = order if len(order) <= 30 else order[:15] + order[-15:]
    if shown != order:
        caption += f" Of {len(order)} sources the chart has the first and the last 15."
    labels = [n if len(n) <= 24 else f"{n[:23]}…" for n in shown]
    chart = charts.forest(
        "sources", caption, labels, {pair: [every[n] for n in shown]}, f"{pair}, bits per byte"
    )
    table = [[n, interval(every[n]), f"{every[n]['tokens']:,}"] for n in order]
    head = ["source", f"{pair}, bits per byte [95 %]", "tokens"]
    return Section("sources", "By source", caption, head, table, chart)
