"""What no neighbour may be of: the documents of its own sequence, and those with their text or id."""

import numpy as np

from retro_jax.corpus.chunks import ChunkTable


def copies(database: ChunkTable) -> np.ndarray:
    """For each document of the database the number of the first one with the same text [D] int64."""
    _, first, of = np.unique(np.asarray(database.texts), return_index=True, return_inverse=True)
    return first[of]


def own_documents(table: ChunkTable, database: ChunkTable, number: np.ndarray) -> np.ndarray:
    """For each document of `table` those of the database that it is, by `number` (see `copies`) [D, 2]:
    the one with its text and the one with its id; -1 for none."""
    own = []
    for mine, theirs in ((table.texts, database.texts), (table.ids, database.ids)):
        mine, theirs = np.asarray(mine), np.asarray(theirs)
        order = np.argsort(theirs, kind="stable")
        at = np.minimum(np.searchsorted(theirs, mine, sorter=order), len(order) - 1)
        own.append(np.where(theirs[order[at]] == mine, number[order[at]], -1))
    return np.stack(own, axis=1)


def forbidden(
    table: ChunkTable, own: np.ndarray, start: int, stop: int, chunks_per_sequence: int
) -> np.ndarray:
    """What no neighbour of chunks start .. stop - 1 may be of, [stop - start, F] int64, -1 for none:
    `own` [D, 2] of every document of the sequence. `start` begins a sequence."""
    rows = np.arange(start, start + -(-(stop - start) // chunks_per_sequence) * chunks_per_sequence)
    inside = np.minimum(rows, len(table) - 1)
    found = np.where((rows < len(table))[:, None], own[table.document[inside]], -1)
    if (found[:, 0] == found[:, 1]).all():  # as in a table that is its own database
        found = found[:, :1]
    found = found.reshape(len(rows) // chunks_per_sequence, -1)
    return found.repeat(chunks_per_sequence, axis=0)[: stop - start]
