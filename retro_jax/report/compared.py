"""A comparison of methods as a page: what to deploy, the table, what quality costs, where each method wins.

The page is that of `retro report`; its parts are made of summary.json and of tokens.parquet beside it.
"""

import json
from pathlib import Path

from retro_jax.evaluate import rows
from retro_jax.evaluate.beside import PARTS
from retro_jax.evaluate.figures import sign
from retro_jax.methods.method import METHODS
from retro_jax.model.sizes import LENGTH, NEIGHBOURS, PAPER, VOCAB
from retro_jax.report import charts
from retro_jax.report.decision import BASE, Decision, Stated, decide
from retro_jax.report.examples import text
from retro_jax.report.numbers import bits, interval, nats, percent, plain
from retro_jax.report.section import Section
from retro_jax.report.setup import in_words
from retro_jax.report.write import put

_GAIN = "gain over the language model, bits per byte"
_CUTS = {
    "copied": ("Copied or not", "longest run that ends with the token and stands in what was read"),
    "distance": ("Near or far", "distance of the nearest neighbour"),
    "place": ("Place in the chunk", "token of the chunk"),
}


def write(directory: Path, stated: Stated) -> Path:
    """Writes report.html, report.json and report.md of a comparison; the page's path."""
    summary = json.loads((directory / "summary.json").read_text())
    read = rows.load(directory / "tokens.parquet")
    return put(directory, content(summary, read, stated), {})


def content(summary: dict, read: rows.Rows, stated: Stated) -> dict:
    """All that the page says."""
    facts = read.facts
    made = [_table(summary, facts), _gains(summary), *_pareto(summary), _costs(summary)]
    made.append(_sizes(summary))
    made += [s for name in _CUTS if (s := _where(summary, name))]
    return {
        "question": "Which method?",
        "title": f"{facts['name']}, {facts['split']}",
        "verdict": _verdict(summary, decide(summary, stated), stated),
        "evidence": [*made, _passages(summary, read)],
        "examples": None,
        "facts": [_facts(summary, facts)],
        "made_from": "the rows in tokens.parquet beside this page, and summary.json",
    }


def _verdict(summary: dict, d: Decision, stated: Stated) -> dict:
    limit = f"{stated.latency_ms:g} ms a token" if stated.latency_ms else "any time"
    asked = f"Asked: --may={stated.may}, {limit}, --database-changes={stated.database_changes}."
    out = [f"Left out: {name}, which {why}." for name, why in d.out.items()]
    leaks = sum(summary["violations"].values())
    alarms = [f"{leaks:,} leaks: no number here means anything."] if leaks else []
    tiles = []
    for name, of in summary["methods"].items():
        effect = of["all"].get("gain")
        state = {1: "good", -1: "bad", 0: ""}[sign(effect)]
        note = f"gain {interval(effect)}" if effect else "what all are compared with"
        tiles.append(
            {"label": name, "value": bits(of["all"]["bits_per_byte"]), "note": note, "state": state}
        )
    return {
        "word": "helps" if d.word == "deploy" else "neutral",
        "head": d.head,
        "effect": asked,
        "alarms": alarms,
        "sentences": d.why,
        "advice": [*d.changes, *out],
        "tiles": tiles,
    }


def _ordered(summary: dict) -> list[str]:
    methods = summary["methods"]
    return sorted(methods, key=lambda n: methods[n]["all"]["bits_per_byte"])


def _of(part: dict | None, name: str):
    return (part or {}).get(name)


