"""An experiment from its file, or an installed one by its name, with `--config.FIELD=VALUE` on top."""

import dataclasses
import functools
import importlib.resources
import re
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from retro_jax.config import Experiment, from_config_dict, to_config_dict
from retro_jax.config.fields import did_you_mean
from retro_jax.errors import UserError


def load(config: str, fields: Sequence[str] = ()) -> Experiment:
    """The experiment of FILE:ARG, or of the NAME:ARG of an installed one, with `--config.FIELD=VALUE` on top.

    Raises:
      UserError: no such file, what the file raises, or a field or value that cannot be meant.
    """
    name, colon, argument = config.partition(":")
    given = f"--config={find(name)}{colon}{argument}"
    file = functools.partial(config_flags.DEFINE_config_file, "config", None, "")
    return _over(_parse(file, [given]), fields)


def over(e: Experiment, fields: Sequence[str]) -> Experiment:
    """An experiment with `--config.FIELD=VALUE` on top; raises UserError as `load`."""
    return _over(to_config_dict(e), fields) if fields else e


def installed() -> dict[str, Path]:
    """The experiments that came with the package, by name."""
    folder = importlib.resources.files("retro_jax.experiments")
    found = {Path(str(f)).stem: Path(str(f)) for f in folder.iterdir() if f.name.endswith(".py")}
    return {name: path for name, path in sorted(found.items()) if name != "__init__"}


def find(name: str, given: str = "--config=") -> Path:
    """The file of an experiment; given: what stood before its name.

    Raises:
      UserError: there is none.
    """
    if Path(name).suffix == ".json":
        raise UserError(
            f"{given}{name}: no experiment file; the config that a working directory has stored is used by naming the "
            "directory"
        )
    if Path(name).is_file():
        return Path(name)
    known = installed()
    if name in known:
        return known[name]
    if Path(name).is_dir() or name.endswith(".gguf"):
        raise UserError(
            f"{given}{name}: no experiment file. If it is a language model, {given}chat:{name} asks it about "
            f"documents, and {given}retrofit:{name} trains it to read them"
        )
    raise UserError(f"{given}{name}: no such file, nor one of the installed {', '.join(known)}")


def _over(config: ConfigDict, fields: Sequence[str]) -> Experiment:
    for word in fields:
        if "=" not in word:
            raise UserError(f"{word}: write {word}=VALUE")
        _make_room(config, word.removeprefix("--config.").partition("=")[0])
    if fields:
        given = functools.partial(config_flags.DEFINE_config_dict, "config", config, "")
        try:
            config = _parse(given, fields)
        except UserError as error:
            raise UserError(_illegal(config, fields, str(error)) or str(error)) from error
    return from_config_dict(config.to_dict())


def _make_room(config: ConfigDict, field: str):
    """Puts the default of a field of the tables' settings where the config has none, for a flag to change."""
    from retro_jax.methods.method import METHODS
    from retro_jax.retrieval.embedder import EMBEDDERS
    from retro_jax.retrieval.index import INDEXES

    for table in (EMBEDDERS, INDEXES, METHODS):
        name, _, own = field.removeprefix(f"{table.settings}.").partition(".")
        if not field.startswith(f"{table.settings}.") or name not in table:
            continue
        values = {f.name: f.default for f in dataclasses.fields(table[name].Settings)}
        if own not in values:
            hint = did_you_mean(own, values) or f"there are {', '.join(values) or 'none'}"
            raise UserError(f"config has no field {field}: {hint}")
        for part in f"{table.settings}.{name}".split("."):
            if part not in config:
                config[part] = ConfigDict()
            config = config[part]
        if own not in config:
            config[own] = values[own]
        return


def _parse(define, argv: Sequence[str]) -> ConfigDict:
    values, argv = flags.FlagValues(), ["retro", *argv]
    try:
        define(values, lock_config=False, accept_new_attributes=True, sys_argv=argv)
        values(argv)
        return ConfigDict(values.config.to_dict())  # a file that cannot be loaded shows only here
    except UserError:
        raise
    except Exception as error:  # whatever an experiment file can raise
        raise UserError(f"config: {_words(error)} (`retro config` lists the fields)") from error


def _illegal(config: ConfigDict, fields: Sequence[str], said: str) -> str:
    """What a value must be that its field's type cannot have; "" if something else is wrong."""
    word = next((w for w in fields if f"flag {w}:" in said), "")
    value = config
    for part in word.partition("=")[0].removeprefix("--config.").split(".") if word else ():
        value = value.get(part) if isinstance(value, ConfigDict) else None
    kind = {bool: "True or False", int: "a whole number", float: "a number"}.get(type(value))
    return f"{word}: must be {kind}; it is {value} where it is not given" if kind else ""


def _words(error: Exception) -> str:
    """What an error says, in one line."""
    text = error
    while isinstance(text, Exception):  # str() of a KeyError would quote its text
        text = text.args[0] if len(text.args) == 1 else str(text)
    words = str(text).strip()
    if "Traceback (most recent call last)" in words:  # ends with what was raised
        last = words.splitlines()[-1]
        words = last.partition("Error: ")[2] or last
    return re.sub(r"\s+", " ", words)
