"""A study as a page: what a database is worth in parameters, the laws, and what cannot be said.

Everything is computed from rows.parquet. The page is that of `retro report`; its plots are files beside it too.
"""

from pathlib import Path

import numpy as np

from retro_jax.evaluate.beside import BASE, PARTS
from retro_jax.report.numbers import NONE, bits, interval, percent, plain
from retro_jax.report.section import Section
from retro_jax.report.write import put
from retro_jax.study import laws, plots
from retro_jax.study.figures import (
    CURVES,
    READER,
    SIZES,
    Curve,
    curves,
    law_of,
    multipliers,
    pooled,
)
from retro_jax.study.runs import HELDOUT
from retro_jax.study.sums import Sums, load

_MOST = (1.0, 0.8, 0.5, 0.2)  # shares of a document's 13-grams
_FEWEST_DOCUMENTS = 10  # of which a bootstrap says something
_SHARES = {"database_1": 0.01, "database_10": 0.1, "on": 1.0}  # of the database


def write(file: Path) -> Path:
    """Writes report.html, report.json, report.md and plots/ beside a study's rows; the page's path."""
    sums = load(file)
    every = {
        (split, part): curves(sums, split, part)
        for split in sums.facts["documents"]
        for part in PARTS
    }
    made, drawn = content(sums, every)
    for name, draw in drawn.items():
        plots.save(draw, file.parent / "plots" / name)
    return put(file.parent, made, {"figures": _figures(every)})


def content(sums: Sums, every: dict) -> tuple[dict, dict]:
    """All that the page says, and its plots by name."""
    drawn: dict[str, plots.Draw] = {}
    evidence = [
        *_losses(every, drawn), *_multipliers(every, drawn), *_axes(every), *_laws(every),
        _contained(sums),
        *_databases(sums, every, drawn), _runs(sums),
    ]  # fmt: skip
    whole = {
        "question": "How many parameters is a database worth?",
        "title": sums.facts["name"],
        "verdict": _verdict(sums, every),
        "evidence": evidence,
        "examples": None,
        "facts": [_facts(sums)],
    }
    return whole, drawn


def _pair(every: dict, split: str, part: str) -> tuple[Curve, Curve] | None:
    """The curves of the language model and of RETRO, if there are enough sizes."""
    found = every.get((split, part), {})
    # Of another database only what reads was scored; the language model's tokens are those of the split.
    if BASE not in found or "on" not in found or len(found[BASE].runs) < laws.FEWEST:
        return None
    return found[BASE], found["on"]


def worth(m: dict) -> str:
    """A multiplier with its interval: 1.84 [1.51, 2.20]; where it runs off what was measured, at least that."""
    said = f"{m['value']:.2f} [{m['low']:.2f}, {m['high']:.2f}]"
    if m["below"]:
        return f"{said}, below the smallest"
    if not m["beyond"]:
        return said
    if m["low"] < m["at_least"]:
        return f"{said}, beyond the largest"
    return f"≥ {m['at_least']:.2f} (by the law {said})"


def _verdict(sums: Sums, every: dict) -> dict:
    runs, pair = sums.facts["runs"], _pair(every, HELDOUT, "all")
    if not pair:
        return {
            "word": "neutral", "head": "Not enough sizes yet",
            "effect": f"{len(runs)} runs are done; a law needs {laws.FEWEST} sizes of the language model, RETRO one.",
            "alarms": [], "sentences": [], "advice": [], "tiles": [],
        }  # fmt: skip
    found = {part: multipliers(*p) for part in PARTS if (p := _pair(every, HELDOUT, part))}
    known = [m for m in found["all"] if not m["beyond"]]
    last = known[-1] if known else found["all"][-1]
    tiles = []
    for part, each in found.items():
        m = next(m for m in each if m["size"] == last["size"])
        state = "good" if m["low"] > 1 else "bad" if m["high"] < 1 else ""
        note = f"times {plain(int(m['size']))}"
        tiles.append({"label": PARTS[part], "value": worth(m), "note": note, "state": state})
    sentences = [_sentence(PARTS[part], each) for part, each in found.items()]
    for split in (s for s in sums.facts["documents"] if s != HELDOUT):
        if p := _pair(every, split, "all"):
            sentences.append(_sentence(split, multipliers(*p)))
    above = {part: each[-1]["low"] > 1 for part, each in found.items()}
    below = {part: each[-1]["high"] < 1 for part, each in found.items()}
    word = "helps" if above["all"] and above.get("far") else "hurts" if below["all"] else "neutral"
    head = (
        f"RETRO with a decoder of {plain(int(last['size']))} parameters equals a language model of {worth(last)} times "
        "that"
    )
    advice = [
        f"{min(len(c.runs) for c in pair)} sizes: a law has three numbers. How far off it is where a size is left out "
        "stands below.",
        "RETRO's encoder and its search cost more than its decoder's parameters say: see the other axes.",
    ]
    if not all(pooled(c.each) for c in pair):
        advice.append(
            "No size has several seeds: these intervals do not know how far seeds are apart."
        )
    return {
        "word": word, "head": head,
        "effect": "By parameters of the decoder without embeddings, on all held-out text; 95 % intervals over "
        "documents and seeds.",
        "alarms": [],
        "sentences": sentences,
        "advice": advice,
        "tiles": tiles,
    }  # fmt: skip


