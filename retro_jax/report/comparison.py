"""The table of a comparison of methods, for a terminal."""

from rich.console import Console
from rich.table import Table

from retro_jax.report.decision import Decision

_PARTS = {"all": "all text", "filtered": "little overlap", "novel": "no copy"}


def show(split: str, summary: dict, decision: Decision):
    """Prints what `evaluate.compare.summary` says, a row a method, and what to deploy."""
    table = Table(title=f"{split}: {summary['documents']} documents, {summary['bytes']:,} bytes")
    table.add_column("method")
    for part in _PARTS.values():
        table.add_column(f"bits/byte, {part}", justify="right")
    for column in ("gain", "content", "content, little overlap", "GFLOP/token"):
        table.add_column(column, justify="right")
    for name, of in summary["methods"].items():
        bits = [_number(of[p] and of[p]["bits_per_byte"]) for p in _PARTS]
        effects = [_interval((of[p] or {}).get(e)) for p, e in
                   (("all", "gain"), ("all", "content"), ("filtered", "content"))]  # fmt: skip
        table.add_row(name, *bits, *effects, f"{of['gflops_per_token']:.3g}")
    console = Console(highlight=False)
    console.print(table)
    for name, halves in summary["tuned"].items():
        said = (
            ", ".join(f"{n} {v:g}" for n, v in half.items() if n != "budget") for half in halves
        )
        console.print(
            f"{name}: chosen on one half of the documents for the other: {'; '.join(said)}"
        )
    for text in (decision.head, *decision.why, *decision.changes):
        console.print(text, style="bold" if text == decision.head else "")


def _number(x: float | None) -> str:
    return "" if x is None else f"{x:.4f}"


def _interval(effect: dict | None) -> str:
    if not effect:
        return ""
    return f"{effect['value']:.4f} [{effect['low']:.4f}, {effect['high']:.4f}]"
