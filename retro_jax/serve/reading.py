"""JSON that strangers send: what is read from it is of its type and range, or refused by name."""

import json
import math
import reprlib
from collections import Counter
from collections.abc import Callable

from retro_jax.config.fields import did_you_mean

_short = reprlib.Repr()
_short.maxstring = _short.maxlong = _short.maxother = 60
_short.maxlevel = 3
_shown = _short.repr
_TYPES = {429: "rate_limit_error"}
_NAME = 64  # characters of an unknown name that are looked at


class Refused(Exception):
    """Why a request is not answered.

    Args:
      message: names the field, its value and the remedy. param: the field.
      status: of HTTP. code: a word for programs. headers: of the answer.
    """

    def __init__(
        self,
        message: str,
        param: str | None = None,
        status: int = 400,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ):
        super().__init__(message)
        self.message, self.param, self.status, self.code = message, param, status, code
        self.headers = headers or {}

    def to_json(self) -> dict:
        """In OpenAI's shape."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        kind = _TYPES.get(self.status, kind)
        return {
            "error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        }


def json_of(data: bytes):
    """The value of a JSON text in UTF-8.

    Raises:
      Refused: it is none, names a field twice, holds NaN or Infinity, or nests too deeply.
    """
    try:
        return json.loads(data.decode(), object_pairs_hook=_object, parse_constant=_constant)
    except UnicodeDecodeError as error:
        raise Refused(f"the body is not UTF-8 (byte {error.start}); send JSON in UTF-8") from error
    except RecursionError as error:
        raise Refused("the body nests too deeply; send an object of plain fields") from error
    except ValueError as error:
        raise Refused(f"the body is not JSON ({error}); send a JSON object") from error


def _object(pairs: list) -> dict:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise Refused(f"{_shown(twice)} is there twice; name it once")
    return found


def _constant(name: str):
    raise Refused(f"the body holds {name}, which is no number in JSON; give a finite number")


def wrong(name: str, value, remedy: str) -> Refused:
    """What to raise for the value of a field."""
    return Refused(f"{name} = {_shown(value)}: {remedy}", name)


# Readers: (value, name) -> the value as it is used from then on; they raise Refused.
Reader = Callable[[object, str], object]


def text(value, name: str) -> str:
    """Unicode text; half a surrogate pair, which JSON can write, is none."""
    if not isinstance(value, str):
        raise wrong(name, value, "must be a text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        remedy = f"character {error.start} is half of a surrogate pair; send whole characters"
        raise wrong(name, value, remedy) from error
    return value


def flag(value, name: str) -> bool:
    """true or false."""
    if not isinstance(value, bool):
        raise wrong(name, value, "must be true or false")
    return value


def number(value, name: str) -> float:
    """A finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise wrong(name, value, "must be a number")
    try:
        value = float(value)
    except OverflowError:
        value = math.inf
    if not math.isfinite(value):
        raise wrong(name, value, "must be a finite number")
    return value


def whole(low: int, high: int) -> Reader:
    """A whole number from low to high."""

    def read(value, name: str) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise wrong(name, value, f"must be a whole number from {low:,} to {high:,}")
        return value

    return read


def texts(most: int) -> Reader:
    """A list of at most so many texts."""

    def read(value, name: str) -> tuple[str, ...]:
        if not isinstance(value, list) or len(value) > most:
            raise wrong(name, value, f"must be a list of at most {most:,} texts")
        return tuple(text(one, f"{name}[{i}]") for i, one in enumerate(value))

    return read


def objects(most: int, readers: dict[str, Reader]) -> Reader:
    """A list of 1 to so many objects."""

    def read(value, name: str) -> list[dict]:
        if not isinstance(value, list) or not 1 <= len(value) <= most:
            raise wrong(name, value, f"must be a list of 1 to {most:,} objects")
        return [fields(one, f"{name}[{i}]", readers) for i, one in enumerate(value)]

    return read


def fields(value, name: str, readers: dict[str, Reader]) -> dict:
    """The fields of an object that are not null, each read.

    Args:
      name: of the object; of the body itself ''.
      readers: of the fields that it may have.
    """
    if not isinstance(value, dict):
        raise wrong(name or "body", value, f"must be an object with fields of {', '.join(readers)}")
    prefix = f"{name}." if name else ""
    found = {}
    for key, one in value.items():
        if key not in readers:
            known = f"known: {', '.join(readers)}"
            hint = did_you_mean(key[:_NAME], readers, prefix) or known
            raise Refused(
                f"no field {prefix}{_shown(key)[1:-1]}: {hint}", f"{prefix}{_shown(key)[1:-1]}"
            )
        if one is not None:
            found[key] = readers[key](one, f"{prefix}{key}")
    return found


def needed(found: dict, name: str, example: str, of: str = ""):
    """The value of a field; raises Refused if it is missing from what `fields` found."""
    if name not in found:
        raise Refused(f"{of}{name} is missing: give {example}", f"{of}{name}")
    return found[name]
