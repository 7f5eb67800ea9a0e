"""The k nearest chunks of every query, none of them from a document of the query's own sequence."""

from collections.abc import Callable

import numpy as np

BLOCK = 2048  # queries searched at a time


def find(
    search: Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]],
    queries: np.ndarray,
    forbidden: np.ndarray,
    document: np.ndarray,
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
      forbidden: documents of each query's sequence [Q, S] int, -1 for none.
      document: the document of each chunk of the database [N].
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
            found, d = search(queries[pending], min(fetch, len(document)))
            of, valid = document[np.maximum(found, 0)], found >= 0
            for column in forbidden[pending].T:  # not all at once: [Q, candidates, S] is large
                valid &= of != column[:, None]
            # A stable sort moves the valid candidates to the front and keeps their order.
            first = np.argsort(~valid, axis=1, kind="stable")[:, :k]
            taken = np.take_along_axis(valid, first, 1)
            width = first.shape[1]  # fewer than k where the database is smaller than k
            ids[pending, :width] = np.where(taken, np.take_along_axis(found, first, 1), -1)
            distances[pending, :width] = np.where(taken, np.take_along_axis(d, first, 1), np.inf)
            if fetch >= len(document):
                break
            pending = pending[valid.sum(1) < k]
            fetch *= 4
        progress(min(block, len(queries) - start))
    return ids, distances
