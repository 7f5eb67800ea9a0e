"""The plots of a study: on its page, and as files for a paper (SVG and PNG).

A plot is a function from axes and colours; the page's colours become variables of its style.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from retro_jax.report import charts
from retro_jax.study import laws
from retro_jax.study.figures import SIZES, Curve

_MARKS = "os^Dv"
_PLAIN = {
    "ink": "black", "muted": "0.4", "c0": "#0057b7", "c1": "#d1495b", "c2": "#2a9d5c", "c3": "#8c6bb1",
}  # fmt: skip

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
    """Loss against size, a curve for each condition, with its law and 95 % of its draws."""

    def draw(axes, colours):
        for i, (name, curve) in enumerate(curves.items()):
            colour, x = colours[f"c{i % 4}"], curve.sizes[size]
            low, high = np.quantile(curve.draws, (0.025, 0.975), axis=0)
            around = np.maximum(0, [curve.losses - low, high - curve.losses])
            axes.errorbar(
                x, curve.losses, around, fmt=_MARKS[i % 5], color=colour, markersize=4, capsize=2,
                label=name.replace("_", " "),
            )  # fmt: skip
            if len(x) >= laws.FEWEST:
                line = np.geomspace(x.min(), x.max(), 50)
                law = laws.fit(x, curve.losses[None])
                axes.plot(line, law(line)[0], color=colour, linewidth=1)
        _logarithmic(axes, SIZES[size])
        axes.set_ylabel("bits per byte")
        axes.legend(fontsize=8)

    return draw


def multipliers(found: dict[str, list[dict]], size: str) -> Draw:
    """M against size, a line for each part of the text."""

    def draw(axes, colours):
        axes.axhline(1, color=colours["ink"], linewidth=1)
        for i, (name, each) in enumerate(found.items()):
            known = [m for m in each if np.isfinite(m["at_least"])]
            if not known:
                continue
            x, y, low, high = (
                np.array([m[n] for m in known]) for n in ("size", "at_least", "low", "high")
            )
            low, high = np.minimum(low, y), np.where(np.isfinite(high), high, y)
            around = np.maximum(0, [y - low, high - y])
            colour = colours[f"c{i % 4}"]
            axes.errorbar(
                x * 1.03**i, y, around, fmt=f"{_MARKS[i % 5]}-", color=colour, markersize=4, capsize=2,
                linewidth=1, label=name,
            )  # fmt: skip
            for m in known:
                if m["beyond"]:
                    axes.annotate("≥", (m["size"] * 1.03**i, m["at_least"]), (-10, 3),
                                  textcoords="offset points", color=colour)  # fmt: skip
        _logarithmic(axes, SIZES[size])
        axes.set_ylabel("M: times the size of a language model")
        axes.legend(fontsize=8)

    return draw


def databases(found: dict[str, list[tuple[float, float]]]) -> Draw:
    """Gain over the language model against the size of the database, a line for each size of the decoder."""

    def draw(axes, colours):
        axes.axhline(0, color=colours["ink"], linewidth=1)
        for i, (name, places) in enumerate(found.items()):
            style = {"color": colours[f"c{i % 4}"], "linestyle": ("-", "--")[i // 4 % 2]}
            axes.plot(
                *zip(*places), marker=_MARKS[i % 5], markersize=4, linewidth=1, label=name, **style
            )
        _logarithmic(axes, "tokens of the database for each parameter of the decoder")
        axes.set_ylabel("gain, bits per byte")
        axes.legend(fontsize=8)

    return draw


def _logarithmic(axes, label: str):
    axes.set_xscale("log")
    axes.set_xlabel(label)
    axes.grid(True, alpha=0.3)
