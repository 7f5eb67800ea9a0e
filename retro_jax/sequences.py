"""Chunk tables to sequences: what a record of the shards is cut from, and what it holds."""

import itertools
from collections.abc import Callable, Iterator

import numpy as np

from retro_jax.corpus.chunks import ChunkTable


def cuts(
    table: ChunkTable, split: str, chunks_per_sequence: int, stride: int, start: int = 0
) -> Iterator[tuple]:
    """What the records of a split are cut from: (rows of the chunk table [C], first scored chunk), from
    record `start` on.

    Training sequences follow one another: documents are packed, and since each begins at a chunk, so
    does every chunk's query; -1 fills the last one. The documents of every other split, which are held
    out, are cut into windows, `stride` chunks apart.
    """
    if split == "train":
        for first in range(start * chunks_per_sequence, len(table), chunks_per_sequence):
            rows = np.arange(first, first + chunks_per_sequence)
            yield np.where(rows < len(table), rows, -1), 0
        return
    every = (
        window
        for document in table.documents
        for window in windows(document["first"], document["chunks"], chunks_per_sequence, stride)
    )
    yield from itertools.islice(every, start, None)


def count(table: ChunkTable, split: str, chunks_per_sequence: int, stride: int) -> int:
    """How many records `cuts` gives."""
    if split == "train":
        return -(-len(table) // chunks_per_sequence)
    return sum(1 for _ in cuts(table, split, chunks_per_sequence, stride))


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


def windows(first: int, count: int, chunks_per_window: int, stride: int) -> Iterator[tuple]:
    """Windows over a document of `count` chunks from row `first`: (rows [C], first scored chunk).

    Windows start `stride` chunks apart, on the document's own chunk grid; of a later window only
    the chunks that no earlier one scored are scored.
    """
    start = scored = 0
    while True:
        rows = np.arange(start, start + chunks_per_window)
        yield np.where(rows < count, first + rows, -1), scored - start
        scored = start + chunks_per_window
        if scored >= count:
            return
        start += stride


def record(
    table: ChunkTable,
    values: Callable[[np.ndarray], np.ndarray],
    rows,
    first_scored_chunk: int,
    ids,
    distances,
) -> dict[str, np.ndarray]:
    """One sequence: rows [C] of a chunk table, -1 for padding. `values` is the database's.

    tokens [C M]; documents [C] int32, the document of each chunk, -1 for padding; neighbour_ids
    [C, K] int64, rows of the database's chunk table; distances [C, K] float32; neighbours [C, K, R],
    their tokens; first_scored [1] int32, the position from which evaluation scores.
    """
    # For padding any row that is near: of a bucket all between are read.
    at = np.where(rows < 0, rows.max(), rows)
    padding = (rows < 0)[:, None]
    near = np.where(padding, -1, ids[at])
    return {
        "tokens": table.rows(rows).reshape(-1).astype(table.tokens.dtype),
        "documents": np.where(rows < 0, -1, table.document[at]).astype(np.int32),
        "neighbour_ids": near,
        "distances": np.where(padding, np.inf, distances[at]).astype(np.float32),
        "neighbours": values(near).astype(table.tokens.dtype),
        "first_scored": np.array([first_scored_chunk * table.chunk], np.int32),
    }