def _sentence(what: str, each: list[dict]) -> str:
    said = "; ".join(f"{worth(m)} at {plain(int(m['size']))}" for m in each)
    return f"M on {what}: {said}."


def _losses(every: dict, drawn: dict) -> list[Section]:
    out = []
    for part, name in PARTS.items():
        found = {n: c for n, c in every[HELDOUT, part].items() if n in CURVES}
        if not found:
            continue
        title, label = f"Loss by size: {name}", f"losses-{part}"
        drawn[label] = plots.losses(found, "layers")
        table = [
            [n, plain(int(size)), str(len(each)), bits(loss), *map(bits, np.nanquantile(c.draws[:, i], (0.025, 0.975)))]
            for n, c in found.items()
            for i, (size, each, loss) in enumerate(zip(c.sizes["layers"], c.each, c.losses))
        ]  # fmt: skip
        head = ["condition", SIZES["layers"], "seeds", "bits per byte", "from", "to"]
        caption = "Points are means over seeds with 95 % intervals, lines the laws through them."
        out.append(
            Section(label, title, caption, head, table, plots.on_page(label, title, drawn[label]))
        )
    return out


def _multipliers(every: dict, drawn: dict) -> list[Section]:
    found = {
        f"{PARTS[part]}" if split == HELDOUT else split: multipliers(*pair)
        for (split, part) in every
        if (split == HELDOUT or part == "all") and (pair := _pair(every, split, part))
    }
    if not found:
        return []
    drawn["multipliers"] = plots.multipliers(found, "layers")
    table = [
        [
            name,
            plain(int(m["size"])),
            bits(m["loss"]),
            worth(m),
            plain(m["floor_0"]),
            plain(m["floor_90"]),
        ]
        for name, each in found.items()
        for m in each
    ]
    caption = (
        "M: the language model that is as good as RETRO has M times the parameters of RETRO's decoder, without "
        "embeddings. ≥: it would have more than the largest that was trained. The last columns fix the law's floor, at "
        "0 and at nine tenths of the least loss: where they are far from M, the law decides and not what was measured."
    )
    head = ["text", SIZES["layers"], "RETRO's bits per byte", "M", "M, floor 0", "M, floor 0.9"]
    chart = plots.on_page("multipliers", "What a database is worth", drawn["multipliers"])
    return [
        Section(
            "multipliers",
            "What a database is worth",
            caption,
            head,
            table,
            chart,
            wide=True,
            open=True,
        )
    ]


def _axes(every: dict) -> list[Section]:
    table = []
    for part in ("all", "filtered", "far"):
        pair = _pair(every, HELDOUT, part)
        if not pair:
            continue
        by = {size: multipliers(*pair, size) for size in SIZES}
        for i, m in enumerate(by["layers"]):
            table.append(
                [PARTS[part], plain(int(m["size"])), *(worth(by[size][i]) for size in SIZES)]
            )
    head = ["text", "decoder", *SIZES.values()]
    caption = (
        "The same loss, asked by four sizes: how many times RETRO's parameters in all (its encoder and "
        "cross-attention included), its training FLOPs, or its FLOPs of a token a language model of that loss has. "
        "Below 1: for the same, a larger language model would have been better. The search is not among the FLOPs."
    )
    return (
        [Section("axes", "By other sizes", caption, head, table, wide=True, open=True)]
        if table
        else []
    )


def _laws(every: dict) -> list[Section]:
    table = []
    for (split, part), found in every.items():
        for name, curve in found.items():
            if name not in CURVES or not (law := law_of(curve)):
                continue
            low, high = law["exponent_interval"]
            wrong = law["left_out"] and ", ".join(f"{x:+.3f}" for x in law["left_out"])
            table.append(
                [split, PARTS[part], name, bits(law["floor"]), plain(law["scale"]),
                 f"{law['exponent']:.2f} [{low:.2f}, {high:.2f}]", wrong or NONE]
            )  # fmt: skip
    caption = (
        "L(N) = floor + scale x N^-exponent, N parameters without embeddings. Left out: for each size what a law "
        "through the others predicts, less what was measured, bits per byte, from the smallest to the largest."
    )
    head = ["split", "text", "condition", "floor", "scale", "exponent", "left out"]
    return (
        [Section("laws", "The laws", caption, head, table, wide=True, open=True)] if table else []
    )


