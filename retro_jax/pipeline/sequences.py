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
