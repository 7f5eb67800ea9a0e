"""Where documents come from: a library, files of text, JSON lines or parquet, a TFDS data set, mixtures."""

import hashlib
import json
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from retro_jax import progress
from retro_jax.corpus import files
from retro_jax.errors import UserError

# Left out of `python:`: installed packages are not the standard library; tests are missing from
# many installations; `encodings` holds many near-copies of one another, which would flatter
# retrieval; build data differs between machines.
_NOT_LIBRARY = {"site-packages", "dist-packages", "__pycache__", "encodings", "ensurepip"}
_TESTS = {"test", "tests", "idle_test"}
BLOCK = 256  # documents that are held at a time at most,
BLOCK_SIZE = 2**26  # and characters of them, unless one document has more
_KEPT = ("date", "licence", "source", "title")


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


def digest(text: str, size: int) -> bytes:
    """A hash of a text, of `size` bytes, the same on every machine."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=size).digest()


def documents(source: str, field: str = "corpus.source") -> Iterator[Document | BadDocument]:
    """Yields the documents of a source one by one, in an order that does not change between runs.

    Args:
      field: of the config, or the flag, that names it, for errors.
      source: one of
        python:                     the interpreter's own library
        text:GLOB                   a document a file
        jsonl:GLOB#FIELD            a document a line, FIELD (or `text`) of it
        parquet:GLOB#COLUMN         a document a row, COLUMN (or `text`) of it
        tfds:NAME[/CONFIG][:SPLIT][#FEATURE]   of a prepared data set (or its directory), in the
                                    array_record format or with TensorFlow installed
        WEIGHT*SOURCE + WEIGHT*SOURCE   a mixture, see `_mixture`
        Files may end in .gz or .zst, and lie anywhere that fsspec reaches (gs://, s3://, https://).
        Of a line or row, `id` is used when there is one, and `date`, `licence`, `source` and `title`
        are kept.

    Raises:
      UserError: unknown source, no file matches, a file that cannot be read, or a line or row that
        holds no text; it names file and position.
    """
    if " + " in source:
        yield from _mixture(source, field)
        return
    kind, pattern, name = _parse(source, field)
    if not kind.reads_files:
        yield from kind.read(pattern, name, _named(source, field))
        return
    for path, id in files.expand(pattern, _named(source, field)):
        yield from kind.read(path, name, id)


def blocks(documents: Iterable[Document | BadDocument]) -> Iterator[list]:
    """Documents by the BLOCK, or fewer of large ones."""
    block, size = [], 0
    for document in documents:
        block.append(document)
        size += len(document.text) if isinstance(document, Document) else 0
        if len(block) == BLOCK or size >= BLOCK_SIZE:
            yield block
            block, size = [], 0
    if block:
        yield block


def check(source: str, field: str):
    """Raises UserError, as `documents` would, for a source of no kind or whose pattern matches no
    file; nothing is read."""
    for _, one in _parts(source, field) if " + " in source else [(1, source)]:
        kind, pattern, _ = _parse(one, field)
        if kind.reads_files:
            files.expand(pattern, _named(one, field))


def _named(source: str, field: str) -> str:
    return f"{'' if field.startswith('--') else 'config field '}{field} = {source!r}"


def _parse(source: str, field: str) -> tuple["Kind", str, str]:
    """Kind, pattern and name of the text's field."""
    name, colon, pattern = source.partition(":")
    if colon and name in KINDS:
        kind, text = KINDS[name], ""
        if "#" in kind.form:
            pattern, _, text = pattern.partition("#")
        if bool(pattern) == (not kind.form.endswith(":")):
            return kind, pattern, text or "text"
    raise UserError(
        f"{_named(source, field)}: must be {', '.join(k.form for k in KINDS.values())}, or a mixture "
        "WEIGHT*SOURCE + WEIGHT*SOURCE, for example 'text:books/**/*.txt'"
    )


def _parts(source: str, field: str) -> list[tuple[float, str]]:
    """Weights and sources of a mixture."""
    found = []
    for part in source.split(" + "):
        weight, star, one = part.strip().partition("*")
        try:
            share = float(weight)
        except ValueError:
            share = 0.0
        if not star or not share > 0:
            raise UserError(
                f"{_named(source, field)}: {part.strip()!r} has no weight; write "
                "'0.7*jsonl:a.jsonl#text + 0.3*text:b/*.txt'"
            )
        found.append((share, one))
    return found


def _mixture(source: str, field: str) -> Iterator[Document | BadDocument]:
    """Documents of several sources in proportion to their weights, until one has no more.

    Each next one is of the source that is furthest behind its share. Ids begin with the number of
    the source, so that two sources may use the same.
    """
    weights, parts = zip(*_parts(source, field))
    streams, taken = [documents(one, field) for one in parts], [0] * len(parts)
    while True:
        share = [w / sum(weights) * (sum(taken) + 1) - t for w, t in zip(weights, taken)]
        at = share.index(max(share))
        document = next(streams[at], None)
        if document is None:
            of = ", ".join(f"{n:,} of {one}" for n, one in zip(taken, parts))
            progress.say(
                f"mixture: {of}; {parts[at]} has no more, what is left of the others is left"
            )
            return
        taken[at] += 1
        id = f"{at}/{document.id}"
        if isinstance(document, BadDocument):
            yield BadDocument(id, document.reason)
        else:
            yield Document(id, document.text, document.metadata)


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


def _python_library(pattern: str, name: str, where: str) -> Iterator[Document | BadDocument]:
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        parts = set(path.relative_to(root).parts)
        if parts & (_NOT_LIBRARY | _TESTS) or path.name.startswith("_sysconfigdata"):
            continue
        yield decode(path.relative_to(root).as_posix(), files.read(str(path)))


def _read_text(path: str, name: str, file: str) -> Iterator[Document | BadDocument]:
    yield decode(file, files.read(path))


def _read_parquet(path: str, name: str, file: str) -> Iterator[Document | BadDocument]:
    for row, fields in files.parquet_rows(path, name, ("id", *_KEPT)):
        yield _from_fields(fields, name, f"{path}: row {row}", f"{file}:{row}")


def _read_tfds(pattern: str, name: str, where: str) -> Iterator[Document | BadDocument]:
    for row, fields in files.tfds_rows(pattern, where):
        yield _from_fields(fields, name, f"tfds:{pattern}: row {row}", str(row))


def _read_jsonl(path: str, name: str, file: str) -> Iterator[Document | BadDocument]:
    for number, line in files.lines(path):
        where = f"{path}:{number}"
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise UserError(f"{where}: not a line of JSON ({error}); mend or remove it") from error
        yield _from_fields(row, name, where, f"{file}:{number}")


def _from_fields(row, name: str, where: str, id: str) -> Document | BadDocument:
    """A document from a line or row: its text in `name`; `id` unless it has one."""
    if not isinstance(row, dict) or not isinstance(row.get(name), str):
        known = ", ".join(row) if isinstance(row, dict) else type(row).__name__
        if isinstance(row, dict) and name in row:
            known = f"a {type(row[name]).__name__} in it; fields: {known}"
        raise UserError(
            f"{where}: no text in field {name!r} (found: {known}); "
            "name the field in the source, after #"
        )
    text = row[name]
    id = id if row.get("id") is None else str(row["id"])
    if not text.strip():
        return BadDocument(id, "the document is empty")
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON can write half of a surrogate pair
        return BadDocument(id, f"the document is not UTF-8 (character {error.start})")
    return Document(id, text, {k: row[k] for k in _KEPT if row.get(k) is not None})


@dataclass(frozen=True)
class Kind:
    """A kind of source.

    Attributes:
      form: how it is written; with a # the field or column that holds the text may follow.
      reads_files: whether it is a pattern of files. Then `read` takes the path of one, the text's field, and
        the name of the file; otherwise the pattern, the text's field, and what to begin messages with.
      read: yields the documents.
    """

    form: str
    reads_files: bool
    read: Callable[[str, str, str], Iterator[Document | BadDocument]]


KINDS = {
    "python": Kind("python:", False, _python_library),
    "text": Kind("text:GLOB", True, _read_text),
    "jsonl": Kind("jsonl:GLOB#FIELD", True, _read_jsonl),
    "parquet": Kind("parquet:GLOB#COLUMN", True, _read_parquet),
    "tfds": Kind("tfds:NAME:SPLIT#FEATURE", False, _read_tfds),
}
