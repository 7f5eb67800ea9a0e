"""The parts of a study's page: losses and their laws, what a database is worth, what else is repeated, the runs."""

import numpy as np

from retro_jax.evaluate.beside import BASE, PARTS
from retro_jax.evaluate.figures import FEW
from retro_jax.report.numbers import NONE, bits, percent, plain
from retro_jax.report.section import Section
from retro_jax.study import gains, laws, plots
from retro_jax.study.figures import CURVES, SIZES, Curve, curves, law_of, multipliers
from retro_jax.study.runs import HELDOUT, fields_of
from retro_jax.study.sums import Sums

_MOST = (1.0, 0.8, 0.5, 0.2)  # shares of a document's 13-grams
_OTHERS = ("parameters", "training_flops", "flops_per_token")


def sections(sums: Sums, every: dict) -> tuple[list[Section], dict[str, plots.Draw]]:
    """The parts in their order, and the plots in them by name; every: {(split, part): curves}."""
    drawn: dict[str, plots.Draw] = {}
    made = [
        *_losses(every, drawn), *gains.by_size(every, drawn), *_multipliers(every, drawn), *_axes(every),
        *_laws(every), _contained(sums), *_sources(sums), *gains.by_database(sums, every, drawn), _runs(sums),
    ]  # fmt: skip
    return made, drawn


def pair_of(every: dict, split: str, part: str) -> tuple[Curve, Curve] | None:
    """The curves of the language model and of RETRO, if there are enough sizes."""
    pair = gains.both(every, split, part)
    return pair if pair and len(pair[0].runs) >= laws.FEWEST else None


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


def _losses(every: dict, drawn: dict) -> list[Section]:
    out = []
    for part, name in PARTS.items():
        found = {n: c for n, c in every[HELDOUT, part].items() if n in CURVES}
        if not found:
            continue
        title, label = f"Loss by size: {name}", f"losses-{part}"
        drawn[label] = plots.losses(found, "layers")
        for size in list(SIZES)[1:] if part == "all" else ():  # files beside the page
            drawn[f"losses-all-{size.replace('_', '-')}"] = plots.losses(found, size)
        table = [
            [n, plain(int(size)), str(len(each)), bits(loss), *map(bits, np.nanquantile(c.draws[:, i], (0.025, 0.975)))]
            for n, c in found.items()
            for i, (size, each, loss) in enumerate(zip(c.sizes["layers"], c.each, c.losses))
        ]  # fmt: skip
        head = ["condition", SIZES["layers"], "seeds", "bits per byte", "from", "to"]
        law = ", lines the laws through them" * any(
            len(c.runs) >= laws.FEWEST for c in found.values()
        )
        caption = (
            f"Points are means over seeds with 95 % intervals{law}. Those of one size stand beside each other. "
            "plots/ has the same of all text by the other sizes."
        )
        out.append(
            Section(label, title, caption, head, table, plots.on_page(label, title, drawn[label]))
        )
    return out


def _multipliers(every: dict, drawn: dict) -> list[Section]:
    pairs = {
        f"{PARTS[part]}" if split == HELDOUT else split: pair
        for (split, part) in every
        if (split == HELDOUT or part == "all") and (pair := pair_of(every, split, part))
    }
    if not pairs:
        return []
    found = {name: multipliers(*pair) for name, pair in pairs.items()}
    drawn["multipliers"] = plots.multipliers(found, "layers")
    table = [
        [name, plain(int(m["size"])), worth(m)]
        + [plain(m[n]) for n in ("law", "floor_0", "floor_90")]
        for name, each in found.items()
        for m in each
    ]
    caption = (
        "M says how large a language model must be to reach RETRO's loss: M times the parameters of RETRO's decoder, "
        "without embeddings. It is read off between the measured language models. ≥: more than the largest that was "
        "trained; then, and below the smallest, it is by the law. The last columns are M by the law everywhere, and "
        "with the law's floor fixed at 0 and at nine tenths of the least loss: where they are far apart, the law "
        "decides and not what was measured."
    )
    head = ["text", SIZES["layers"], "M", "by the law", "its floor 0", "its floor 0.9"]
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
    for part in PARTS:
        pair = pair_of(every, HELDOUT, part)
        if not pair:
            continue
        by = {size: multipliers(*pair, size) for size in SIZES}
        for i, m in enumerate(by["layers"]):
            table.append(
                [PARTS[part], plain(int(m["size"])), *(worth(by[size][i]) for size in SIZES)]
            )
    head = ["text", "decoder", *SIZES.values()]
    caption = (
        "The same loss, asked by other sizes: how many times RETRO's parameters in all (its encoder and "
        "cross-attention included), its training FLOPs, or its FLOPs of a token a language model of that loss has. "
        "Below 1: for the same, a larger language model would have been better. The FLOPs of a token hold the search. "
        "The neighbours of the training text are searched for once for all runs; one column counts that for each run."
    )
    return (
        [Section("axes", "By other sizes", caption, head, table, wide=True, open=True)]
        if table
        else []
    )


