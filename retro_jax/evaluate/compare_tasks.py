"""A task by several methods: what `tasks.run` says of each, and one table."""

from pathlib import Path

from rich.table import Table

from retro_jax.evaluate import items, tasks
from retro_jax.methods.method import Method
from retro_jax.store.workdir import WorkDir
from retro_jax.terminal import Terminal


def run(work: WorkDir, methods: list[Method], task: str, limit: int | None) -> dict[str, dict]:
    """The results of a task by each method, which are in evaluate/tasks/TASK-METHOD.json, and prints them side by side.

    Raises:
      UserError: as `tasks.run`.
    """
    kind, file = items.parse(task)
    items.read(kind, file, limit)  # refuses a bad one before the first method has answered
    stem = Path(file).name.partition(".")[0]
    results = {
        m.name: tasks.run(work, task, limit, name=f"{stem}-{m.name}", method=m.name)
        for m in methods
    }
    show(results)
    return results


def show(results: dict[str, dict]):
    """A row a method: each metric with the neighbours that it is given, without, and the difference, with 95 %
    intervals. (What kNN-LM finds by itself it has in either case.)"""
    first = next(iter(results.values()))
    table = Table(title=f"{first['task']}, {first['items']} items: {first['file']}")
    table.add_column("method")
    for metric in first["all"]:
        for column in ("with neighbours", "without", "difference"):
            table.add_column(f"{metric}, {column}", justify="right")
    for name, result in results.items():
        cells = []
        for values in result["all"].values():
            for column in ("on", "off", "difference"):
                cells.append(tasks.cell(values[column], "") if column in values else "")
        table.add_row(name, *cells)
    Terminal().print(table)
