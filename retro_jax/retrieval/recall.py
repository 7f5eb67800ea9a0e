"""Which partitions a query is sent to, and how widely these are searched: what reaches the recall that is asked for."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from retro_jax.errors import UserError
from retro_jax.retrieval import routing
from retro_jax.retrieval.index import distinct, merge, nothing
from retro_jax.retrieval.indexes.truth import Truth
from retro_jax.retrieval.sharded import ShardedIndex, read_report, read_routes

# What share of a partition may be searched: the next ones are tried only where none of these is enough.
_WIDTHS = ((1 / 64, 1 / 32, 1 / 16, 1 / 8), (1 / 4,), (1 / 2,), (1.0,))
# How much farther than the nearest a centre may be whose partition is visited too (squared distances).
_SLACKS = (0.0, 0.02, 0.05, 0.08, 0.12, 0.16, 0.2, 0.25, 0.3, 0.4, 0.6, 1.0, 2.0, 4.0)
_ALL = 1e30
# A visit costs about 0.1 ms, however little is searched; a fifth of what searching all of 50,000 vectors costs.
_VISIT = 1 / 5


def measure(directory: Path, vectors: np.ndarray, k: int, min_recall: float) -> dict:
    """To which partitions a query has to be sent, and how widely each is to be searched: together, because either
    can make up for the other. What reaches the recall with the least work is taken.

    Returns:
      probes, slack, share, and the recall@k with them.

    Raises:
      UserError: the recall is too low even with many.
    """
    truth = Truth(vectors, k)
    for shares in _WIDTHS:
        slacks = (*_SLACKS, _ALL) if shares is _WIDTHS[-1] else _SLACKS
        ways = _recalls(directory, truth, shares, slacks)
        if enough := [way for way in ways if way["recall"] >= min_recall]:
            return min(enough, key=lambda way: way["probes"] * (way["share"] + _VISIT))
    best, report = max(ways, key=lambda way: way["recall"]), read_report(directory)
    raise UserError(
        f"config field retrieval.settings.*.min_recall = {min_recall}: the index reaches recall@{k} "
        f"{best['recall']:.3f} with {best['probes']:.0f} of {report['shards']} partitions searched; lower it, or "
        "make retrieval.index_shard larger"
    )


def visits(directory: Path, vectors: np.ndarray, k: int, least: float) -> float:
    """How many partitions a query visits on average, where each is searched whole, for a recall of at least that."""
    ways = recalls(directory, vectors, k, (1.0,), (*_SLACKS, _ALL))
    return next(way["probes"] for way in ways if way["recall"] >= least or way is ways[-1])


def recalls(
    directory: Path, vectors: np.ndarray, k: int, shares: Sequence[float], slacks: Sequence[float]
) -> list[dict]:
    """What a route reaches, {probes, slack, share, recall}, for each pair of slacks [S], which rise, and shares.

    A sample of the vectors is searched in the partitions of its nearest centres, each opened once, and compared
    with exact search in the whole database; that a vector finds itself does not count.
    """
    return _recalls(directory, Truth(vectors, k), shares, slacks)


def _recalls(
    directory: Path, truth: Truth, shares: Sequence[float], slacks: Sequence[float]
) -> list[dict]:
    """As `recalls`."""
    opened = ShardedIndex(directory, keep=False)
    queries, found_each = truth.queries, truth.k + 1
    near, farther = routing.nearest(queries, read_routes(directory))
    # The first slack with which a query is sent to a partition.
    first = np.searchsorted(slacks, np.where(np.arange(near.shape[1]), farther, -1))
    sent = np.where(first < len(slacks), near, -1)
    found = {share: [nothing(len(queries), found_each) for _ in slacks] for share in shares}
    for number, at in enumerate(routing.members(sent, opened.shards)):
        if not len(at):
            continue
        added = first[at, (sent[at] == number).argmax(axis=1)]
        shard = opened.shard(number)
        for share, by_slack in found.items():
            ids, distances = shard.index.wide(share).search(queries[at], found_each)
            ids = shard.numbers(ids)
            for s in np.unique(added):
                rows, best = at[added == s], by_slack[s]
                both = (best[0][rows], best[1][rows]), (ids[added == s], distances[added == s])
                best[0][rows], best[1][rows] = merge(distinct(both), found_each)
    ways = []
    for share, by_slack in found.items():
        best = nothing(len(queries), found_each)
        for s, more in enumerate(by_slack):
            best = merge(distinct([best, more]), found_each)
            way = {"probes": float((first <= s).sum(axis=1).mean()), "slack": slacks[s]}
            ways.append(way | {"share": share, "recall": truth.recall(best[1])})
    return ways
