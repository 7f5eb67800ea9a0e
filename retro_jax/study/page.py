"""A study as a page: what a database is worth in parameters, the laws, and what cannot be said.

Everything is computed from rows.parquet. The page is that of `retro report`; its plots are files beside it too.
"""

from pathlib import Path

from retro_jax.evaluate.beside import BASE, PARTS
from retro_jax.evaluate.figures import FEW
from retro_jax.evaluate.training import ENOUGH
from retro_jax.report.numbers import about, bits, interval, plain
from retro_jax.report.section import Section
from retro_jax.report.write import put
from retro_jax.study import gains, laws, plots
from retro_jax.study.evidence import pair_of, sections, worth
from retro_jax.study.figures import READER, SIZES, curves, law_of, multipliers, pooled
from retro_jax.study.runs import HELDOUT
from retro_jax.study.sums import Sums, load


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
    evidence, drawn = sections(sums, every)
    whole = {
        "question": "How many parameters is a database worth?",
        "title": sums.facts["name"],
        "verdict": _unless_early(sums, _verdict(sums, every)),
        "evidence": evidence,
        "examples": None,
        "facts": [_facts(sums)],
        "made_from": "the rows in rows.parquet beside this page",
    }
    return whole, drawn


def _verdict(sums: Sums, every: dict) -> dict:
    pair = pair_of(every, HELDOUT, "all")
    if not pair:
        return _few_sizes(sums, every)
    found = {part: multipliers(*p) for part in PARTS if (p := pair_of(every, HELDOUT, part))}
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
        if p := pair_of(every, split, "all"):
            sentences.append(_sentence(split, multipliers(*p)))
    above = {part: each[-1]["low"] > 1 for part, each in found.items()}
    below = {part: each[-1]["high"] < 1 for part, each in found.items()}
    word = "helps" if above["all"] and above.get("far") else "hurts" if below["all"] else "neutral"
    sure = last["low"] > 1 or last["high"] < 1
    head = (
        f"RETRO with a decoder of {plain(int(last['size']))} parameters is as good as a language model of "
        f"{worth(last)} times that" + ("" if sure else "; this cannot be told from 1")
    )
    sizes = min(len(c.runs) for c in pair)
    off = "how far off it is where a size is left out stands below"
    advice = [
        f"{sizes} sizes: a law has three numbers; {off if sizes > laws.FEWEST else 'nothing tests it'}.",
        "RETRO's encoder and its search cost more than its decoder's parameters say: see the other axes.",
    ]
    advice += _missing(sums) + _seeds(pair)
    return {
        "word": word, "head": head,
        "effect": "By parameters of the decoder without embeddings, on all held-out text; 95 % intervals over "
        "documents and seeds.",
        "alarms": [],
        "sentences": sentences,
        "advice": advice,
        "tiles": tiles,
    }  # fmt: skip


def _few_sizes(sums: Sums, every: dict) -> dict:
    """The verdict while M cannot be said: the gain at the largest decoder that both have."""
    said = {"word": "neutral", "alarms": [], "sentences": [], "tiles": []}
    needs = f"M, and the laws, need {laws.FEWEST} sizes of the language model and one of RETRO."
    advice = [*_missing(sums), needs]
    if lacking := [m for m in (BASE, READER) if m not in sums.facts["curves"]]:
        effect = (
            f'Study(curves={{"{BASE}": [...], "{READER}": [...]}}) says which runs are sizes and seeds of one method, '
            f"to have them side by side. This study names no runs of {' and '.join(lacking)}."
        )
        return said | {"head": "Nothing to compare", "effect": effect, "advice": advice}
    gained = {}
    for split, part in every:
        if pair := gains.both(every, split, part):
            at = [
                gain | {"size": size}
                for i, size in enumerate(pair[1].sizes["layers"])
                if (gain := gains.at(*pair, i))
            ]
            gained |= {(split, part): at} if at else {}
    if (HELDOUT, "all") not in gained:
        effect = "No size is done both as a language model and as RETRO."
        return said | {"head": "Not enough runs yet", "effect": effect, "advice": advice}
    last = gained[HELDOUT, "all"][-1]
    size = f"With a decoder of {plain(int(last['size']))} parameters"
    documents = len(sums.facts["documents"][HELDOUT])
    few = documents < FEW
    sure = not few and (last["low"] > 0 or last["high"] < 0)
    if few:
        head = f"{size}: {documents} documents are too few for a verdict"
    elif sure:
        head = (
            f"{size}, RETRO is {'better' if last['value'] > 0 else 'worse'} than the language model"
        )
    else:
        head = f"{size}, RETRO cannot be told from the language model"
    return said | {
        "word": ("helps" if last["value"] > 0 else "hurts") if sure else "neutral",
        "head": head,
        "effect": f"{bits(last['base'])} bits per byte without retrieval, {bits(last['base'] - last['value'])} with; "
        "95 % intervals over documents and seeds.",
        "sentences": [
            f"Gain on {PARTS[part] if split == HELDOUT else f'{split}, {PARTS[part]}'}: "
            + "; ".join(f"{interval(g)} at {plain(int(g['size']))}" for g in each) + "."
            for (split, part), each in gained.items()
        ],
        "advice": advice + _seeds(gains.both(every, HELDOUT, "all")),
    }  # fmt: skip


