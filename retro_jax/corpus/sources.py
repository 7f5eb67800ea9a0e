"""Where documents come from: `python:`, `text:GLOB`, `jsonl:GLOB#FIELD`."""

import glob
import gzip
import io
import json
import os
import sysconfig
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from retro_jax.errors import UserError

# Left out of `python:`: installed packages are not the standard library; tests are missing from
# many installations; `encodings` holds many near-copies of one another, which would flatter
# retrieval; build data differs between machines.
_NOT_LIBRARY = {"site-packages", "dist-packages", "__pycache__", "encodings", "ensurepip"}
_TESTS = {"test", "tests", "idle_test"}


@dataclass(frozen=True)
class Document:
    """One text. `id` is unique in its source and the same on every run."""

    id: str
    text: str
    metadata: dict = field(default_factory=dict)


@dataclass(frozen=True)
class BadDocument:
    """A document that cannot be used, and why."""

    id: str
    reason: str


def documents(source: str) -> Iterator[Document | BadDocument]:
    """Yields the documents of a source, in an order that does not change between runs.

    Args:
      source: `python:` (the interpreter's own library), `text:GLOB` (one document a file) or
        `jsonl:GLOB#FIELD` (one document a line; an `id` field is used when there is one, and
        `date`, `licence` and `source` are kept).

    Raises:
      UserError: unknown source, no file matches, or a line that is not JSON.
    """
    kind, colon, rest = source.partition(":")
    if kind == "python" and colon and not rest:
        yield from _python_library()
    elif kind == "text" and rest:
        for path, id in _files(rest, source):
            yield decode(id, _read(path))
    elif kind == "jsonl" and rest:
        pattern, _, name = rest.partition("#")
        for path, id in _files(pattern, source):
            yield from _read_jsonl(path, id, name or "text")
    else:
        raise UserError(
            f"config field corpus.source = {source!r}: must be python:, text:GLOB or "
            "jsonl:GLOB#FIELD, for example 'text:books/**/*.txt'"
        )


def _files(pattern: str, source: str) -> list[tuple[str, str]]:
    """Files and their names below the pattern's fixed folder: ids that a move does not change."""
    found = sorted(p for p in glob.glob(pattern, recursive=True) if os.path.isfile(p))
    if not found:
        raise UserError(
            f"config field corpus.source = {source!r}: no file matches {pattern!r} (searched from "
            f"{os.getcwd()}); quote the pattern, and use ** for folders of any depth"
        )
    root = Path(pattern)
    while glob.has_magic(str(root)) or not root.is_dir():
        root = root.parent
    names = (Path(p).relative_to(root).as_posix() for p in found)
    # A name that is not UTF-8 would not go into a JSON file.
    return [(p, os.fsencode(n).decode("utf-8", "backslashreplace")) for p, n in zip(found, names)]


def _read(path: str) -> bytes:
    """The file's bytes; .gz is decompressed."""
    try:
        with (gzip.open if path.endswith(".gz") else open)(path, "rb") as file:
            return file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read ({error}); mend or remove it") from error


def decode(id: str, data: bytes) -> Document | BadDocument:
    """UTF-8 bytes to a Document; a BadDocument if they are empty, binary or not UTF-8."""
    if not data.strip():
        return BadDocument(id, "the document is empty")
    if b"\0" in data:
        return BadDocument(id, "the document is binary (it holds a zero byte)")
    try:
        return Document(id, data.decode("utf-8"))
    except UnicodeDecodeError as error:
        return BadDocument(id, f"the document is not UTF-8 (byte {error.start}: {error.reason})")


def _python_library() -> Iterator[Document | BadDocument]:
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        parts = set(path.relative_to(root).parts)
        if parts & (_NOT_LIBRARY | _TESTS) or path.name.startswith("_sysconfigdata"):
            continue
        yield decode(path.relative_to(root).as_posix(), _read(str(path)))


def _read_jsonl(path: str, file: str, name: str) -> Iterator[Document | BadDocument]:
    with io.BytesIO(_read(path)) as lines:
        for number, line in enumerate(lines, 1):
            where = f"{path}:{number}"
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (UnicodeDecodeError, json.JSONDecodeError) as error:
                raise UserError(
                    f"{where}: not a line of JSON ({error}); mend or remove it"
                ) from error
            if not isinstance(row, dict) or not isinstance(row.get(name), str):
                known = ", ".join(row) if isinstance(row, dict) else type(row).__name__
                raise UserError(
                    f"{where}: no text in field {name!r} (found: {known}); "
                    "name the field in corpus.source as jsonl:GLOB#FIELD"
                )
            text = row[name]
            id = f"{file}:{number}" if row.get("id") is None else str(row["id"])
            if not text.strip():
                yield BadDocument(id, "the document is empty")
                continue
            try:
                text.encode()
            except UnicodeEncodeError as error:  # JSON can write half of a surrogate pair
                yield BadDocument(id, f"the document is not UTF-8 (character {error.start})")
                continue
            kept = {k: row[k] for k in ("date", "licence", "source", "title") if k in row}
            yield Document(id, text, kept)
