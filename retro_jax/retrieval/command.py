"""`retro database`: lists the databases of a working directory, or changes one."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from retro_jax import progress
from retro_jax.config import Experiment
from retro_jax.corpus import sources
from retro_jax.errors import UserError
from retro_jax.prepare import check_prepared
from retro_jax.retrieval.database import PREPARED, Databases


def run(e: Experiment, root: Path, name: str | None, add: str | None, delete: str | None):
    """Adds the documents of a source, or deletes ids that commas part, or lists.

    Args:
      name: of the database to change (by default `prepared`), or the only one to list.

    Raises:
      UserError: `prepare` is not complete, both changes at once, or what `Databases` refuses.
    """
    if add is not None and delete is not None:
        raise UserError(f"--add={add} with --delete={delete}: give one at a time")
    check_prepared(e, root)
    databases, changed = Databases(e, root / "prepare"), name or PREPARED
    if add is not None:
        sources.check(add, "--add")
        with progress.bar(f"adding to {changed}", None) as advance:
            done = databases.add(changed, sources.documents(add, "--add"), advance)
        skipped = f", {done['skipped']:,} bad ones left out" if done["skipped"] else ""
        progress.say(
            f"{changed}: {done['documents']:,} documents added in {done['chunks']:,} chunks, "
            f"{done['replaced']:,} of them in place of older ones{skipped}"
        )
    elif delete is not None:
        ids = [id for id in delete.split(",") if id]
        if not ids:
            raise UserError(f"--delete={delete}: names no document; give ids, --delete=ID,ID")
        progress.say(
            f"{changed}: {databases.delete(changed, ids)['documents']:,} documents deleted"
        )
    else:
        if name:
            databases.state(name)  # refuses an unknown one
        _print([d for d in databases.describe() if name in (None, d["database"])])


def _print(rows: list[dict]):
    table = Table()
    for column in rows[0]:
        table.add_column(column, justify="left" if column == "database" else "right")
    for row in rows:
        table.add_row(*(v if isinstance(v, str) else f"{v:,}" for v in row.values()))
    Console(highlight=False).print(table)