def _unless_early(sums: Sums, verdict: dict) -> dict:
    """The verdict, or that some of what was trained saw too little text for one."""
    early = {n: seen for n, seen in _tokens(sums).items() if seen < ENOUGH}
    if not early:
        return verdict
    name = min(early, key=early.get)
    said = f"{name} saw {about(early[name])} tokens of training for each of its parameters, and fewer than "
    said += f"{ENOUGH:g} are too few"
    return verdict | {
        "word": "neutral", "head": "Not trained enough to tell", "effect": f"{verdict['head']}. {verdict['effect']}",
        "advice": [f"Train longer before anything is concluded: {said}.", *verdict["advice"]],
    }  # fmt: skip


def _tokens(sums: Sums) -> dict[str, float]:
    """Tokens of training for each parameter, of every run."""
    out = {}
    for name, run in sums.facts["runs"].items():
        steps, batch, length = (run["what"][f"train.{n}"] for n in ("steps", "batch", "length"))
        out[name] = steps * batch * length / max(m["parameters"] for m in run["methods"].values())
    return out


def _missing(sums: Sums) -> list[str]:
    """Which runs are not done, in a sentence."""
    missing, done = sums.facts["missing"], len(sums.facts["runs"])
    if not missing:
        return []
    return [f"{done} of {done + len(missing)} runs are done. Not done: {', '.join(missing)}."]


def _seeds(pair) -> list[str]:
    """Which method has one seed only, and where the two have not as many, in sentences."""
    base, reader = pair
    others = [
        f"At {plain(int(size))} parameters the seeds are of {said}: how they differ may look like a gain."
        for i, size in enumerate(reader.sizes["layers"])
        if "," in (said := gains.seeds(base, reader, i))
    ]
    return others + [
        f"No size of {name} has several seeds: how far seeds are apart is not known."
        for name, curve in zip((BASE, READER), pair)
        if not pooled(curve.each)
    ]


def _sentence(what: str, each: list[dict]) -> str:
    said = "; ".join(f"{worth(m)} at {plain(int(m['size']))}" for m in each)
    return f"M on {what}: {said}."


def _facts(sums: Sums) -> Section:
    runs = sums.facts["runs"].values()
    sizes = {s: len(ids) for s, ids in sums.facts["documents"].items()}
    seconds = sum(m["seconds"] or 0 for r in runs for m in r["methods"].values())
    steps = [r["what"]["train.steps"] for r in runs]
    searched = max(r["search_flops"] for r in runs) / 1e12
    own = [
        ["runs", f"{len(runs)} of {len(runs) + len(sums.facts['missing'])}"],
        ["text", "; ".join(sorted({r["what"]["corpus.source"] for r in runs}))],
        ["steps", _range(steps)],
        ["tokens of training for each parameter", _range(_tokens(sums).values())],
        ["documents scored", ", ".join(f"{n:,} of {s}" for s, n in sizes.items())],
        [
            "training",
            f"{about(seconds / 3600)} hours"
            if seconds > 3600
            else f"{about(seconds / 60)} minutes",
        ],
        ["methods", f"{BASE} and {READER}"],
        ["neighbours of the training text", f"{searched:.3g} TFLOP of search, once for all runs"],
    ]
    return Section("facts", "What was run", "", ["", ""], own)


def _range(values) -> str:
    """The smallest and the largest of numbers."""
    least, most = (about(f(values)) for f in (min, max))
    return least if least == most else f"{least} to {most}"


def _figures(every: dict) -> dict:
    """All figures as plain values, by split and part."""
    out: dict = {}
    for (split, part), found in every.items():
        pair = pair_of(every, split, part)
        out.setdefault(split, {})[part] = {
            "curves": {
                n: {"sizes": {s: x.tolist() for s, x in c.sizes.items()}, "losses": c.losses.tolist(),
                    "seeds": [x.tolist() for x in c.each], "law": law_of(c)}
                for n, c in found.items()
            },
            "multipliers": {s: multipliers(*pair, s) for s in SIZES} if pair else None,
        }  # fmt: skip
    return out
