"""Several evaluations on one page: which run is better, and whether that can be told."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from retro_jax.errors import UserError
from retro_jax.evaluate import rows, signals, where
from retro_jax.evaluate.figures import counts, figures
from retro_jax.evaluate.rows import Rows
from retro_jax.report import charts, tasks
from retro_jax.report.numbers import NONE, bits, interval, plain
from retro_jax.report.section import Section
from retro_jax.report.verdict import verdict

_SHOWN = ("on", "off", "random", "language_model")
_GAIN = "gain, bits per byte"
_SEEDS = "Intervals are over documents. Of single trainings they do not say what another seed would change: give runs "
_SEEDS += "with other seeds too, and they are taken together."


@dataclass
class Run:
    """One evaluation: its name on the page, its rows, their figures, and what its own page says at the top."""

    name: str
    read: Rows
    figures: dict
    verdict: dict
    tasks: dict[str, dict]

    @classmethod
    def load(cls, name: str, file: Path) -> "Run":
        """Of a file of rows, with the tasks beside it."""
        read = rows.load(file)
        if not len(read):
            raise UserError(f"{file}: holds no token; run `retro evaluate` with text to score")
        f = figures(read)
        return cls(name, read, f, verdict(f, read.facts), tasks.find(file))

    def same_text(self, other: "Run") -> bool:
        """Whether the very same tokens of the same documents were scored."""
        ids = ([d["id"] for d in r.read.facts["documents"]] for r in (self, other))
        return next(ids) == next(ids) and np.array_equal(self.read["target"], other.read["target"])

    def same_but_seed(self, other: "Run") -> bool:
        """Whether they are trainings of one experiment with different seeds."""

        def of(run):
            made = run.figures["training"].items()
            told = {n: (t["steps"], t["parameters"]) for n, t in made}
            facts = (run.read.facts[n] for n in ("name", "split", "neighbours"))
            return (*facts, told), [t["seed"] for _, t in made]

        (one, seed), (two, another) = of(self), of(other)
        return one == two and seed != another and self.same_text(other)


def content(files: Sequence[Path]) -> dict:
    """All that the page says of files of rows, which stand in the order of their bits per byte.

    Raises:
      UserError: a file is missing or none of ours, or holds no token.
    """
    runs = [Run.load(name, file) for name, file in zip(names(files), files)]
    runs.sort(key=lambda r: r.figures["bits_per_byte"]["on"])
    made = [_table(runs), _effects(runs), _pairs(runs), _seeds(runs), _training(runs)]
    made.append(tasks.section({f"{r.name}, {n}": t for r in runs for n, t in r.tasks.items()}))
    return {
        "question": "Which run?",
        "title": ", ".join(r.name for r in runs),
        "verdict": _verdict(runs),
        "evidence": [s for s in made if s],
        "examples": None,
        "facts": [_facts(runs)],
        "made_from": "the rows in each run's tokens.parquet",
    }


def names(files: Sequence[Path]) -> list[str]:
    """What tells the files apart: their folders, without what all of them begin and end with."""
    parts = [file.absolute().parent.parts for file in files]
    first = sum(1 for _ in itertools.takewhile(lambda p: len(set(p)) == 1, zip(*parts)))
    last = sum(
        1 for _ in itertools.takewhile(lambda p: len(set(p)) == 1, zip(*map(reversed, parts)))
    )
    return ["/".join(p[first : len(p) - last]) or file.parent.name for p, file in zip(parts, files)]


def better(run: Run, than: Run) -> dict | None:
    """Bits per byte that a run's `on` is better than another's, with its interval; None of other tokens."""
    if not run.same_text(than):
        return None
    nats = {"than": than.read.nats["on"], "run": run.read.nats["on"]}
    return signals.effect(Rows(run.read.facts, nats, run.read.columns), "than", "run")


def _verdict(runs: list[Run]) -> dict:
    first, second = runs[:2]
    ahead = better(first, second)
    can = counts(ahead) > 0
    each = [f"{bits(r.figures['bits_per_byte']['on'])} of {r.name}" for r in (first, second)]
    effect = f"Bits per byte: {each[0]}, {each[1]}"
    if ahead is None:
        head = "Other text was scored: what stands here cannot be compared"
        effect += ", of different tokens."
    elif first.same_but_seed(second):
        head = "Trainings that differ in their seed"
        effect += ". They are taken together below."
    else:
        head = f"{first.name} is the best" if can else "Which is the best cannot be told"
        effect += (
            f": {interval(ahead)}, with the 95 % interval over {ahead['documents']:,} documents."
        )
    tiles = [
        {
            "label": r.name,
            "value": bits(r.figures["bits_per_byte"]["on"]),
            "note": f"{r.verdict['head']} ({' - '.join(signals.EFFECTS[r.figures['verdict']['by']])}: "
            f"{interval(r.figures['verdict']['effect'])})",
            "state": {"helps": "good", "hurts": "bad"}.get(r.figures["verdict"]["word"], "plain"),
        }
        for r in runs
    ]
    return {
        "word": "helps" if can else "neutral",
        "head": head,
        "effect": effect,
        "alarms": _alarms(runs),
        "sentences": [] if _groups(runs) else [_SEEDS],
        "advice": ["What a run reads, and where it gains, is on its own page: retro report RUN."],
        "tiles": tiles,
    }


def _table(runs: list[Run]) -> Section:
    series = {
        n: [r.figures["bits_per_byte"].get(n) for r in runs] for n in ("on", "language_model")
    }
    series = {n: values for n, values in series.items() if any(values)}
    caption = (
        "Bits per byte with real neighbours (on) and what they are compared with; the axis does not begin at 0. Little "
        "overlap: chunks that share little with what was found, which other neighbours make other chunks."
    )
    chart = charts.dots(
        "runs", caption, [r.name for r in runs], series, "bits per byte (lower is better)", bits
    )
    table = [
        [
            r.name, *(bits(r.figures["bits_per_byte"].get(n)) for n in _SHOWN),
            bits(r.figures["bits_per_byte_filtered"].get("on")),
            bits(r.figures["bits_per_byte_filtered"].get("language_model")),
        ]
        for r in runs
    ]  # fmt: skip
    head = ["run", *(n.replace("_", " ") for n in _SHOWN)]
    head += ["on, little overlap", "language model, little overlap"]
    return Section("runs", "Side by side", caption, head, table, chart, wide=True, open=True)


def _effects(runs: list[Run]) -> Section:
    def of(run, name, part):
        made = {"all": run.figures["effects"], "far": run.figures["far"]["effects"]}
        return (made | {"filtered": run.figures["effects_filtered"]})[part].get(name)

    by = ("system" if all("system" in r.figures["effects"] for r in runs) else "on_against_off",)
    by += ("content",) if any("content" in r.figures["effects"] for r in runs) else ()
    label = " - ".join(signals.EFFECTS[by[0]])
    caption = (
        f"What retrieval is worth in each run, with 95 % intervals over documents; right of 0 it helps. The chart has "
        f"{label}; far: the half of the text whose nearest neighbour is farther."
    )
    series = {part: [of(r, by[0], part) for r in runs] for part in ("all", "far")}
    chart = charts.forest("effects", caption, [r.name for r in runs], series, _GAIN)
    parts = {"all": "all", "far": "far", "filtered": "little overlap"}
    head = [f"{' - '.join(signals.EFFECTS[n])}, {parts[p]}" for n in by for p in parts]
    table = [[r.name, *(interval(of(r, n, p)) for n in by for p in parts)] for r in runs]
    return Section("effects", "What retrieval is worth", caption, ["run", *head], table, chart)


def _pairs(runs: list[Run]) -> Section | None:
    """The best run against each of the others that scored the same text."""
    first, against = runs[0], [(r, better(runs[0], r)) for r in runs[1:]]
    known = [(r.name, e) for r, e in against if e]
    if not known:
        return None
    caption = (
        f"How much better {first.name} is than each other, both with their neighbours, on the same tokens; the "
        "intervals are over documents, and know nothing of what another seed would change."
    )
    others = [r.name for r, e in against if not e]
    caption += f" Other text, so not compared: {', '.join(others)}." if others else ""
    chart = charts.forest(
        "pairs", caption, [n for n, _ in known], {"": [e for _, e in known]}, _GAIN
    )
    table = [[n, interval(e)] for n, e in known]
    head = ["run", f"{first.name} is better by"]
    return Section("pairs", "Against each other", caption, head, table, chart)


def _groups(runs: list[Run]) -> list[list[Run]]:
    """Those of which there are several trainings that differ in their seed alone."""
    left, found = list(runs), []
    while left:
        first = left.pop(0)
        own = [first, *(r for r in left if first.same_but_seed(r))]
        left = [r for r in left if r not in own]
        found += [own] if len(own) > 1 else []
    return found


def _alarms(runs: list[Run]) -> list[str]:
    """Each once, with the names of its runs."""
    said = {}
    for r in runs:
        for text in r.verdict["alarms"]:
            said.setdefault(text, []).append(r.name)
    return [f"{', '.join(names)}: {text}" for text, names in said.items()]


def _seeds(runs: list[Run]) -> Section | None:
    """Trainings of one experiment with different seeds, taken together."""
    table = []
    for own in _groups(runs):
        first, each = own[0], [r.read for r in own]
        for name in ("system", "content"):
            worse, right = signals.EFFECTS[name]
            if all(worse in r.nats for r in each):
                every = [r.figures["effects"][name]["value"] for r in own]
                far = [r.where(where.is_far(r)) for r in each]
                table.append([
                    first.read.facts["name"], str(len(own)), f"{worse} - {right}",
                    interval(signals.effect_over(each, worse, right)),
                    interval(signals.effect_over(far, worse, right)),
                    ", ".join(map(bits, every)),
                ])  # fmt: skip
    if not table:
        return None
    caption = (
        "Trainings that differ in nothing but their seed: the mean, with a 95 % interval over documents and trainings "
        "(of two or three it knows little of how far they are apart), and each by itself."
    )
    head = ["experiment", "trainings", "effect", "all, bits per byte [95 %]", "far", "each"]
    return Section("seeds", "Seeds", caption, head, table, wide=True, open=True)


def _training(runs: list[Run]) -> Section | None:
    head = [
        "run",
        "model",
        "seed",
        "parameters",
        "steps",
        "M tokens",
        "tokens a parameter",
        "minutes",
    ]
    table = [
        [r.name, n, plain(t["seed"]), plain(t["parameters"]), plain(t["steps"]), plain(t["tokens"] / 1e6),
         plain(t["tokens_per_parameter"]), plain(t["seconds"] / 60) if t["seconds"] else NONE]
        for r in runs for n, t in r.figures["training"].items()
    ]  # fmt: skip
    if not table:
        return None
    caption = "Runs that saw other numbers of tokens, or have other numbers of parameters, differ in that too."
    return Section("training", "How they were trained", caption, head, table, wide=True, open=True)


def _facts(runs: list[Run]) -> Section:
    head = ["run", "experiment", "split", "documents", "k", "chunks", "index"]
    table = []
    for r in runs:
        f = r.read.facts
        row = [r.name, f["name"], f["split"], plain(r.figures["documents"]), plain(f["neighbours"])]
        table.append([*row, plain(f["database"]["chunks"]), str(f["index"].get("kind", NONE))])
    caption = (
        "k: neighbours of a chunk; chunks: those of its database. Leaks, if any, stand at the top."
    )
    return Section("facts", "What was evaluated", caption, head, table, wide=True)
