"""What RETRO gains over the language model of the same decoder, in bits per byte: at each size, and with parts of its
database."""

import numpy as np

from retro_jax.evaluate.beside import BASE, PARTS
from retro_jax.evaluate.conditions.searched import SHARES
from retro_jax.report.numbers import bits, interval, percent, plain
from retro_jax.report.section import Section
from retro_jax.study import laws, plots
from retro_jax.study.figures import SIZES, Curve
from retro_jax.study.runs import HELDOUT
from retro_jax.study.sums import Sums

_SHARES = {f"database_{n}": n / 100 for n in SHARES} | {"on": 1.0}  # of the database


def both(every: dict, split: str, part: str) -> tuple[Curve, Curve] | None:
    """The curves of the language model and of RETRO, if both were scored; every: {(split, part): curves}."""
    found = every.get((split, part), {})
    # Of another database only what reads was scored; the language model's tokens are those of the split.
    return (found[BASE], found["on"]) if BASE in found and "on" in found else None


def at(base: Curve, reader: Curve, i: int) -> dict | None:
    """By how much a reader of the i-th size is better than the language model with the same decoder: value, low and
    high (95 %), bits per byte, and base, what that has; None where no such language model was trained."""
    j = _beside(base, reader, i)
    if j is None:
        return None
    low, high = laws.interval(base.draws[:, j] - reader.draws[:, i])
    value = float(base.losses[j] - reader.losses[i])
    return {"value": value, "low": low, "high": high, "base": float(base.losses[j])}


def _beside(base: Curve, reader: Curve, i: int) -> int | None:
    """The place of the language model with the same decoder as a reader of the i-th size."""
    same = np.flatnonzero(base.sizes["layers"] == reader.sizes["layers"][i])
    return int(same[0]) if len(same) else None


def of(base: Curve, reader: Curve, i: int) -> list[str]:
    """Bits per byte of the language model of a reader's i-th decoder, of the reader, and how much better it is."""
    gain = at(base, reader, i)
    return [bits(gain and gain["base"]), bits(reader.losses[i]), interval(gain)]


def seeds(base: Curve, reader: Curve, i: int) -> str:
    """How many seeds the reader of the i-th size has; where the language model beside it has others, of both."""
    j, many = _beside(base, reader, i), len(reader.each[i])
    one = many if j is None else len(base.each[j])
    return str(many) if one == many else f"{BASE} {one}, RETRO {many}"


def by_size(every: dict, drawn: dict) -> list[Section]:
    """The part of the page with the gain at each size; its plot is added to `drawn`."""
    pairs = {
        PARTS[part] if split == HELDOUT else split: pair
        for split, part in every
        if (split == HELDOUT or part == "all") and (pair := both(every, split, part))
    }
    if not pairs:
        return []
    found: dict[str, list[tuple[float, ...]]] = {}
    table = []
    for name, (base, reader) in pairs.items():
        for i, size in enumerate(reader.sizes["layers"]):
            if gain := at(base, reader, i):
                found.setdefault(name, []).append((size, gain["value"], gain["low"], gain["high"]))
            table.append([name, plain(int(size)), seeds(base, reader, i), *of(base, reader, i)])
    title = "What RETRO gains"
    caption = (
        "The language model of the same decoder, less RETRO: above 0, RETRO is better. Little overlap: chunks that "
        "share little with what they read. No copy: tokens that RETRO could not copy from it. Far: the half of the "
        "tokens whose nearest neighbour is farther. 95 % intervals over documents and, where a size has several, "
        "seeds; two runs of one seed each may differ by more than that."
    )
    head = ["text", SIZES["layers"], "seeds", "language model", "RETRO", "gain, bits per byte"]
    chart = ""
    if found:
        drawn["gains"] = plots.gains(found, SIZES["layers"], True)
        chart = plots.on_page("gains", title, drawn["gains"])
    return [Section("gains", title, caption, head, table, chart)]


def by_database(sums: Sums, every: dict, drawn: dict) -> list[Section]:
    """The part of the page with the gain by shares of the database's documents; its plot is added to `drawn`."""
    found, table = {}, []
    all_text = every[HELDOUT, "all"]
    if BASE not in all_text:
        return []
    for name, share in _SHARES.items():
        curve = all_text.get(name)
        for i, size in enumerate(curve.sizes["layers"] if curve else ()):
            if not (gain := at(all_text[BASE], curve, i)):
                continue
            run = sums.facts["runs"][curve.runs[i][0]]
            tokens = share * run["database_chunks"] * run["chunk"] / size
            place = tokens, gain["value"], gain["low"], gain["high"]
            found.setdefault(plain(int(size)), []).append(place)
            table.append([plain(int(size)), percent(share), plain(tokens), interval(gain)])
    if all(len(places) < 2 for places in found.values()):
        return []
    drawn["databases"] = plots.gains(
        found, "tokens of the database for each parameter of the decoder"
    )
    title = "How large a database"
    caption = "What RETRO gains over the language model of the same decoder, with a share of the database's documents."
    head = ["decoder", "share", "tokens a parameter", "gain, bits per byte"]
    chart = plots.on_page("databases", title, drawn["databases"])
    return [Section("databases", title, caption, head, table, chart)]
