"""Where documents come from: a library, files of text, JSON lines or parquet, a TFDS data set, mixtures."""

import re
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from retro_jax import progress
from retro_jax.corpus import files
from retro_jax.corpus.document import (
    KEPT,
    BadDocument,
    Document,
    Unusable,
    digest,
    of_bytes,
    of_fields,
    parsed,
    too_large,
)
from retro_jax.errors import UserError

# Left out of `python:`: installed packages are not the standard library; tests are missing from
# many installations; `encodings` holds many near-copies of one another, which would flatter
# retrieval; build data differs between machines.
_NOT_LIBRARY = {"site-packages", "dist-packages", "__pycache__", "encodings", "ensurepip"}
_TESTS = {"test", "tests", "idle_test"}
BLOCK = 256  # documents that are held at a time at most,
BLOCK_SIZE = 2**26  # and characters of them, unless one document has more
LARGEST = 50_000_000  # bytes of a document, unless the config says otherwise


def documents(
    source: str, field: str = "corpus.source", largest: int = LARGEST
) -> Iterator[Document | BadDocument]:
    """Yields the documents of a source one by one, in an order that does not change between runs.

    What cannot be used is a BadDocument, and the next one follows it.

    Args:
      field: of the config, or the flag, that names it, for errors.
      largest: bytes that a document, or a line, may have; no more of a larger one is held.
      source: one of
        python:                     the interpreter's own library
        text:GLOB                   a document a file
        jsonl:GLOB#FIELD            a document a line, FIELD (or `text`) of it
        parquet:GLOB#COLUMN         a document a row, COLUMN (or `text`) of it
        tfds:NAME[/CONFIG][:SPLIT][#FEATURE]   of a prepared data set (or its directory), in the
                                    array_record format or with TensorFlow installed
        share:LOW-HIGH:SOURCE       the documents of a source whose id has a hash from LOW to below HIGH, of 0 to 1
        WEIGHT*SOURCE + WEIGHT*SOURCE   a mixture, see `_mixture`
        Files may be compressed (.gz, .zst, .bz2, .xz), and lie anywhere that fsspec reaches (gs://, s3://,
        https://). Of a line or row, `id` is used when there is one, and `date`, `licence`, `source` and
        `title` are kept as texts.

    Raises:
      UserError: unknown source, no file matches, or a file that cannot be read; it names file and
        position.
    """
    if len(_split(source)) > 1:
        yield from _mixture(source, field, largest)
        return
    kind, pattern, name = _parse(source, field)
    if not kind.reads_files:
        yield from kind.read(pattern, name, _named(source, field), largest)
        return
    for path, id in files.expand(pattern, _named(source, field)):
        yield from kind.read(path, name, id, largest)


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
    for _, one in _parts(source, field) if len(_split(source)) > 1 else [(1, source)]:
        kind, pattern, _ = _parse(one, field)
        if kind.reads_files:
            files.expand(pattern, _named(one, field))
        elif kind.read is _read_share:
            check(_share(pattern, _named(one, field))[2], field)


def _named(source: str, field: str) -> str:
    told = " " in field or field.startswith("--")  # as words, or as a flag
    return f"{'' if told else 'config field '}{field} = {source!r}"


def _parse(source: str, field: str) -> tuple["Kind", str, str]:
    """Kind, pattern and name of the text's field."""
    name, colon, pattern = source.partition(":")
    if colon and name in KINDS:
        kind, text = KINDS[name], ""
        if "#" in kind.form and "#" in pattern:
            pattern, _, text = pattern.rpartition("#")  # a folder may have one in its name
        if bool(pattern) == (not kind.form.endswith(":")):
            return kind, pattern, text or "text"
    raise UserError(
        f"{_named(source, field)}: must be {', '.join(k.form for k in KINDS.values())}, or a mixture "
        "WEIGHT*SOURCE + WEIGHT*SOURCE, for example 'text:books/**/*.txt'"
    )


def _split(source: str) -> list[str]:
    """The sources of a mixture with their weights. A " + " that no source follows is of a folder's name."""
    return re.split(rf" \+ (?=(?:[^ /]*\*)?(?:{'|'.join(KINDS)}):)", source)


