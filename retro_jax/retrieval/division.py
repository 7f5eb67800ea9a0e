"""How a database is cut into the shards of its index, and how they are built.

in order     a shard holds the vectors from one number to another, at most `retrieval.index_shard`; every shard
             is searched for every query
by routes    a shard is a partition (routing.py): `routes.npy` has the centres, `ids.npy` of a shard the numbers
             of its vectors. A query is searched in the partitions of its nearest centres, as many as it takes
             for the recall that is asked for. So it is for vectors that cluster and an index that may miss a
             neighbour, where there is more than one shard: what is searched grows more slowly than the database
by words     a shard has the lists of some words (indexes/bm25.py), of _WORDS times as many chunks
"""

import dataclasses
import functools
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from retro_jax.config import RetrievalConfig
from retro_jax.errors import UserError
from retro_jax.retrieval import routing
from retro_jax.retrieval.index import INDEXES, Given, distinct, finite, merge, nothing
from retro_jax.retrieval.indexes.exact import Exact
from retro_jax.retrieval.sharded import (
    IDS,
    ROUTES,
    ShardedIndex,
    open_shard,
    read_report,
    read_routes,
    shard_name,
)
from retro_jax.store import files

_SAMPLE = 1000  # vectors that the recall of a route is measured on
_MOST = 64  # partitions that a query is sent to at most, or one in _SHARE of all
_SHARE = 16
_WORDS = 16  # chunks whose lists take the memory of one vector: 55 to 180 bytes a chunk (benchmarks/growth.py)


