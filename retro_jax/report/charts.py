"""Charts as SVG that goes into a page: their colours are the page's CSS variables, their text is text.

N names, S series; values are numbers or None where there is none.
"""

import html
import io
import re

import matplotlib
import numpy as np
from matplotlib.figure import Figure

# Drawn in colours that nothing else has, which then become variables of the page's style.
VARIABLES = ("ink", "muted", "grid", "help", "harm", "c0", "c1", "c2", "c3")
COLOUR = {name: f"#0101{i + 16:02x}" for i, name in enumerate(VARIABLES)}
SERIES = [COLOUR[f"c{i}"] for i in range(4)]
WIDTH = 4.8  # inches of 72 units: text stays readable where a phone shrinks it
_RC = {
    "svg.fonttype": "none", "svg.hashsalt": "retro_jax", "font.size": 10, "legend.frameon": False,
    "text.color": COLOUR["ink"], "axes.labelcolor": COLOUR["muted"], "xtick.color": COLOUR["muted"],
    "ytick.color": COLOUR["muted"], "xtick.labelcolor": COLOUR["ink"], "ytick.labelcolor": COLOUR["ink"],
    "axes.edgecolor": COLOUR["grid"], "grid.color": COLOUR["grid"], "axes.grid": True,
    "axes.axisbelow": True, "axes.spines.top": False, "axes.spines.right": False, "text.parse_math": False,
    "figure.facecolor": "none", "axes.facecolor": "none", "savefig.facecolor": "none",
    "legend.fontsize": 9, "axes.labelsize": 9.5,
}  # fmt: skip


def drawn(name: str, label: str, height: float, draw) -> str:
    """SVG of what draw(axes) draws, with a text for those who do not see it."""
    with matplotlib.rc_context(_RC):
        figure = Figure((WIDTH, height), layout="constrained")
        draw(figure.subplots())
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    svg = re.sub(r"<(metadata|style)\b.*?</\1>", "", out.getvalue(), flags=re.DOTALL)
    svg = svg[svg.index("<svg") :].strip()
    box = re.search(r'viewBox="[^"]*"', svg)[0]
    head = f'<svg {box} role="img" aria-label="{html.escape(label)}">'
    svg = head + svg[svg.index(">") + 1 :].replace("xlink:href", "href")
    # A page has many charts, and an id only once; the others are never referred to.
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'(url\(|href=")#', rf"\1#{name}-", svg)
    used = set(re.findall(r'(?:url\(|href=")#([^)"]+)', svg))
    svg = re.sub(r' id="([^"]+)"', lambda m: m[0] if m[1] in used else "", svg)
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    for variable, colour in COLOUR.items():
        svg = svg.replace(colour, f"var(--{variable})")
    return svg


def _numbers(values) -> np.ndarray:
    return np.array([np.nan if v is None else v for v in values], float)


def _legend(axes, series):
    if len(series) > 1 and axes.get_legend_handles_labels()[0]:
        axes.figure.legend(loc="outside upper left", ncols=min(4, len(series)))


def bars(name: str, label: str, names, series: dict, x: str, write) -> str:
    """Lying bars from 0, S of them for each name: series {label: N values}; write: the number at a bar's end."""

    def draw(axes):
        at, thick = np.arange(len(names)), 0.8 / len(series)
        every = np.concatenate([_numbers(v) for v in series.values()])
        low, high = np.nanmin(every), np.nanmax(every)
        margin = (high - min(low, 0)) or abs(high) or 1.0
        for i, (text, values) in enumerate(series.items()):
            values = _numbers(values)
            y = at + (i - (len(series) - 1) / 2) * thick
            colour = SERIES[i] if i == 0 else COLOUR["muted"]
            axes.barh(y, values, thick * 0.9, color=colour, label=text)
            for place, value in zip(y, values):
                if np.isfinite(value):
                    end = (max(value, 0), place)
                    axes.annotate(
                        write(value), end, (4, 0), textcoords="offset points", va="center", fontsize=8
                    )  # fmt: skip
        axes.set_yticks(at, names)
        axes.invert_yaxis()
        axes.grid(False, axis="y")
        axes.locator_params(axis="x", nbins=6)
        axes.set_xlim(min(low, 0) - (0.05 * margin if low < 0 else 0), high + 0.24 * margin)
        axes.set_xlabel(x)
        _legend(axes, series)

    return drawn(name, label, 0.75 + len(names) * (0.1 + 0.14 * len(series)), draw)


def dots(name: str, label: str, names, series: dict, x: str, write) -> str:
    """Dots where the numbers are, for what has no 0 to begin at: series {label: N values}; write: the number beside."""

    def draw(axes):
        at, step = np.arange(len(names)), 0.5 / len(series)
        every = np.concatenate([_numbers(v) for v in series.values()])
        low, high = np.nanmin(every), np.nanmax(every)
        margin = (high - low) or abs(high) or 1.0
        for i, (text, values) in enumerate(series.items()):
            values, y = _numbers(values), at + (i - (len(series) - 1) / 2) * step
            colour = SERIES[0] if i == 0 else COLOUR["muted"]
            axes.plot(values, y, "os"[i % 2], color=colour, markersize=5, label=text)
            for place, value in zip(y, values):
                if np.isfinite(value):
                    axes.annotate(
                        write(value), (value, place), (7, 0), textcoords="offset points", va="center", fontsize=8
                    )  # fmt: skip
        axes.set_yticks(at, names)
        axes.set_ylim(max(len(names), 1) - 0.5, -0.5)
        axes.locator_params(axis="x", nbins=6)
        axes.set_xlim(low - 0.06 * margin, high + 0.24 * margin)
        axes.set_xlabel(x)
        _legend(axes, series)

    return drawn(name, label, 0.75 + len(names) * (0.1 + 0.14 * len(series)), draw)


