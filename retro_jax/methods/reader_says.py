"""What a reader that cross-attends makes of documents: how probable what follows is with them, and how much it
attends them.

n training chunks x with what follows y, K candidates of each, M tokens of a chunk, R of a neighbour
"""

from collections.abc import Callable

import jax
import numpy as np

from retro_jax import progress
from retro_jax.methods.method import Method, Retrieved
from retro_jax.methods.query_map import Examples
from retro_jax.model import functional
from retro_jax.model.retro import PAD
from retro_jax.train import sharding


def alone(given: Examples, method: Method, params: dict, mesh, batch: int):
    """log p of y where x is read with one document [n, K], and how many tokens y has [n]."""
    return _logp(given, method, params, mesh, batch, lambda near, k: near[k : k + 1])


def without(given: Examples, method: Method, params: dict, mesh, batch: int):
    """The same where x is read with all documents but one [n, K]."""

    def others(near, k):
        near = near.copy()
        near[k] = PAD
        return near

    return _logp(given, method, params, mesh, batch, others)


def attended(given: Examples, method: Method, params: dict, mesh, batch: int) -> np.ndarray:
    """The attention of y's tokens on each of all documents, times the norms of the values: a mean over heads, layers
    and tokens [n, K]."""

    def values(params, tokens, near):
        found = functional.statistics(method.model, params, tokens, near.tokens, "values")
        return found["mass"].sum(axis=-1).mean(axis=0)  # [B, L, K]

    (n, k), m = given.neighbours.shape[:2], given.texts.shape[1]
    out, rows = np.zeros((n, k)), [(i, given.neighbours[i]) for i in range(n)]
    for at, found, counts in _batches(given, values, rows, params, mesh, batch):
        weights = counts[:, m:, None] * found[:, m:]
        out[at] = weights.sum(axis=1) / np.maximum(counts[:, m:].sum(axis=1), 1)[:, None]
    return out


def _logp(given: Examples, method: Method, params: dict, mesh, batch: int, which: Callable):
    (n, k), m = given.neighbours.shape[:2], given.texts.shape[1]
    rows = [(i, which(given.neighbours[i], j)) for i in range(n) for j in range(k)]
    total, done = np.zeros(n * k), 0
    for _, found, counts in _batches(given, method.logprobs, rows, params, mesh, batch):
        total[done : done + len(found)] = (found * counts)[:, m:].sum(axis=1)
        done += len(found)
    return total.reshape(n, k), (given.following != PAD).sum(axis=1)


def _batches(given: Examples, function: Callable, rows: list, params: dict, mesh, batch: int):
    """Of every row (which example, its documents [K', R]): the examples [b], what the function gives of their 2 M
    tokens, and which of the tokens there are."""
    m, run = given.texts.shape[1], jax.jit(function)
    near = np.zeros((batch, 2, *rows[0][1].shape), np.int32)
    distances = np.zeros(near.shape[:3], np.float32)
    with progress.bar("documents to the reader", len(rows)) as advance:
        for begin in range(0, len(rows), batch):
            part = rows[begin : begin + batch]
            at = np.array([i for i, _ in part])
            tokens = np.zeros((batch, 2 * m), np.int32)
            tokens[: len(at)] = np.concatenate([given.texts[at], given.following[at]], axis=1)
            near[: len(at), 0] = [documents for _, documents in part]

            def put(x):
                return sharding.shard_batch(mesh, {"x": x})["x"]

            found = run(params, put(tokens), Retrieved(put(near), put(distances)))
            yield at, np.asarray(found)[: len(at)], tokens[: len(at)] != PAD
            advance(len(at))
