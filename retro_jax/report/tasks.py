"""Tasks that were scored beside an evaluation: with retrieval and without."""

import json
from pathlib import Path

from retro_jax.errors import UserError
from retro_jax.report import charts
from retro_jax.report.numbers import NONE, plain
from retro_jax.report.section import Section

_DRAWN = ("accuracy", "exact match")  # one a task, each a share of its items
_UNITS = {"log p": "nats", "log p of the answer": "nats"}


def find(file: Path) -> dict[str, dict]:
    """By name what `retro evaluate --task` wrote for the working directory of a file of rows; nothing if there is none.

    Raises:
      UserError: a file of it is damaged.
    """
    found = {}
    for path in sorted((file.absolute().parent.parent / "tasks").glob("*.json")):
        try:
            told = json.loads(path.read_bytes())
            found[path.stem] = {
                n: told[n] for n in ("task", "method", "items", "k", "all", "unseen")
            }
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise UserError(
                f"{path}: no result of a task ({error}); delete it, and run `retro evaluate --task=...` again"
            ) from error
    return found


def section(found: dict[str, dict]) -> Section | None:
    """A row for each task and metric, of all items and of those that were not seen."""
    if not found:
        return None
    names = list(found)
    head = ["task", "items", "metric", "with retrieval", "without", "difference"]
    table = [
        [
            name, f"{label} {t['items']:,}", metric + (f", {_UNITS[metric]}" if metric in _UNITS else ""),
            *(_shown(values.get(n)) for n in ("on", "off", "difference")),
        ]
        for name, t in found.items() for label, part in (("all", "all"), ("unseen of", "unseen"))
        for metric, values in (t[part] or {}).items()
    ]  # fmt: skip
    gains = [_gain(t["all"]) for t in found.values()]
    caption = (
        "Tasks, with 95 % intervals over items. Seen: the item, or its answer, stood in what was read for it. The "
        "chart has how many more of all items are right with retrieval, as a share; right of 0 it helps."
    )
    chart = ""
    if any(gains):
        chart = charts.forest("tasks", caption, names, {"": gains}, "more items right, share")
    return Section("tasks", "Tasks", caption, head, table, chart, wide=True, open=True)


def _gain(metrics: dict) -> dict | None:
    return next((metrics[m].get("difference") for m in _DRAWN if m in metrics), None)


def _shown(x: dict | None) -> str:
    return f"{plain(x['value'])} [{plain(x['low'])}, {plain(x['high'])}]" if x else NONE