def forest(name: str, label: str, names, series: dict, x: str) -> str:
    """Effects with their intervals, S of them for each name: series {label: N effects or None}."""

    def draw(axes):
        at, step = np.arange(len(names)), 0.5 / len(series)
        axes.axvline(0, color=COLOUR["ink"], linewidth=1)
        for i, (text, effects) in enumerate(series.items()):
            known = [(p, e) for p, e in zip(at, effects) if e]
            if not known:
                continue
            y = np.array([p for p, _ in known]) + (i - (len(series) - 1) / 2) * step
            value, low, high = (
                np.array([e[n] for _, e in known]) for n in ("value", "low", "high")
            )
            colour = SERIES[0] if i == 0 else COLOUR["muted"]
            around = [np.maximum(value - low, 0), np.maximum(high - value, 0)]
            axes.errorbar(
                value, y, xerr=around, fmt="os"[i % 2], color=colour, markersize=5, capsize=3, label=text
            )  # fmt: skip
        axes.set_yticks(at, names)
        axes.set_ylim(max(len(names), 1) - 0.5, -0.5)
        axes.grid(False, axis="y")
        axes.locator_params(axis="x", nbins=5)
        axes.set_xlabel(x)
        _legend(axes, series)

    return drawn(name, label, 0.9 + 0.42 * len(names), draw)


def columns(name: str, label: str, names, values, x: str, y: str, notes=None) -> str:
    """Standing bars, above 0 in one colour and below in another; notes: N texts above or below them."""

    def draw(axes):
        heights = np.nan_to_num(_numbers(values))
        colours = [COLOUR["help"] if v >= 0 else COLOUR["harm"] for v in heights]
        axes.bar(range(len(names)), heights, 0.8, color=colours)
        axes.axhline(0, color=COLOUR["ink"], linewidth=1)
        for i, text in enumerate(notes or []):
            place = max(heights[i], 0)
            axes.annotate(
                text, (i, place), (0, 3), textcoords="offset points", ha="center", fontsize=8.5
            )
        axes.set_xticks(range(len(names)), names)
        axes.grid(False, axis="x")
        axes.margins(y=0.12)
        axes.set_xlabel(x)
        axes.set_ylabel(y)

    return drawn(name, label, 3.1, draw)


def histogram(name: str, label: str, edges, counts, x: str, y: str) -> str:
    """Counts between edges, on a log axis; what is above 0 in one colour and what is below in another."""

    def draw(axes):
        colours = [COLOUR["help"] if e >= 0 else COLOUR["harm"] for e in edges[:-1]]
        axes.bar(edges[:-1], counts, np.diff(edges), align="edge", color=colours)
        axes.axvline(0, color=COLOUR["ink"], linewidth=1)
        axes.set_yscale("log")
        axes.set_ylim(0.7, 2 * max(counts))
        axes.yaxis.set_major_formatter(lambda v, _: f"{v:,.0f}")
        axes.minorticks_off()
        axes.set_xlabel(x)
        axes.set_ylabel(y)

    return drawn(name, label, 3.1, draw)


def points(name: str, label: str, places: dict, x: str, y: str, best) -> str:
    """Named points {name: (x, y)} with a logarithmic x axis; the names in `best` are joined by a line."""

    def draw(axes):
        height = np.ptp([y for _, y in places.values()]) or 1.0
        ordered = sorted(places.items(), key=lambda item: -item[1][1])
        for i, (text, place) in enumerate(ordered):
            colour = SERIES[0] if text in best else COLOUR["muted"]
            axes.plot(*place, "o", color=colour, markersize=6)
            # Below the names of points that are almost at the same place.
            above = sum(
                abs(y - place[1]) < 0.05 * height and 1 / 3 < x / place[0] < 3
                for _, (x, y) in ordered[:i]
            )
            axes.annotate(text, place, (5, 3 - 10 * above), textcoords="offset points", fontsize=8)
        edge = sorted(places[n] for n in best)
        axes.plot(*zip(*edge), color=SERIES[0], linewidth=1)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda v, _: f"{v:g}")
        axes.xaxis.set_minor_formatter(lambda v, _: "")
        axes.margins(x=0.25)
        axes.set_xlabel(x)
        axes.set_ylabel(y)

    return drawn(name, label, 3.6, draw)


def lines(name: str, label: str, x, series: dict, xlabel: str, ylabel: str, bands=None, names=None):
    """Curves over x: series {label: values}, bands {label: (low, high)}; names: of the places of x."""

    def draw(axes):
        for i, (text, values) in enumerate(series.items()):
            style = {"color": SERIES[i % 4], "linestyle": ("-", "--", "-.", ":")[i % 4]}
            axes.plot(x, _numbers(values), marker="os^D"[i % 4], markersize=4, label=text, **style)
            if bands and text in bands:
                low, high = map(_numbers, bands[text])
                axes.fill_between(x, low, high, color=SERIES[i % 4], alpha=0.2, linewidth=0)
        if names:
            axes.set_xticks(x, names)
        else:  # with more of them long numbers touch
            axes.locator_params(axis="x", nbins=6)
        values = np.concatenate([_numbers(v) for v in series.values()])
        if np.nanmin(values) < 0 < np.nanmax(values):
            axes.axhline(0, color=COLOUR["ink"], linewidth=1)
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        _legend(axes, series)

    return drawn(name, label, 3.1, draw)
