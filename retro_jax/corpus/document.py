"""What a document is, and what it must be when it comes in: text in UTF-8 with an id and bounded metadata."""

import datetime
import hashlib
import json
import math
from dataclasses import dataclass, field

import numpy as np

KEPT = ("date", "licence", "source", "title")  # of what is said about a document
MOST_ID, MOST_METADATA = 1024, 4096  # bytes


@dataclass(frozen=True)
class Document:
    """One text. `id` is unique in its source and the same on every run; metadata are texts."""

    id: str
    text: str
    metadata: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class BadDocument:
    """A document that cannot be used: its id, or the file and row where it stands, of what kind it is (a word
    or two, by which such are counted), and why."""

    id: str
    kind: str
    reason: str

    def __post_init__(self):
        for name in ("id", "reason"):  # of a file whose name is not UTF-8, for example
            text = getattr(self, name).encode("utf-8", "backslashreplace").decode()
            object.__setattr__(self, name, text)


class Unusable(ValueError):
    """Why a value cannot be used."""

    def __init__(self, kind: str, reason: str):
        super().__init__(reason)
        self.kind = kind


def in_words(bad: dict[str, int]) -> str:
    """How many bad documents there are of each kind: "2 empty, 1 not UTF-8"."""
    return ", ".join(f"{count:,} {kind}" for kind, count in bad.items())


def digest(text: str, size: int) -> bytes:
    """A hash of a text, of `size` bytes, the same on every machine."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=size).digest()


def parsed(line: bytes):
    """The value of a line of JSON.

    Raises:
      Unusable: it is none, not UTF-8, nests too deeply or has a number of too many digits.
    """
    try:
        return json.loads(line)
    except UnicodeDecodeError as error:
        raise Unusable("not UTF-8", f"not a line of JSON in UTF-8 ({error})"[:200]) from error
    except (ValueError, RecursionError) as error:
        raise Unusable("not JSON", f"not a line of JSON ({error})"[:200]) from error


def of_bytes(id: str, data: bytes | None, most: int) -> Document | BadDocument:
    """A Document of the bytes of a file; None stands for more than `most`."""
    if data is None:
        return too_large(id, "document", most)
    if b"\0" in data:
        return BadDocument(id, "binary", "the document is binary (it holds a zero byte)")
    return of_fields({"text": data}, "text", id, id, most)


def of_fields(row, name: str, where: str, id: str, most: int) -> Document | BadDocument:
    """A document of a line or row.

    Args:
      row: what it holds; texts may be bytes. Only a dict has fields.
      name: the field of its text.
      where: file and number, for messages. id: of the document, unless the row has one.
      most: bytes of a text.
    """
    if not isinstance(row, dict) or not isinstance(row.get(name), str | bytes):
        known = ", ".join(map(str, row)) if isinstance(row, dict) else type(row).__name__
        if isinstance(row, dict) and name in row:
            known = f"a {type(row[name]).__name__} in it; fields: {known}"
        reason = f"no text in field {name!r} (found: {known[:200]}); name the field in the source, after #"
        return BadDocument(where, "no text", reason)
    try:
        text = _text("the document", row[name])
        id = _bounded("id", as_text("id", row.get("id")) or id, MOST_ID)
        found = metadata({k: row.get(k) for k in KEPT})
    except Unusable as error:
        return BadDocument(where, error.kind, str(error))
    if len(text.encode()) > most:
        return too_large(where, "document", most)
    if not text.strip():
        return BadDocument(where, "empty", "the document is empty")
    return Document(id, text, found)


def too_large(where: str, what: str, most: int) -> BadDocument:
    """A document, or the line that it stands in, of more than `most` bytes."""
    reason = f"the {what} has more than {most:,} bytes; divide it, or raise corpus.largest_document"
    return BadDocument(where, "too large", reason)


def metadata(fields: dict) -> dict[str, str]:
    """What is said about a document as it is kept: texts of at most MOST_METADATA bytes; what is null or NaN is
    left out.

    Raises:
      Unusable: an infinite number, text that is not UTF-8, or one that is too long.
    """
    found = {name: as_text(name, value) for name, value in fields.items()}
    return {n: _bounded(n, text, MOST_METADATA) for n, text in found.items() if text is not None}


def as_text(name: str, value) -> str | None:
    """A value of JSON, Arrow or NumPy as text: dates in ISO 8601, lists and objects in JSON.

    None for null and for NaN, which is what pandas writes where there is nothing.

    Raises:
      Unusable: see `metadata`.
    """
    if isinstance(value, Unusable):
        raise value
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if value is None or value != value:
        return None
    if isinstance(value, str | bytes):
        return _text(f"field {name}", value)
    if isinstance(value, float):
        if math.isinf(value):
            raise Unusable("metadata", f"field {name} = {value}: must be a finite number or a text")
        return str(int(value)) if value.is_integer() and abs(value) < 2**53 else repr(value)
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, dict | list | tuple):
        try:
            whole = json.dumps(value, ensure_ascii=False, allow_nan=False, default=_in_json)
        except Unusable:  # of a value in it
            raise
        except (ValueError, RecursionError) as error:
            raise Unusable(
                "metadata", f"field {name} is no value of JSON ({error})"[:200]
            ) from error
        return _text(f"field {name}", whole)
    return str(value)


def _in_json(value) -> str | None:
    """What stands in a list or an object, and is of no type of JSON's."""
    return as_text("in a list or an object", value)


def _text(what: str, value: str | bytes) -> str:
    try:
        if isinstance(value, bytes):
            return value.decode()
        value.encode()  # JSON can write half of a surrogate pair
    except UnicodeDecodeError as error:
        raise Unusable(
            "not UTF-8", f"{what} is not UTF-8 (byte {error.start}: {error.reason})"
        ) from error
    except UnicodeEncodeError as error:
        reason = f"{what} is not UTF-8 (character {error.start} is half of a surrogate pair)"
        raise Unusable("not UTF-8", reason) from error
    return value


def _bounded(name: str, text: str, most: int) -> str:
    if (size := len(text.encode())) > most:
        raise Unusable(
            "metadata", f"field {name} has {size:,} bytes, more than {most:,}; shorten it"
        )
    return text
