"""tokens.parquet to report.html, report.json and report.md beside it."""

import contextlib
import importlib
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from retro_jax.errors import UserError
from retro_jax.evaluate import chunks, rows
from retro_jax.evaluate.figures import figures
from retro_jax.store import files

ROWS = "tokens.parquet"


def find(path: Path) -> list[Path]:
    """The files of rows at a path: of a file, a split's directory, or a working directory (every split).

    Raises:
      UserError: there are none.
    """
    path = Path(path)
    if path.is_file():
        return [path]
    for pattern in (ROWS, f"*/{ROWS}", f"evaluate/*/{ROWS}"):
        found = sorted(f for f in path.glob(pattern) if not f.parent.name.startswith("."))
        if found:
            return found
    if not path.exists():
        raise UserError(f"{path}: no such directory; give a working directory, runs/quickstart say")
    raise UserError(
        f"{path}: holds no {ROWS} of an evaluation; run `retro evaluate`, then give its working "
        "directory, for example runs/quickstart"
    )


@contextlib.contextmanager
def libraries(command: str) -> Iterator[None]:
    """Where what draws pages is imported, and `page` itself: a UserError for a library that is not installed."""
    try:
        importlib.import_module("retro_jax.report.page")
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("matplotlib", "jinja2", "markupsafe"):
            raise
        raise UserError(f"{command} needs {error.name}: pip install 'retro_jax[report]'") from error


def report(file: Path) -> Path:
    """Writes report.html, report.json and report.md beside a file of rows; the page's path.

    Args:
      file: tokens.parquet, or the directory that holds it. Nothing else is read but what tasks are beside it.

    Raises:
      UserError: the file is missing or none of ours, or holds no token; matplotlib or Jinja2 is missing.
    """
    with libraries("retro report"):
        from retro_jax.report import evidence, examples, setup, tasks, verdict
    file = Path(file)
    file = file / ROWS if file.is_dir() else file
    read = rows.load(file)
    if not len(read):
        raise UserError(f"{file}: holds no token; run `retro evaluate` with text to score")
    numbers, gathered, done = figures(read), chunks.gather(read), tasks.section(tasks.find(file))
    hubs = examples.begins(file, read, gathered, [i for i, _ in numbers["retrieval"]["hubs"]])
    whole = {
        "question": "Does retrieval help?",
        "title": f"{read.facts['name']}, {read.facts['split']}",
        "verdict": verdict.verdict(numbers, read.facts),
        "evidence": [*evidence.sections(numbers, read, hubs), *filter(None, [done])],
        "examples": examples.chosen(file, read, gathered),
        "facts": setup.tables(numbers, read),
        "made_from": f"the rows in {ROWS} beside this page",
    }
    return put(file.parent, whole, {"figures": numbers})


def reports(files_of_rows: Sequence[Path], directory: Path) -> Path:
    """Writes report.html, report.json and report.md of several files of rows together; the page's path.

    Raises:
      UserError: as `report`.
    """
    with libraries("retro report"):
        from retro_jax.report import several
    whole = several.content(files_of_rows)
    files.make_directory(directory)
    return put(directory, whole, {})


def put(directory: Path, whole: dict, more: dict) -> Path:
    """Writes report.html, report.json and report.md of what a page says into a directory; the page's path.

    more: what only report.json has.
    """
    from retro_jax.report import markdown, page

    parts = {name: [s.plain() for s in whole[name]] for name in ("evidence", "facts")}
    plain = _strict(whole | parts | more)
    made = {
        "report.json": json.dumps(plain, indent=1, ensure_ascii=False, allow_nan=False),
        "report.md": markdown.render(whole),
        "report.html": page.render(whole),
    }
    files.write_together(
        {directory / name: text.encode("utf-8", "replace") for name, text in made.items()}
    )
    return directory / "report.html"


def _strict(value):
    """The same without numbers that JSON does not have: null for them."""
    if isinstance(value, dict):
        return {str(k): _strict(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
