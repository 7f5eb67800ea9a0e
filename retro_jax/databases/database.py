"""Databases that change: documents are added, replaced and deleted without anything being made again.

WORKDIR/databases/NAME holds numbered segments (segment.py) and `state.json`, which says what the
database is made of and which documents of each part are deleted. `prepared` has what WORKDIR/prepare
made as part 0; every other database begins empty. A segment never changes; a change builds one aside,
renames it, and replaces `state.json`: only that makes it visible, so that who is killed has changed
nothing. What is left behind then is cleared by the next change.

Segments stay few: a new one takes over the documents of those before it that are no larger.
"""

import contextlib
import errno
import functools
import os
import re
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from retro_jax.corpus.chunks import ChunkTable
from retro_jax.corpus.collect import HELDOUT
from retro_jax.corpus.document import BadDocument, Document
from retro_jax.databases import segment
from retro_jax.databases.part import Part, alive, numbers_of
from retro_jax.errors import UserError
from retro_jax.pipeline.prepared import Prepared
from retro_jax.pipeline.recipe import database_split
from retro_jax.retrieval.embedder import has_vectors, reads_words
from retro_jax.store import artefact, files
from retro_jax.store.lock import lock

PREPARED = "prepared"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SHOWN = 10  # ids in a message
_ANEW = "delete the folder that it is in, and add its documents again"