def _parts(source: str, field: str) -> list[tuple[float, str]]:
    """Weights and sources of a mixture."""
    found = []
    for part in _split(source):
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


def _mixture(source: str, field: str, largest: int) -> Iterator[Document | BadDocument]:
    """Documents of several sources in proportion to their weights, until one has no more.

    Each next one is of the source that is furthest behind its share. Ids begin with the number of
    the source, so that two sources may use the same.
    """
    weights, parts = zip(*_parts(source, field))
    streams, taken = [documents(one, field, largest) for one in parts], [0] * len(parts)
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
            yield BadDocument(id, document.kind, document.reason)
        else:
            yield Document(id, document.text, document.metadata)


def _python_library(pattern: str, name: str, where: str, largest: int):
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        parts = set(path.relative_to(root).parts)
        if parts & (_NOT_LIBRARY | _TESTS) or path.name.startswith("_sysconfigdata"):
            continue
        data = files.read(str(path), largest)
        yield of_bytes(path.relative_to(root).as_posix(), data, largest)


def _read_text(path: str, name: str, file: str, largest: int):
    yield of_bytes(file, files.read(path, largest), largest)


def _read_parquet(path: str, name: str, file: str, largest: int):
    for row, fields in files.parquet_rows(path, name, ("id", *KEPT), largest):
        where = f"{path}: row {row}"
        if fields is None:
            yield too_large(where, "document", largest)
        else:
            yield of_fields(fields, name, where, f"{file}:{row}", largest)


def _read_tfds(pattern: str, name: str, where: str, largest: int):
    for row, fields in files.tfds_rows(pattern, where):
        yield of_fields(fields, name, f"tfds:{pattern}: row {row}", str(row), largest)


def _read_jsonl(path: str, name: str, file: str, largest: int):
    for number, line in files.lines(path, largest):
        where = f"{path}:{number}"
        if line is None:
            yield too_large(where, "line", largest)
            continue
        if not line.strip():
            continue
        try:
            row = parsed(line)
        except Unusable as error:
            yield BadDocument(where, error.kind, str(error))
        else:
            yield of_fields(row, name, where, f"{file}:{number}", largest)


def _read_share(pattern: str, name: str, where: str, largest: int):
    low, high, source = _share(pattern, where)
    for document in documents(source, where, largest):
        # Not the hash that chooses what is held out, or a share would hold out all or nothing.
        if low <= int.from_bytes(digest(f"share {document.id}", 8), "big") / 2**64 < high:
            yield document


def _share(pattern: str, where: str) -> tuple[float, float, str]:
    """LOW, HIGH and SOURCE of a share."""
    bounds, _, source = pattern.partition(":")
    try:
        low, high = map(float, bounds.split("-"))
    except ValueError:
        low = high = 0.0
    if not 0 <= low < high <= 1:
        raise UserError(
            f"{where}: {bounds!r} is no share; write LOW-HIGH, both from 0 to 1: "
            "'share:0-0.5:text:books/**/*.txt', and its other half 'share:0.5-1:text:books/**/*.txt'"
        )
    return low, high, source


@dataclass(frozen=True)
class Kind:
    """A kind of source.

    Attributes:
      form: how it is written; with a # the field or column that holds the text may follow.
      reads_files: whether it is a pattern of files. Then `read` takes the path of one, the text's field, and
        the name of the file; otherwise the pattern, the text's field, and what to begin messages with.
      read: yields the documents, and a BadDocument for each that has more bytes than its last argument.
    """

    form: str
    reads_files: bool
    read: Callable[[str, str, str, int], Iterator[Document | BadDocument]]


KINDS = {
    "python": Kind("python:", False, _python_library),
    "text": Kind("text:GLOB", True, _read_text),
    "jsonl": Kind("jsonl:GLOB#FIELD", True, _read_jsonl),
    "parquet": Kind("parquet:GLOB#COLUMN", True, _read_parquet),
    "tfds": Kind("tfds:NAME:SPLIT#FEATURE", False, _read_tfds),
    "share": Kind("share:LOW-HIGH:SOURCE", False, _read_share),
}