def _table(summary: dict, facts: dict) -> Section:
    methods, names = summary["methods"], _ordered(summary)
    few = percent(summary["filtered_share_of_bytes"])
    caption = (
        f"Bits per byte of the same tokens; the axis does not begin at 0. Little overlap: {few} of the bytes, in "
        f"chunks that share less than {facts['filter_overlap']:.3g} of their length with what any method retrieves or "
        "reads. No copy: tokens that end no run that stands in it. Far: the half whose nearest neighbour is "
        "farther; this alone is known before the tokens are. Content: how much better real neighbours are than "
        "random ones."
    )
    series = {
        "all": [methods[n]["all"]["bits_per_byte"] for n in names],
        "little overlap": [_of(methods[n]["filtered"], "bits_per_byte") for n in names],
    }
    chart = charts.dots("methods", caption, names, series, "bits per byte (lower is better)", bits)
    head = ["method", "reads", "bits per byte", *list(PARTS.values())[1:]]
    head += ["content", "content, little overlap"]
    if summary["trainings"] > 1:
        head.append("each training")
        caption += f" Means of {summary['trainings']} trainings; intervals are over documents and trainings."
    table = [
        [
            n, methods[n]["reads"],
            *(bits(_of(methods[n][part], "bits_per_byte")) for part in PARTS),
            interval(methods[n]["all"].get("content")),
            interval(_of(methods[n]["filtered"], "content")),
            *([", ".join(map(bits, methods[n]["seeds"]))] if "seeds" in methods[n] else []),
        ]
        for n in names
    ]  # fmt: skip
    return Section("methods", "Side by side", caption, head, table, chart, wide=True, open=True)


def _gains(summary: dict) -> Section:
    methods = summary["methods"]
    names = [n for n in _ordered(summary) if n != BASE]
    caption = (
        f"Gain over the language model, with 95 % intervals over {summary['documents']} documents; right of 0 the "
        "method is better. Help and harm: share of the tokens that gain, and that lose, more than 0.1 nats."
    )
    series = {
        PARTS[part]: [_of(methods[n][part], "gain") for n in names] for part in ("all", "filtered")
    }
    chart = charts.forest("gains", caption, names, series, _GAIN)
    table = [
        [
            n, *(interval(_of(methods[n][p], "gain")) for p in PARTS),
            percent(methods[n]["harm"]["help_rate"]), percent(methods[n]["harm"]["rate"]),
        ]
        for n in names
    ]  # fmt: skip
    table += [
        [f"{n}, k = {k}", *(interval(m["gain"][p]) for p in PARTS), "", ""]
        for n in names
        for k, m in methods[n]["fewer"].items()
    ]
    head = ["method", *PARTS.values(), "help", "harm"]
    return Section("gains", "Gain, help and harm", caption, head, table, chart)


def _pareto(summary: dict) -> list[Section]:
    methods, out = summary["methods"], []
    for name, title, unit, value in (
        ("ms", "Quality against time", "milliseconds a token, one row", lambda m: m["ms_per_token"]["1"]),
        ("gflop", "Quality against work", "GFLOP a token", lambda m: m["gflops_per_token"]),
    ):  # fmt: skip
        points = {n: (value(m), m["all"]["bits_per_byte"]) for n, m in methods.items()}
        points |= {
            f"{n}, k = {k}": (value(m), m["bits_per_byte"])
            for n, of in methods.items()
            for k, m in of["fewer"].items()
        }
        best = [
            n for n, (x, y) in points.items()
            if not any(a <= x and b <= y and (a, b) != (x, y) for a, b in points.values())
        ]  # fmt: skip
        caption = f"Bits per byte against {unit}. No method is better at less: {', '.join(best)}."
        chart = charts.points(name, caption, points, unit, "bits per byte (lower is better)", best)
        table = [[n, plain(x), bits(y)] for n, (x, y) in sorted(points.items(), key=lambda p: p[1])]
        out.append(Section(name, title, caption, ["method", unit, "bits per byte"], table, chart))
    return out


def _costs(summary: dict) -> Section:
    caption = (
        "Milliseconds from one token of a row to its next while it generates, look-ups included, measured on this "
        "machine; FLOPs are counted in the programs, those of searching are not. Training: of the weights that are "
        "used, those that they began with included; of a retriever, and of what is made of the database, it is not."
    )
    rows = next(iter(summary["methods"].values()))["ms_per_token"]
    head = [
        "method", *(f"ms, {n} rows" for n in rows), "GFLOP a token", "retrieved a token",
        "state, MiB a row", "index, MiB", "parameters", "training, PFLOP",
    ]  # fmt: skip
    table = [
        [
            n, *(plain(m["ms_per_token"][r]) for r in rows), plain(m["gflops_per_token"]),
            plain(m["retrieved_per_token"]), plain(m["state_bytes"] / 2**20), plain(m["index_bytes"] / 2**20),
            f"{m['parameters']:,}", plain(m["training_flops"] / 1e15),
        ]
        for n, m in summary["methods"].items()
    ]  # fmt: skip
    return Section("costs", "Costs", caption, head, table, wide=True, open=True)