def _contained(sums: Sums) -> Section:
    table = []
    for split in sums.facts["documents"]:
        shares = sums.facts["contained"][split]
        values = np.array(shares)
        for most in _MOST:
            enough = (values <= most).sum() >= _FEWEST_DOCUMENTS
            found = curves(sums, split, "all", most, (BASE, "on")) if enough else {}
            pair = _pair({(split, "all"): found}, split, "all")
            said = "; ".join(map(worth, multipliers(*pair))) if pair else NONE
            table.append(
                [split, percent(most), f"{(values <= most).sum():,} of {len(values):,}", said]
            )
    caption = (
        "Held-out documents that nearly repeat one of the database are left out (13-gram Jaccard). Of those that "
        "remain, a part may stand in a larger document, or be a form that many pages have. Here M of those alone of "
        "whose 13-grams no more than a share stands in any one document of the database, from the smallest decoder to "
        "the largest."
    )
    head = ["split", "at most", "documents", "M"]
    return Section("contained", "What else is repeated", caption, head, table, wide=True, open=True)


def _databases(sums: Sums, every: dict, drawn: dict) -> list[Section]:
    found, table = {}, []
    all_text = every[HELDOUT, "all"]
    if BASE not in all_text:
        return []
    base = all_text[BASE]
    place = {size: i for i, size in enumerate(base.sizes["layers"])}
    for name, share in _SHARES.items():
        curve = all_text.get(name)
        for j, size in enumerate(curve.sizes["layers"] if curve else ()):
            if size not in place:
                continue
            i, run = place[size], sums.facts["runs"][curve.runs[j][0]]
            tokens = share * run["database_chunks"] * run["chunk"] / size
            gain = float(base.losses[i] - curve.losses[j])
            low, high = laws.interval(base.draws[:, i] - curve.draws[:, j])
            found.setdefault(plain(int(size)), []).append((tokens, gain))
            said = interval({"value": gain, "low": low, "high": high})
            table.append([plain(int(size)), percent(share), plain(tokens), said])
    if not found:
        return []
    drawn["databases"] = plots.databases(found)
    title = "How large a database"
    caption = "What RETRO gains over the language model of the same decoder, with a share of the database's documents."
    head = ["decoder", "share", "tokens a parameter", "gain, bits per byte"]
    chart = plots.on_page("databases", title, drawn["databases"])
    return [Section("databases", title, caption, head, table, chart)]


def _runs(sums: Sums) -> Section:
    table = []
    for name, run in sums.facts["runs"].items():
        for condition in CURVES:
            said = sums.of(run=name, split=HELDOUT, part="all", condition=condition)
            if not len(said["nats"]):
                continue
            loss = said["nats"].sum() / said["bytes"].sum() / np.log(2)
            own = run["fields"]
            fields = ", ".join(
                f"{k.removeprefix('train.').removeprefix('model.')}={v}" for k, v in own.items()
            )
            table.append([name, condition, bits(loss), fields])
    caption = "Every run that is done; bits per byte of all held-out text."
    return Section(
        "runs",
        "The runs",
        caption,
        ["run", "condition", "bits per byte", "fields"],
        table,
        wide=True,
    )


def _facts(sums: Sums) -> Section:
    runs = sums.facts["runs"].values()
    sizes = {s: len(ids) for s, ids in sums.facts["documents"].items()}
    own = [
        ["runs", f"{len(runs)}"],
        ["documents scored", ", ".join(f"{n:,} of {s}" for s, n in sizes.items())],
        [
            "training",
            f"{sum(m['seconds'] or 0 for r in runs for m in r['methods'].values()) / 3600:.1f} hours",
        ],
        ["methods", f"{BASE} and {READER}"],
    ]
    return Section("facts", "What was run", "", ["", ""], own)


def _figures(every: dict) -> dict:
    """All figures as plain values, by split and part."""
    out: dict = {}
    for (split, part), found in every.items():
        pair = _pair(every, split, part)
        out.setdefault(split, {})[part] = {
            "curves": {
                n: {"sizes": {s: x.tolist() for s, x in c.sizes.items()}, "losses": c.losses.tolist(),
                    "seeds": [x.tolist() for x in c.each], "law": law_of(c)}
                for n, c in found.items()
            },
            "multipliers": {s: multipliers(*pair, s) for s in SIZES} if pair else None,
        }  # fmt: skip
    return out