def shards(count: float, config: RetrievalConfig) -> int:
    """How many shards hold so many chunks, each once."""
    by_words = INDEXES[config.index].takes == "words"
    return max(1, int(-(-count // (config.index_shard * (_WORDS if by_words else 1)))))


class Division:
    """The shards that an index of vectors [N, E], or of words [N, W], is built of.

    Args:
      out: the directory of the index, which exists.
      kind: a name of INDEXES; by default the config's.

    Raises:
      UserError: there is no vector.
    """

    def __init__(
        self, vectors: np.ndarray, out: Path, config: RetrievalConfig, given: Given, kind: str = ""
    ):
        if not len(vectors):
            raise UserError("the database is empty: the corpus has no training chunk")
        self._vectors, self._out, self._given = vectors, out, given
        self._kind = kind or config.index
        self._index = INDEXES[self._kind]
        self._settings = INDEXES.settings_of(self._kind, config.settings)
        self.by_words = self._index.takes == "words"
        count = shards(len(vectors), config)
        approximate = self._index.kind_for(len(vectors) // count).approximate
        self.routed = count > 1 and approximate and given.clusters
        self.shards = routing.TWICE * count if self.routed else count

    @functools.cached_property
    def centres(self) -> np.ndarray:
        """Of the partitions [P, E]; made once, and kept."""
        path = self._out / ROUTES
        if not path.exists():
            made = files.aside(path)
            with made.open("wb") as file:
                np.save(file, routing.fit(self._vectors, self.shards))
            files.replace(made, path)
        return read_routes(self._out)

    @functools.cached_property
    def _members(self) -> list[np.ndarray]:
        placed = np.concatenate(list(routing.placed(self._vectors, self.centres)))
        return routing.members(placed, self.shards)

    def ids(self, shard: int) -> np.ndarray:
        """The numbers of the vectors of a shard, in order [n]."""
        if self.routed:
            return self._members[shard]
        if self.by_words:
            return np.arange(len(self._vectors))
        begin, end = (len(self._vectors) * n // self.shards for n in (shard, shard + 1))
        return np.arange(begin, end)

    def sent(self, block: int) -> Iterator[tuple[int, tuple]]:
        """Of a block of the vectors: shards, and what each is built of; for who cannot read it scattered.
        `blocks` are all.

        By routes these are the numbers of vectors [n] and the vectors [n, E]; by words what `Bm25.scored` makes.
        """
        begin = block * routing.BLOCK
        vectors = np.asarray(self._vectors[begin : begin + routing.BLOCK])
        # The first block speaks of every shard, so that one that is empty is built too.
        if self.by_words:
            scored = self._index.scored(vectors, begin, self._given, self.shards)
            yield from (part for part in enumerate(scored) if len(part[1][0]) or not block)
            return
        placed = routing.place(vectors.astype(np.float32), self.centres)
        for shard, rows in enumerate(routing.members(placed, self.shards)):
            if len(rows) or not block:
                yield shard, (rows + begin, vectors[rows])

    @property
    def blocks(self) -> int:
        """Blocks of vectors that are placed at a time."""
        return -(-len(self._vectors) // routing.BLOCK)

    def there(self, shard: int) -> bool:
        """Whether a shard is complete."""
        return (self._out / shard_name(shard) / "index.json").exists()

    def build(self, shard: int):
        """Builds a shard, whole or absent."""
        ids = self.ids(shard)
        self.build_of(shard, ids, self._of(ids))

    def _of(self, ids: np.ndarray) -> np.ndarray:
        """The vectors of these numbers [n, E]; words stay on disk."""
        if self.by_words:
            return self._vectors
        if self.routed:
            return np.asarray(self._vectors[ids])
        return np.asarray(self._vectors[ids[0] : ids[-1] + 1])

    def _given_for(self, shard: int) -> Given:
        return self._given._replace(part=(shard, self.shards)) if self.by_words else self._given

    def build_of(self, shard: int, ids: np.ndarray, vectors: np.ndarray):
        """Builds a shard of vectors [n, E] of these numbers [n].

        Raises:
          UserError: vectors with NaN or Inf, or as `Index.build`.
        """
        if self._index.takes == "vectors":
            vectors = finite(vectors, ids)
        settings = self._settings
        if self.routed:  # what the shard misses and what the route misses add up
            settings = dataclasses.replace(settings, min_recall=(1 + settings.min_recall) / 2)

        def make(out: Path) -> dict:
            if self.routed:
                np.save(out / IDS, ids)
            return self._index.build(vectors, out, settings, self._given_for(shard))

        self._put(shard, len(ids), make)

    def build_sent(self, shard: int, parts: Iterable[tuple]):
        """Builds a shard of what `sent` gave of all blocks, in any order; of words not all is held at a time."""
        if self.by_words:
            given = self._given_for(shard)
            self._put(
                shard,
                len(self._vectors),
                lambda out: self._index.build_scored(parts, out, self._settings, given),
            )
        else:
            parts = sorted(parts, key=lambda part: part[0][:1].tolist())
            self.build_of(shard, *map(np.concatenate, zip(*parts)))

    def _put(self, shard: int, size: int, make: Callable[[Path], dict]):
        """Writes a shard, whole or absent."""
        directory = self._out / shard_name(shard)
        made = files.aside(directory)
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir()
        report = {"kind": self._kind} | make(made) | {"size": size, "routed": self.routed}
        files.write_json(made / "index.json", report)
        shutil.rmtree(directory, ignore_errors=True)
        files.replace(made, directory)

    def finish(self) -> dict:
        """Writes what all shards are together, once each is built, and returns it.

        Returns:
          kind, what distances are, whether it is approximate, size (of the database), shards, their sizes,
          probes (shards that a query is sent to, 0 being all), and the recall@k: the lowest of the shards, or
          that of the whole route, or None, where it is not measured.

        Raises:
          UserError: the recall of the route is too low.
        """
        reports = [read_report(self._out / shard_name(i)) for i in range(self.shards)]
        kind = INDEXES[reports[0]["kind"]]
        report = {
            "kind": reports[0]["kind"],
            "distance": kind.distance,
            "approximate": any(INDEXES[r["kind"]].approximate for r in reports) or self.routed,
            "size": len(self._vectors),
            "shards": self.shards,
            "sizes": [r["size"] for r in reports],
            "probes": self.shards if self.routed else 0,
            "k": self._given.k,
            "recall": None if self.by_words else min(r["recall"] for r in reports),
        }
        path = self._out / "index.json"
        files.write_json(path, report)
        if self.routed:
            found = measure(self._out, self._vectors, self._given.k, self._settings.min_recall)
            files.write_json(path, report := report | found)
        return report

    def again(self, shard: int) -> tuple[str, bool]:
        """What `retro verify` asks of a shard: see `Index.again`."""
        ids = self.ids(shard)
        if self.routed and not np.array_equal(np.load(self._out / shard_name(shard) / IDS), ids):
            return "its vectors are others", False
        opened = open_shard(self._out / shard_name(shard), 0).index
        return opened.again(self._of(ids), self._settings, self._given_for(shard))


def build(
    vectors: np.ndarray, directory: Path, config: RetrievalConfig, given: Given, kind: str = ""
) -> dict:
    """Builds the index of vectors [N, E], or of words [N, W], in an existing directory, or goes on after a kill;
    see `Division`. Returns what was built, see `Division.finish`."""
    division = Division(vectors, directory, config, given, kind)
    for shard in range(division.shards):
        if not division.there(shard):
            division.build(shard)
    return division.finish()


def measure(directory: Path, vectors: np.ndarray, k: int, min_recall: float) -> dict:
    """How many partitions a query has to be sent to.

    A sample of the vectors is searched in the partitions of its nearest centres, each opened once, and compared
    with exact search in the whole database; that a vector finds itself does not count.

    Returns:
      probes, and the recall@k with them.

    Raises:
      UserError: the recall is too low even with many.
    """
    opened = ShardedIndex(directory, keep=False)
    rows = np.arange(min(len(vectors), _SAMPLE)) * len(vectors) // min(len(vectors), _SAMPLE)
    queries = np.asarray(vectors[rows], np.float32)
    truth = Exact(vectors).search(queries, k + 1)[1][:, -1:]
    truth = np.where(np.isinf(truth), np.finfo(np.float32).max, truth)
    slack = 1e-5 * (1 + np.square(queries).sum(axis=1, keepdims=True))
    most = min(opened.shards, max(_MOST, opened.shards // _SHARE))
    sent = routing.nearest(queries, read_routes(directory), most)
    found = [nothing(len(queries), k + 1) for _ in range(most)]
    for number, at in enumerate(routing.members(sent, opened.shards)):
        if len(at):
            place = (sent[at] == number).argmax(axis=1)
            shard = opened.shard(number)
            ids, distances = shard.search(queries[at], k + 1)
            for p in np.unique(place):
                own = place == p
                found[p][0][at[own]], found[p][1][at[own]] = shard.numbers(ids[own]), distances[own]
    best, recall = nothing(len(queries), k + 1), 0.0
    for probes in range(1, most + 1):
        best = merge(distinct([best, found[probes - 1]]), k + 1)
        have = min(k, len(vectors) - 1)
        recall = float((best[1][:, 1 : have + 1] <= truth + slack).mean())
        if recall >= min_recall:
            return {"probes": probes, "recall": recall}
    raise UserError(
        f"config field retrieval.settings.*.min_recall = {min_recall}: the index reaches recall@{k} {recall:.3f} "
        f"with {most} of {opened.shards} partitions searched; lower it, or make retrieval.index_shard larger"
    )
