"""The k nearest chunks of every query, none of them of what is forbidden: its own sequence's documents."""

from collections.abc import Callable

import numpy as np

BLOCK = 2048  # queries searched at a time


def find(
    search: Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]],
    queries: np.ndarray,
    forbidden: np.ndarray,
    owner: Callable[[np.ndarray], np.ndarray],
    size: int,
    k: int,
    progress: Callable[[int], None] = lambda done: None,
    block: int = BLOCK,
) -> tuple[np.ndarray, np.ndarray]:
    """Searches k neighbours a query outside its forbidden documents.

    A neighbour N and its continuation F are of one document, so to forbid N's document is to
    forbid F's. The number of candidates grows until k valid ones are found or none is left.

    Args:
      search: `Index.search`.
      queries: vectors [Q, E].
      forbidden: documents that each query may not have a neighbour of [Q, F] int, -1 for none.
      owner: the documents, numbered as in `forbidden`, that chunks of the database are of.
      size: chunks of the database.
      k: neighbours a query.
      progress: called with the number of queries done since the last call.
      block: queries searched at a time.

    Returns:
      ids [Q, k] int64 and distances [Q, k] float32, nearest first; -1 and +inf where missing.
    """
    ids = np.full((len(queries), k), -1, np.int64)
    distances = np.full((len(queries), k), np.inf, np.float32)
    for start in range(0, len(queries), block):
        pending, fetch = np.arange(start, min(start + block, len(queries))), 4 * k + 8
        while len(pending):
            found, d = search(queries[pending], min(fetch, size))
            of, valid = owner(np.maximum(found, 0)), found >= 0
            for column in forbidden[pending].T:  # not all at once: [Q, candidates, F] is large
                valid &= of != column[:, None]
            # A stable sort moves the valid candidates to the front and keeps their order.
            first = np.argsort(~valid, axis=1, kind="stable")[:, :k]
            taken = np.take_along_axis(valid, first, 1)
            width = first.shape[1]  # fewer than k where the database is smaller than k
            ids[pending, :width] = np.where(taken, np.take_along_axis(found, first, 1), -1)
            distances[pending, :width] = np.where(taken, np.take_along_axis(d, first, 1), np.inf)
            if fetch >= size:
                break
            pending = pending[valid.sum(1) < k]
            fetch *= 4
        progress(min(block, len(queries) - start))
    return ids, distances
