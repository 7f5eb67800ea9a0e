"""Which documents a search may return, by what is known of them."""

import datetime
from dataclasses import dataclass

from retro_jax.config.fields import setting
from retro_jax.errors import UserError


@dataclass(frozen=True)
class Where:
    """A filter on the metadata of documents; what is empty asks for nothing.

    Dates are ISO (2020, 2020-05, 2020-05-31, 2020-05-31T12:00) and compared as text. A document that
    lacks a field that is asked for, or whose date is not ISO, does not match.

    Raises:
      UserError: a field that cannot be meant.
    """

    date_from: str = setting("", "of a date that is not before this one")
    date_to: str = setting("", "of a date that is not after this one; 2020 includes all of 2020")
    licence: tuple[str, ...] = setting((), "of any of these licences")
    source: tuple[str, ...] = setting((), "of any of these sources")

    def __post_init__(self):
        for name in ("date_from", "date_to"):
            value = getattr(self, name)
            if not isinstance(value, str) or (value and not is_date(value)):
                raise UserError(
                    f"where.{name} = {value!r}: must be an ISO date, for example 2020, 2020-05 or 2020-05-31"
                )
        if self.date_to and self.date_from[: len(self.date_to)] > self.date_to:
            raise UserError(
                f"where.date_from = {self.date_from!r}: is after where.date_to = {self.date_to!r}; "
                "swap them, or leave one out"
            )
        for name in ("licence", "source"):
            values = getattr(self, name)
            if not isinstance(values, list | tuple) or not all(
                isinstance(v, str) and v for v in values
            ):
                raise UserError(
                    f"where.{name} = {values!r}: must be a list of texts that are not empty, for example ['MIT']"
                )
            object.__setattr__(self, name, tuple(values))

    def __bool__(self) -> bool:
        return bool(self.date_from or self.date_to or self.licence or self.source)

    def matches(self, metadata: dict) -> bool:
        """Whether a document of this metadata may be returned."""
        if self.date_from or self.date_to:
            date = str(metadata.get("date") or "")
            if not is_date(date) or date < self.date_from:
                return False
            if self.date_to and date[: len(self.date_to)] > self.date_to:
                return False
        return all(
            not wanted or metadata.get(name) in wanted
            for name, wanted in (("licence", self.licence), ("source", self.source))
        )


def is_date(value: str) -> bool:
    """Whether it is ISO: a year, a month, a day, or a moment."""
    day = value + "-01-01"[len(value) - 4 :] if len(value) in (4, 7) else value
    try:
        datetime.datetime.fromisoformat(day)
    except ValueError:
        return False
    return len(value) in (4, 7) or value[4:5] == value[7:8] == "-"