def _sizes(summary: dict) -> Section:
    head, columns = ["method"], []
    for name, _, config in PAPER:
        head.append(name)
        made = {n: METHODS[n](config, NEIGHBOURS, None, LENGTH) for n in summary["methods"]}
        every = {n: m.formula(VOCAB, LENGTH) / LENGTH / 1e9 for n, m in made.items()}
        columns.append([f"{plain(x)} ({x / every[BASE]:.2f})" for x in every.values()])
    caption = (
        f"GFLOP a token, and in brackets times the language model's, at the paper's sizes, in sequences of {LENGTH:,} "
        f"tokens with {NEIGHBOURS} neighbours and default settings, by formula (model/formulas.py). What RETRO adds "
        "shrinks as the decoder grows; a prompt is read again at every chunk, whatever the size."
    )
    table = [[n, *values] for n, *values in zip(summary["methods"], *columns)]
    return Section("sizes", "At other sizes", caption, head, table, wide=True, open=True)


def _where(summary: dict, name: str) -> Section | None:
    parts, (title, axis) = summary["where"][name], _CUTS[name]
    names = [n for n in _ordered(summary) if n != BASE]
    if not parts or not names:
        return None
    best = {p["label"]: max(names, key=lambda n: p["gain"][n]) for p in parts}
    caption = f"Gain in nats a token over the language model by the {axis}. Best: " + "; ".join(
        f"{label} {n}" for label, n in best.items()
    )
    shown = names[:4]
    if shown != names:
        caption += ". The chart has the four best methods, the table all"
    series = {n: [p["gain"][n] for p in parts] for n in shown}
    labels = [p["label"] for p in parts]
    chart = charts.lines(
        name, caption, range(len(parts)), series, axis, "gain, nats a token", names=labels
    )
    head = [axis, "share of tokens", *names]
    table = [[p["label"], percent(p["share"]), *(nats(p["gain"][n]) for n in names)] for p in parts]
    return Section(name, title, f"{caption}.", head, table, chart)


def _passages(summary: dict, read: rows.Rows) -> Section:
    names = _ordered(summary)
    pieces = [p.encode("latin-1") for p in read.facts["vocabulary"]]
    table = []
    for p in summary["passages"]:
        tokens = read["target"][p["first"] : p["first"] + p["tokens"]]
        said = " ".join("".join(text(tokens, pieces)).split())
        id = read.facts["documents"][p["document"]]["id"]
        table.append([f"{id}, chunk {p['chunk']}", said, *(f"{p['nats'][n]:.2f}" for n in names)])
    caption = "The chunks about which the methods differ most, one of a document: nats a token, fewer is better."
    head = ["where", "passage", *names]
    return Section("passages", "Where they differ most", caption, head, table, wide=True, open=True)


def _facts(summary: dict, facts: dict) -> Section:
    table = [
        ["documents", f"{summary['documents']:,}"],
        ["tokens", f"{summary['tokens']:,}"],
        ["bytes", f"{summary['bytes']:,}"],
        ["chunk", f"{facts['chunk']} tokens"],
        ["neighbours", str(facts["neighbours"])],
        *(
            [f"chunks whose whole text is in what is read before them, {split}", in_words(of)]
            for split, of in summary["whole_chunks"].items()
        ),
        *([f"{name}: chosen for either half", _settings(of)] for name, of in summary["tuned"].items()),
        *([name, version] for name, version in facts["versions"].items()),
    ]  # fmt: skip
    caption = (
        "What a method can choose was chosen on one half of the documents and scored on the other."
    )
    return Section("facts", "What was compared", caption, ["", ""], table)


def _settings(halves: list[dict]) -> str:
    return "; ".join(", ".join(f"{n} {v}" for n, v in half.items()) for half in halves)
