"""Tables from a name in a config to the class that it stands for."""

import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from retro_jax.config.fields import binding, build, did_you_mean
from retro_jax.errors import UserError


class Table(Mapping):
    """Names to classes, which are imported when they are asked for: some need heavy libraries.

    Each class has `Settings`, a frozen dataclass of its own settings, whose __post_init__ may refuse.

    Args:
      field: the config's field that holds a name, "retrieval.embedder" for example.
      settings: the config's field that holds settings by name, "retrieval.settings" for example.
      entries: name -> "package.module:Class".
    """

    def __init__(self, field: str, settings: str, entries: dict[str, str]):
        self.field, self.settings, self._entries = field, settings, entries

    def __getitem__(self, name: str) -> type:
        """The class of a name.

        Raises:
          UserError: there is none of this name, or the table's line of it is wrong.
        """
        if name not in self._entries:
            must = f"must be one of {', '.join(self)}"
            hint = "; ".join(filter(None, (must, did_you_mean(name, self))))
            raise UserError(f"config field {self.field} = {name!r}: {hint}")
        where = self._entries[name]
        module, _, cls = where.partition(":")
        try:
            found = getattr(importlib.import_module(module), cls)
        except (ModuleNotFoundError, AttributeError) as error:
            if isinstance(error, ImportError) and not module.startswith(error.name):
                raise  # a library that is not installed
            raise UserError(f"{self.field} {name!r} is to be {where}: {error}") from error
        if getattr(found, "name", name) != name:
            raise UserError(f"{self.field} {name!r} is {where}, whose own name is {found.name!r}")
        return found

    def __contains__(self, name) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def settings_of(self, name: str, given: Mapping[str, Mapping]):
        """The `Settings` of a name; what `given` {name: settings} does not say has its default.

        Raises:
          UserError: no such name, or settings that it does not have or cannot work with.
        """
        return build(self[name].Settings, dict(given.get(name, {})), f"{self.settings}.{name}.")

    def binding(self, name: str, given: Mapping[str, Mapping]) -> dict:
        """The fields that decide what is made: the name, and its settings that are not free."""
        own = self.settings_of(name, given)
        return {self.field: name} | binding(own, f"{self.settings}.{name}.")


@dataclass(frozen=True)
class NoSettings:
    """The settings of a class that has none."""


def check_names(given: Mapping[str, Mapping], *tables: Table):
    """Raises UserError for settings of a name that none of the tables has."""
    known = [name for table in tables for name in table]
    for name in given:
        if name not in known:
            hint = did_you_mean(name, known) or f"known: {', '.join(known)}"
            raise UserError(f"config has no field {tables[0].settings}.{name}: {hint}")
