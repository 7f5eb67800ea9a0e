"""What the fields of a config are made of: a default, a meaning, and a check that names the field."""

import copy
import dataclasses
import difflib
import typing
from collections.abc import Iterable, Iterator

from retro_jax.errors import UserError


def setting(default, meaning: str, free: bool = False):
    """A field of a config's dataclass.

    Args:
      meaning: one sentence for a person, which `retro config` prints.
      free: whether it says how something is computed, kept or told, and not what: a directory that was
        made with another value is not refused.
    """
    about = {"meaning": meaning, "free": free}
    if isinstance(default, dict | list) or dataclasses.is_dataclass(default):
        return dataclasses.field(default_factory=lambda: copy.copy(default), metadata=about)
    return dataclasses.field(default=default, metadata=about)


def binding(config, prefix: str = "") -> dict:
    """{name: value} of the fields that decide what is made: all but those that are free.

    A dataclass in a field gives its own fields, named NAME.FIELD. prefix: precedes every name.
    """
    return {name: value for name, value, _ in leaves(config, prefix, free=False)}


def leaves(
    config, prefix: str = "", free: bool = True
) -> Iterator[tuple[str, typing.Any, dataclasses.Field]]:
    """Name, value and field of every field of a config; of a part its own, named PART.FIELD.

    free: whether those that are free are among them.
    """
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), f"{prefix}{field.name}"
        if field.metadata.get("free") and not free:
            continue
        if dataclasses.is_dataclass(value):
            yield from leaves(value, f"{name}.", free)
        else:
            yield name, value, field


def did_you_mean(name: str, known: Iterable[str], prefix: str = "") -> str:
    """A question for whoever gave a name that there is not; "" if none is near. prefix: of those known."""
    known = list(known)
    begun = [n for n in known if len(name) > 2 and n.startswith(name)]
    near = begun or difflib.get_close_matches(name, known, n=1)
    return f"did you mean {prefix}{near[0]}?" if near else ""


def require(condition: bool, name: str, value, remedy: str):
    """Raises UserError that names a field, its value and the remedy, unless the condition holds."""
    if not condition:
        raise UserError(f"config field {name} = {value!r}: {remedy}")


def require_at_least(least: int, prefix: str, config, *names: str):
    """Raises UserError for the first of these fields that is less than `least`."""
    for name in names:
        value = getattr(config, name)
        require(value >= least, prefix + name, value, f"must be at least {least}")


def require_share(prefix: str, config, *names: str):
    """Raises UserError for the first of these fields that does not lie between 0 and 1."""
    for name in names:
        value = getattr(config, name)
        require(0 <= value <= 1, prefix + name, value, "must lie between 0 and 1")


def require_not_negative(prefix: str, config, *names: str):
    """Raises UserError for the first of these fields that is below 0."""
    for name in names:
        value = getattr(config, name)
        require(value >= 0, prefix + name, value, "must not be negative")


def require_one_of(name: str, value, choices: tuple):
    """Raises UserError unless the value of a field is one of the choices."""
    require(value in choices, name, value, f"must be one of {', '.join(choices)}")


def require_known(cls, names: Iterable[str], prefix: str = "", of: str = "config"):
    """Raises UserError for the first of the names that is no field of a dataclass, with the nearest known one."""
    fields = [f.name for f in dataclasses.fields(cls)]
    for name in names:
        if name not in fields:
            known = "known: " + ", ".join(fields) if fields else "it has none"
            hint = did_you_mean(name, fields, prefix) or known
            raise UserError(f"{of} has no field {prefix}{name}: {hint}")


def build(cls, values: typing.Mapping, prefix: str = ""):
    """A dataclass from a mapping of its fields; those that are missing have their defaults.

    Args:
      prefix: precedes the names of fields in messages, "retrieval." for example.

    Raises:
      UserError: an unknown field (with the nearest known one), or a value of another type.
    """
    require_known(cls, values, prefix)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    return cls(**{n: _typed(fields[n].type, value, prefix + n) for n, value in values.items()})


def _typed(kind, value, name: str):
    """The value as the field's type: an int for a float and a list for a tuple will do."""
    if dataclasses.is_dataclass(kind) and isinstance(value, typing.Mapping):
        return build(kind, dict(value), f"{name}.")
    origin = typing.get_origin(kind)
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(_typed(typing.get_args(kind)[0], v, name) for v in value)
    if origin is dict and isinstance(value, typing.Mapping):
        inner = typing.get_args(kind)[1]
        if inner is typing.Any:
            return dict(value)
        return {key: _typed(inner, v, f"{name}.{key}") for key, v in value.items()}
    if kind is float and type(value) is int:
        return float(value)
    require(type(value) is kind, name, value, f"must be of type {getattr(kind, '__name__', kind)}")
    return value