def _laws(every: dict) -> list[Section]:
    table = []
    for (split, part), found in every.items():
        # By other sizes those of the language model, which multipliers go on with off the ends.
        others = (
            [(BASE, found[BASE], s) for s in _OTHERS] if split == HELDOUT and BASE in found else []
        )
        for name, curve, size in [*((n, c, "layers") for n, c in found.items()), *others]:
            if name not in CURVES or not (law := law_of(curve, size)):
                continue
            low, high = law["exponent_interval"]
            wrong = law["left_out"] and ", ".join(f"{x:+.3f}" for x in law["left_out"])
            table.append(
                [split, PARTS[part], name, SIZES[size], bits(law["floor"]), plain(law["scale"]),
                 f"{law['exponent']:.2f} [{low:.2f}, {high:.2f}]", wrong or NONE]
            )  # fmt: skip
    caption = (
        "L(N) = floor + scale x N^-exponent, N a size. Left out: for each size what a law "
        "through the others predicts, less what was measured, bits per byte, from the smallest to the largest."
    )
    head = ["split", "text", "condition", "size", "floor", "scale", "exponent", "left out"]
    return (
        [Section("laws", "The laws", caption, head, table, wide=True, open=True)] if table else []
    )


def _contained(sums: Sums) -> Section:
    table = []
    for split in sums.facts["documents"]:
        shares = sums.facts["contained"][split]
        values = np.array(shares)
        for most in _MOST:
            enough = (values <= most).sum() >= FEW
            pair = _pair_among(sums, split, values <= most) if enough else None
            said = "; ".join(map(worth, multipliers(*pair))) if pair else NONE
            table.append(
                [split, percent(most), f"{(values <= most).sum():,} of {len(values):,}", said]
            )
    caption = (
        "Held-out documents that nearly repeat one of the database are left out (13-gram Jaccard). Of those that "
        "remain, a part may stand in a larger document, or be a form that many pages have. Here {} of whose 13-grams "
        "no more than a share stands in any one document of the database{}."
    )
    head = ["split", "at most", "documents", "M"]
    if all(row[-1] == NONE for row in table):  # fewer sizes than M needs
        table, head = [row[:-1] for row in table], head[:-1]
        caption = caption.format("how many there are", "")
    else:
        ends = ", from the smallest decoder to the largest"
        caption = caption.format("M of those alone", ends)
    return Section("contained", "What else is repeated", caption, head, table, wide=True, open=True)


def _pair_among(sums: Sums, split: str, kept: np.ndarray) -> tuple[Curve, Curve] | None:
    """The curves of the language model and of RETRO on some documents [N] of a split."""
    return pair_of({(split, "all"): curves(sums, split, "all", kept, (BASE, "on"))}, split, "all")


def _sources(sums: Sums) -> list[Section]:
    """Of a mixture each source by itself: its documents' names begin with its number."""
    ids = sums.facts["documents"][HELDOUT]
    of = np.array([i.partition("/")[0] for i in ids])
    if not all(name.isdecimal() for name in of):
        return []
    table = []
    for source in sorted(set(of)):
        kept = of == source
        if kept.sum() < FEW or not (pair := _pair_among(sums, HELDOUT, kept)):
            continue
        example = ids[int(kept.argmax())]
        for i, m in enumerate(multipliers(*pair)):
            row = [
                f"{kept.sum():,}, as {example}",
                plain(int(m["size"])),
                *gains.of(*pair, i),
                worth(m),
            ]
            table.append(row)
    head = ["documents", SIZES["layers"], "language model", "RETRO", "gain", "M"]
    caption = "Held-out documents by the source that they are from, all of their text."
    if len({row[0] for row in table}) < 2:
        return []
    return [Section("sources", "By source", caption, head, table, wide=True)]


def _runs(sums: Sums) -> Section:
    table = []
    for name, run in sums.facts["runs"].items():
        for condition in CURVES:
            said = sums.of(run=name, split=HELDOUT, part="all", condition=condition)
            if not len(said["nats"]):
                continue
            loss = said["nats"].sum() / said["bytes"].sum() / np.log(2)
            table.append([name, condition, bits(loss), fields_of(run["fields"])])
    caption = "Every run that is done; bits per byte of all held-out text."
    return Section(
        "runs",
        "The runs",
        caption,
        ["run", "condition", "bits per byte", "fields"],
        table,
        wide=True,
    )
