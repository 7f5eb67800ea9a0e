"""The table of a comparison of methods, for a terminal."""

import sys

from rich.table import Table

from retro_jax.evaluate.beside import PARTS
from retro_jax.report.decision import Decision
from retro_jax.terminal import Terminal

_WIDTH = 160  # of a log


def show(split: str, summary: dict, decision: Decision):
    """Prints what `evaluate.beside.summary` says, a row a method, and what to deploy."""
    table = Table(
        title=f"{split}: {summary['documents']} documents, {summary['bytes']:,} bytes",
        caption="bits per byte (lower is better); gain over the language model; content: real neighbours against "
        "random ones; [95 %]",
    )
    table.add_column("method", no_wrap=True)
    for part in PARTS.values():
        table.add_column(part, justify="right")
    for column in ("gain", "content", "ms", "GFLOP", "training PFLOP"):
        table.add_column(column, justify="right", no_wrap=column in ("gain", "content"))
    for name, of in summary["methods"].items():
        bits = [_number(of[p] and of[p]["bits_per_byte"]) for p in PARTS]
        effects = [_interval(of["all"].get(effect)) for effect in ("gain", "content")]
        spent = of["ms_per_token"]["1"], of["gflops_per_token"], of["training_flops"] / 1e15
        table.add_row(name, *bits, *effects, *(f"{x:.3g}" for x in spent))
    console = Terminal(width=None if sys.stdout.isatty() else _WIDTH)
    console.print(table)
    for name, halves in summary["tuned"].items():
        said = (", ".join(f"{n} {v:g}" for n, v in half.items() if n in _CHOSEN) for half in halves)
        console.print(
            f"{name}: chosen on one half of the documents for the other: {'; '.join(said)}"
        )
    for text in (decision.head, *decision.why, *decision.changes):
        console.print(text, style="bold" if text == decision.head else "", soft_wrap=True)


_CHOSEN = ("k", "weight", "temperature")


def _number(x: float | None) -> str:
    return "" if x is None else f"{x:.4f}"


def _interval(effect: dict | None) -> str:
    if not effect:
        return ""
    return f"{effect['value']:.4f} \\[{effect['low']:.4f}, {effect['high']:.4f}]"
