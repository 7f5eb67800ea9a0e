"""Chunk tables to sequences: what a record of the shards is cut from, and what it holds."""

from collections.abc import Iterator

import numpy as np

from retro_jax.corpus.chunks import ChunkTable


def cuts(table: ChunkTable, split: str, chunks_per_sequence: int, stride: int) -> Iterator[tuple]:
    """What the records of a split are cut from: (rows of the chunk table [C], first scored chunk).

    Training sequences follow one another: documents are packed, and since each begins at a chunk, so
    does every chunk's query; -1 fills the last one. Held-out documents are cut into windows, `stride`
    chunks apart.
    """
    if split == "train":
        for start in range(0, len(table), chunks_per_sequence):
            rows = np.arange(start, start + chunks_per_sequence)
            yield np.where(rows < len(table), rows, -1), 0
        return
    for document in table.documents:
        yield from windows(document["first"], document["chunks"], chunks_per_sequence, stride)


def own_documents(table: ChunkTable, start: int, stop: int, chunks_per_sequence: int):
    """The documents of the training sequence of each of chunks start .. stop - 1: [stop - start, C]
    int32, -1 where the sequence is not full. `start` begins a sequence."""
    rows = np.arange(start, start + -(-(stop - start) // chunks_per_sequence) * chunks_per_sequence)
    inside = np.minimum(rows, len(table) - 1)
    own = np.where(rows < len(table), table.document[inside], -1).reshape(-1, chunks_per_sequence)
    return own.repeat(chunks_per_sequence, axis=0)[: stop - start]


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
    table: ChunkTable, database: ChunkTable, rows, first_scored_chunk: int, ids, distances
) -> dict[str, np.ndarray]:
    """One sequence: rows [C] of a chunk table, -1 for padding.

    tokens [C M]; documents [C] int32, the document of each chunk, -1 for padding; neighbour_ids
    [C, K] int64, rows of the database's chunk table; distances [C, K] float32; neighbours [C, K, R],
    their tokens; first_scored [1] int32, the position from which evaluation scores.
    """
    at = np.maximum(rows, 0)
    padding = (rows < 0)[:, None]
    near = np.where(padding, -1, ids[at])
    return {
        "tokens": table.rows(rows).reshape(-1).astype(table.tokens.dtype),
        "documents": np.where(rows < 0, -1, table.document[at]).astype(np.int32),
        "neighbour_ids": near,
        "distances": np.where(padding, np.inf, distances[at]).astype(np.float32),
        "neighbours": database.values(near).astype(table.tokens.dtype),
        "first_scored": np.array([first_scored_chunk * table.chunk], np.int32),
    }
