"""The plots of a study: on its page, and as files for a paper (SVG and PNG).

A plot is a function from axes and colours; the page's colours become variables of its style.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from retro_jax.evaluate.beside import BASE
from retro_jax.report import charts
from retro_jax.study import laws
from retro_jax.study.figures import SIZES, Curve

_MARKS = "os^Dv"
_PLAIN = {
    "ink": "black", "muted": "0.4", "c0": "#0057b7", "c1": "#d1495b", "c2": "#2a9d5c", "c3": "#8c6bb1",
}  # fmt: skip
_NARROW = 4  # the least that an axis of sizes spans
_LINES = ("-", "--", ":")  # after as many colours as there are

Draw = Callable[[object, dict], None]


def on_page(name: str, label: str, draw: Draw) -> str:
    """SVG for the page."""
    return charts.drawn(name, label, 3.6, lambda axes: draw(axes, charts.COLOUR))


def save(draw: Draw, path: Path):
    """PATH.svg and PATH.png."""
    figure = Figure((5, 3.8), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    draw(axes, _PLAIN)
    path.parent.mkdir(parents=True, exist_ok=True)
    for suffix in (".svg", ".png"):
        figure.savefig(path.with_suffix(suffix), dpi=200)


def losses(curves: dict[str, Curve], size: str) -> Draw:
    """Loss against size: of each condition points with 95 % intervals, and the law through them."""

    def draw(axes, colours):
        for i, (name, curve) in enumerate(curves.items()):
            colour, x = colours[f"c{i % 4}"], curve.sizes[size]
            at = _aside(x, i)
            low, high = np.nanquantile(curve.draws, (0.025, 0.975), axis=0)
            around = np.maximum(0, [curve.losses - low, high - curve.losses])
            axes.errorbar(
                at, curve.losses, around, fmt=_MARKS[i % 5], color=colour, markersize=4, capsize=2,
                label="language model" if name == BASE else f"RETRO, {name}",
            )  # fmt: skip
            if len(x) >= laws.FEWEST:
                line = np.geomspace(x.min(), x.max(), 50)
                law = laws.fit(x, curve.losses[None])
                axes.plot(line, law(line)[0], color=colour, linewidth=1)
        marked = {x for c in curves.values() for x in c.sizes[size]} if size == "layers" else ()
        _logarithmic(axes, SIZES[size], marked)
        axes.set_ylabel("bits per byte")
        axes.legend(fontsize=8)

    return draw


def multipliers(found: dict[str, list[dict]], size: str) -> Draw:
    """M against size, a line for each part of the text; what is beyond the largest language model is hollow."""

    def draw(axes, colours):
        axes.axhline(1, color=colours["ink"], linewidth=1)
        for i, (name, each) in enumerate(found.items()):
            colour, x = colours[f"c{i % 4}"], _aside([m["size"] for m in each], i)
            inside = [not m["beyond"] for m in each]
            value, low, high = (
                np.array([m[n] for m, known in zip(each, inside) if known])
                for n in ("value", "low", "high")
            )
            # An interval may run off to infinity; its end is then where the drawing ends.
            high = np.where(np.isfinite(high), high, 2 * value)
            around = np.maximum(0, [value - low, high - value])
            axes.errorbar(
                [at for at, known in zip(x, inside) if known], value, around,
                fmt=_MARKS[i % 5] + _LINES[i // 4 % len(_LINES)],
                color=colour, markersize=4, capsize=2, linewidth=1, label=name,
            )  # fmt: skip
            for at, m in zip(x, each):
                if m["beyond"] and m["low"] >= m["at_least"]:
                    axes.annotate("≥", (at, m["at_least"]), color=colour, ha="center", va="bottom")
                    axes.plot(at, m["at_least"], _MARKS[i % 5], color=colour, markersize=4)
                elif m["beyond"]:  # by the law: hollow, and without an interval
                    axes.plot(at, m["value"], _MARKS[i % 5], color=colour, mfc="none", markersize=5)
        _logarithmic(axes, SIZES[size], {m["size"] for each in found.values() for m in each})
        axes.set_ylabel("M: times the size of a language model")
        axes.legend(fontsize=8)

    return draw


def gains(found: dict[str, list[tuple[float, ...]]], label: str, marked: bool = False) -> Draw:
    """Gain over the language model against a size, a line for each name; of each place the size, gain, low and high.

    label: what the size is. marked: whether each size has its number on the axis.
    """

    def draw(axes, colours):
        axes.axhline(0, color=colours["ink"], linewidth=1)
        for i, (name, places) in enumerate(found.items()):
            style = {"color": colours[f"c{i % 4}"], "linestyle": _LINES[i // 4 % len(_LINES)]}
            x, gain, low, high = np.array(places).T
            around = np.maximum(0, [gain - low, high - gain])
            axes.errorbar(
                _aside(x, i), gain, around, marker=_MARKS[i % 5], markersize=4, linewidth=1, capsize=2, label=name,
                **style,
            )  # fmt: skip
        _logarithmic(axes, label, {p[0] for own in found.values() for p in own} if marked else ())
        axes.set_ylabel("gain, bits per byte")
        axes.margins(y=0.2)
        axes.legend(fontsize=8)

    return draw


def _aside(x, i: int):
    """Places of the i-th of several things that have one size, so that none covers another."""
    return np.asarray(x) * 1.03**i


def _logarithmic(axes, label: str, marked=()):
    """A logarithmic axis; marked: where its numbers stand, by default at powers of ten."""
    axes.set_xscale("log")
    if marked:
        axes.set_xticks(sorted(marked))
    low, high = axes.get_xlim()
    if high < _NARROW * low:  # one size alone: what stands beside it would look like others
        axes.set_xlim((low * high / _NARROW) ** 0.5, (low * high * _NARROW) ** 0.5)
    axes.xaxis.set_major_formatter(lambda v, _: _short(v))
    axes.xaxis.set_minor_formatter(lambda v, _: "")
    axes.set_xlabel(label)
    axes.grid(True, alpha=0.3)


def _short(value: float) -> str:
    """A number of an axis in three digits: 100, 20k, 1.25M."""
    for power, name in ((1e6, "M"), (1e3, "k")):
        if power <= value < 1e3 * power:
            return f"{value / power:.3g}{name}"
    return f"{value:g}"
