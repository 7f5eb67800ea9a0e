"""The query side of a retriever, trained: a linear map of the queries' vectors, so that the index stays.

    n training chunks, K candidates of each, E numbers of a vector, M tokens of a chunk, R = 2 M of a neighbour

A training chunk and its continuation are a query x and what follows y; candidates are the nearest chunks of other
documents. The score of a candidate d is minus the squared distance of W x and d, over `spread`, the mean standard
deviation of the candidates' scores before training, so that a temperature of 1 means the same for any embedder.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from retro_jax import progress
from retro_jax.model.retro import PAD
from retro_jax.pipeline.prepared import Prepared
from retro_jax.pipeline.recipe import database_split
from retro_jax.retrieval.forbidden import copies, own_documents
from retro_jax.retrieval.neighbours import Owners, find
from retro_jax.train import sharding


class Examples(NamedTuple):
    """What a retriever learns from."""

    queries: np.ndarray  # [n, E] vectors
    candidates: np.ndarray  # [n, K, E] vectors
    texts: np.ndarray  # [n, M] x
    following: np.ndarray  # [n, M] y
    neighbours: np.ndarray  # [n, K, R] tokens
    documents: np.ndarray  # [n] of which document x is


def examples(prepared: Prepared, count: int, candidates: int, seed: int = 0) -> Examples:
    """Training chunks that have a next one, drawn at random, and their nearest chunks of other documents: none of the
    same text or id, as in `prepare`."""
    table, database = prepared.table("train"), prepared.database
    vectors = prepared.searched("train")
    rows, own, owners = asking(table, database, count, seed)
    documents = np.asarray(table.document)[rows]
    queries = np.asarray(vectors[rows], np.float32)
    ids, _ = find(prepared.index(), queries, own, owners, candidates)
    full = (ids >= 0).all(axis=1)
    rows, ids, queries, documents = rows[full], ids[full], queries[full], documents[full]
    found = prepared.searched(database_split(prepared.experiment))
    return Examples(
        queries, np.asarray(found[ids.reshape(-1)], np.float32).reshape(*ids.shape, -1),
        table.rows(rows), table.rows(np.asarray(table.continuation)[rows]), database.values(ids),
        documents,
    )  # fmt: skip


def asking(table, database, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, Owners]:
    """Training chunks that have a next one, at random, in order [n]; the documents of the database that each is of,
    which no candidate may be of [n, 2]; and of which documents the chunks of the database are (`find`)."""
    known = np.flatnonzero(np.asarray(table.continuation) >= 0)
    rows = np.sort(np.random.default_rng(seed).permutation(known)[:count])
    number = copies(database)
    own = own_documents(table, database, number)[np.asarray(table.document)[rows]]
    return rows, own, Owners(np.asarray(database.document), number)


def logp_of_following(
    given: Examples, params: dict, logprobs: Callable, mesh, batch: int
) -> np.ndarray:
    """log p(y | d, x) of each candidate, summed over the tokens of y: [n, K] float64.

    logprobs: of a language model, (params, tokens [B, L]) to [B, L], B being `batch`. Runs on `mesh`, which is in
    context.
    """
    n, k, r = given.neighbours.shape
    m = given.texts.shape[1]
    out = np.zeros(n * k)
    score = jax.jit(logprobs)
    with progress.bar("documents to the language model", n * k) as advance:
        for begin in range(0, n * k, batch):
            rows = np.arange(begin, min(begin + batch, n * k))
            tokens = np.zeros((batch, r + 2 * m), np.int32)
            scored = np.zeros(tokens.shape, bool)
            for i, row in enumerate(rows):
                parts = given.neighbours[row // k, row % k], given.texts[row // k]
                before = np.concatenate(parts)
                before, after = before[before != PAD], given.following[row // k]
                after = after[after != PAD]
                whole = np.concatenate([before, after])
                tokens[i, : len(whole)] = whole
                scored[i, len(before) : len(whole)] = True
            x = sharding.shard_batch(mesh, {"x": tokens})["x"]
            logp = np.asarray(score(params, x))
            out[rows] = np.where(scored, logp, 0).sum(axis=1)[: len(rows)]
            advance(len(rows))
    return out.reshape(n, k)


def spread_of(given: Examples) -> float:
    """The mean standard deviation of a query's scores."""
    scores = -((given.queries[:, None] - given.candidates) ** 2).sum(axis=-1)
    return float(max(scores.std(axis=1).mean(), 1e-9))


def scores(w, queries, candidates, spread: float):
    """The retriever's scores [n, K] of candidates [n, K, E] for queries [n, E]."""
    return -(((queries @ w)[:, None] - candidates) ** 2).sum(axis=-1) / spread


def apart(documents: np.ndarray) -> np.ndarray:
    """Which chunks are not trained on, of the documents that they are of [n]: those of every fourth; of a single
    document all."""
    number = np.unique(documents, return_inverse=True)[1]
    return number % 4 == 0 if number.max(initial=0) else np.ones(len(number), bool)


def train(
    given: Examples, loss: Callable, steps: int, rate: float
) -> tuple[np.ndarray, dict[str, list[float]]]:
    """The map W [E, E], which starts as the identity, and {part: [loss before, loss after]}.

    Every fourth document is not trained on; W is that of the step whose loss is lowest there, maybe of none.

    loss: from scores [m, K] and which examples they are of [m] to a number.
    """
    not_seen = apart(given.documents)
    parts = {"trained": np.flatnonzero(~not_seen), "apart": np.flatnonzero(not_seen)}
    if not_seen.all():
        parts["trained"] = parts["apart"]
    spread, size = spread_of(given), given.queries.shape[1]

    def of(w, rows):
        return loss(scores(w, given.queries[rows], given.candidates[rows], spread), rows)

    optimizer = optax.adam(rate)

    @jax.jit
    def step(w, state):
        grads = jax.grad(of)(w, parts["trained"])
        updates, state = optimizer.update(grads, state)
        w = optax.apply_updates(w, updates)
        return w, state, of(w, parts["trained"]), of(w, parts["apart"])

    w = jnp.eye(size)
    before = [float(of(w, rows)) for rows in parts.values()]
    best, state = (np.eye(size, dtype=np.float32), *before), optimizer.init(w)
    with progress.bar("training the query side", steps) as advance:
        for _ in range(steps):
            w, state, *now = step(w, state)
            if float(now[1]) < best[2]:
                best = np.asarray(w, np.float32), *map(float, now)
            advance(1)
    return best[0], {name: [b, a] for name, b, a in zip(parts, before, best[1:])}