class Databases:
    """The databases of a working directory. Changes of one wait for one another, across processes.

    Args:
      prepared: of a working directory in which `prepare` is finished.
    """

    def __init__(self, prepared: Prepared):
        self.prepared, self._work = prepared, prepared.work
        self.directory = prepared.work.databases

    @functools.cached_property
    def _first(self) -> Part:
        """What `prepare` made, as a part."""
        made, split = self.prepared, database_split(self.prepared.experiment)
        return Part(made.database, made.index(), made.words(split), made.ranking)

    def names(self) -> list[str]:
        """Of all databases, `prepared` first."""
        found = sorted(p.parent.name for p in self.directory.glob("*/state.json"))
        return [PREPARED, *(name for name in found if name != PREPARED)]

    def stamp(self, name: str) -> tuple | None:
        """Differs after a change of a database; None where there never was one."""
        if not _NAME.fullmatch(name):
            return None
        try:
            s = os.stat(self._state_file(name))
        except FileNotFoundError:
            return None
        return s.st_ino, s.st_mtime_ns, s.st_size

    def state(self, name: str) -> dict:
        """What a database is made of: its `id`, and `parts` with their `number` and `deleted` ids.

        Raises:
          UserError: there is none of this name.
        """
        if _NAME.fullmatch(name):
            with contextlib.suppress(FileNotFoundError):
                return files.read_json(self._state_file(name), _ANEW)
        if name == PREPARED:
            return self._new(name)
        known = ", ".join(self.names())
        raise UserError(
            f"no database {name!r}: there are {known}; `retro database --database=NAME --add=SOURCE` "
            "makes another"
        )

    def open(self, name: str, number: int) -> Part:
        """Opens a part; 0 is what `prepare` made.

        Raises:
          FileNotFoundError: it is not there any more.
          UserError: it was made with another tokenizer or embedder than `prepare` has now.
        """
        if number == 0:
            return self._first
        self._check(name, number)
        return segment.load(self._segment(name, number), self.prepared)

    def add(
        self,
        name: str,
        documents: Iterable[Document | BadDocument],
        advance: Callable[[int], None] = lambda done: None,
    ) -> dict:
        """Adds documents; one whose id the database has replaces that one.

        Args:
          name: of a database, which is made if it is missing.
          documents: see `sources.documents`.
          advance: called with the number of documents done since the last call.

        Returns:
          documents and chunks that were added, how many of them replaced one, and how many bad ones were
          skipped of each kind.

        Raises:
          UserError: a bad name or document (if the config refuses such), or none at all.
        """
        if not _NAME.fullmatch(name):
            raise UserError(
                f"database {name!r}: a name is up to 64 letters, digits, '.', '_' and '-'"
            )
        with self._changing(name, self._new(name)) as state:
            path, counts = self._segment(name, state["next"]), {}

            def make(out: Path) -> dict:
                made = segment.Builder(self.prepared, out)
                made.add(documents, advance)
                counts.update(
                    documents=len(made.ids), chunks=made.chunks, skipped=dict(made.skipped)
                )
                counts["replaced"] = len(self._remove(name, state, made.ids))
                for part in reversed([p for p in state["parts"] if p["number"]]):
                    table = self._table(name, part["number"])
                    if len(table) > made.chunks:
                        break
                    kept = alive(table, part["deleted"])
                    made.copy(self._segment(name, part["number"]), kept)
                    state["parts"].remove(part)
                return made.finish()

            artefact.build(path, *self._made_with(), make)
            state["parts"].append({"number": state["next"], "deleted": []})
            state["next"] += 1
            files.write_json(self._state_file(name), state)
        return counts

    def delete(self, name: str, ids: Iterable[str]) -> dict:
        """Deletes documents; returns how many.

        Raises:
          UserError: the database has not all of them; nothing was changed.
        """
        ids = set(ids)
        with self._changing(name, self.state(name)) as state:
            missing = sorted(ids - self._remove(name, state, ids))
            if missing:
                more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
                raise UserError(
                    f"database {name!r} has no document {', '.join(map(repr, missing[:_SHOWN]))}{more}; "
                    "nothing was deleted: give ids that it has"
                )
            files.write_json(self._state_file(name), state)
        return {"documents": len(ids)}

    def describe(self) -> list[dict]:
        """Of each database its name, and how many documents, chunks, segments and deleted documents (of
        those that the files still hold)."""
        return [self._counts(name) for name in self.names()]

    def documents(self, name: str) -> Iterator[str]:
        """The ids of what a database has.

        Raises:
          UserError: there is no such database.
        """
        for part in self.state(name)["parts"]:
            table = self._table(name, part["number"])
            gone = set(part["deleted"])
            yield from (d["id"] for d in table.documents if d["id"] not in gone)

    def held_out(self, name: str) -> int:
        """How many documents of a database have the id of a held-out one."""
        if not self.prepared.work.prepared(f"chunks/{HELDOUT}").exists():
            return 0
        held, count = [d["id"] for d in self.prepared.table(HELDOUT).documents], 0
        for part in self.state(name)["parts"]:
            found = numbers_of(self._table(name, part["number"]), held).keys()
            count += len(found - set(part["deleted"]))
        return count

    def _counts(self, name: str) -> dict:
        documents = chunks = deleted = 0
        parts = self.state(name)["parts"]
        for part in parts:
            table = self._table(name, part["number"])
            dead = numbers_of(table, part["deleted"]).values()
            documents += len(table.documents) - len(dead)
            chunks += len(table) - sum(table.documents[n]["chunks"] for n in dead)
            deleted += len(dead)
        segments = sum(p["number"] > 0 for p in parts)
        return {
            "database": name, "documents": documents, "chunks": chunks, "segments": segments,
            "deleted": deleted,
        }  # fmt: skip

    def _new(self, name: str) -> dict:
        parts = [{"number": 0, "deleted": []}] if name == PREPARED else []
        return {"id": uuid.uuid4().hex, "next": 1, "parts": parts}

    def _remove(self, name: str, state: dict, ids: set[str]) -> set[str]:
        """Deletes, in a state, what it has of ids; returns those. A segment that is empty then is none."""
        removed = set()
        for part in list(state["parts"]):
            table = self._table(name, part["number"])
            found = numbers_of(table, ids).keys() - set(part["deleted"])
            part["deleted"] += sorted(found)
            removed |= found
            if part["number"] and len(part["deleted"]) == len(table.documents):
                state["parts"].remove(part)
        return removed

    @contextlib.contextmanager
    def _changing(self, name: str, new: dict) -> Iterator[dict]:
        """The state of a database (`new` where there is none), while nobody else changes it."""
        files.make_directory(self.directory / name)
        with lock(self.directory, f".{name}", wait=True):
            state = self.state(name) if self.stamp(name) else new
            numbers = [part["number"] for part in state["parts"] if part["number"]]
            known = {self._segment(name, number).name for number in numbers}
            for path in self._state_file(name).parent.glob("*"):
                if path.is_dir() and path.name not in known:  # of who was killed, or taken over
                    files.remove_directory(path)
            for number in numbers:
                self._check(name, number)
            yield state

    def _check(self, name: str, number: int):
        path = self._segment(name, number)
        manifest = artefact.read(path)
        if manifest is None:
            why = (
                "this part of a database is missing: delete the folder that it is in, and add again"
            )
            raise FileNotFoundError(errno.ENOENT, why, str(path))
        if changed := artefact.changes(path, manifest, *self._made_with()):
            raise UserError(
                f"{path.parent} was made with another `prepare` ({'; '.join(changed)}): delete it, and add its "
                "documents again"
            )

    def _made_with(self) -> tuple[dict, list[Path]]:
        """Settings and inputs of a segment."""
        r = self.prepared.experiment.retrieval
        inputs = ["tokenizer", *["statistics"] * reads_words(r), *["embedder"] * has_vectors(r)]
        settings = {"model.reading.chunk": self.prepared.experiment.model.reading.chunk}
        return settings, [self._work.prepared(name) for name in inputs]

    def _table(self, name: str, number: int) -> ChunkTable:
        if number == 0:
            return self.prepared.database
        return ChunkTable(self._segment(name, number) / "chunks")

    def _state_file(self, name: str) -> Path:
        return self.directory / name / "state.json"

    def _segment(self, name: str, number: int) -> Path:
        return self.directory / name / f"{number:06d}"
