"""/v1/documents: what a database is to have more, or no more."""

from retro_jax.config.filters import is_date
from retro_jax.corpus.document import BadDocument, of_fields
from retro_jax.databases.database import PREPARED, Databases
from retro_jax.serve.reading import Refused, fields, needed, objects, text, texts, wrong

_MANY = 2**15  # documents of a body, whose own size is limited
_METADATA = {"date": text, "licence": text, "source": text, "title": text}
FIELDS = {"id": text, "text": text} | _METADATA
_ADDED = {"database": text, "documents": objects(_MANY, FIELDS)}
_DELETED = {"database": text, "ids": texts(_MANY)}
_EXAMPLE = 'for example [{"id": "4711", "text": "It was"}]'


def add(databases: Databases, body) -> dict:
    """Adds documents, or replaces those of the same ids.

    Returns:
      What `Databases.add` counts, and the database.

    Raises:
      Refused, UserError: what is asked for is not understood, or cannot be done.
    """
    f, found, ids = fields(body, "", _ADDED), [], set()
    for i, given in enumerate(needed(f, "documents", _EXAMPLE)):
        of = f"documents[{i}]."
        id, said = needed(given, "id", "a text", of), needed(given, "text", "a text", of)
        for name, value in (("id", id), ("text", said)):
            if not value.strip():
                raise wrong(f"{of}{name}", value, "must not be empty")
        if (date := given.get("date")) and not is_date(date):
            raise wrong(f"{of}date", date, "must be an ISO date, for example 2024-05-31")
        about = {n: given[n] for n in _METADATA if n in given}
        made = of_fields(
            {"id": id, "text": said} | about, "text", f"documents[{i}]", id, len(said) * 4
        )
        if isinstance(made, BadDocument):
            raise Refused(f"{made.id}: {made.reason}", made.id)
        if made.id in ids:
            raise wrong(f"{of}id", made.id, "is there twice; make ids unique")
        ids.add(made.id)
        found.append(made)
    name = f.get("database", PREPARED)
    return {"database": name} | databases.add(name, found)


def delete(databases: Databases, body) -> dict:
    """Deletes documents; returns how many, and the database.

    Raises:
      Refused, UserError: what is asked for is not understood, or it has not all of them.
    """
    f = fields(body, "", _DELETED)
    ids = needed(f, "ids", 'a list, for example ["4711"]')
    if not ids:
        raise wrong("ids", [], "must not be empty")
    name = f.get("database", PREPARED)
    return {"database": name} | databases.delete(name, ids)
