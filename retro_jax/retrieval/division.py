"""How a database is cut into the shards of its index, and how they are built.

in order     a shard holds the vectors from one number to another, at most `retrieval.index_shard`; every shard
             is searched for every query
by routes    a shard is a partition (routing.py): `routes.npy` has the centres, `ids.npy` of a shard the numbers
             of its vectors. A query is searched in the partition of its nearest centre and in those whose
             centres are nearly as near, and of each a share is searched (recall.py chooses both). So it is for
             vectors that cluster and an index that may miss a neighbour, where there is more than one shard:
             what is searched grows more slowly than the database
by words     a shard has the lists of some words (indexes/bm25.py), of _WORDS times as many chunks
"""

import functools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from retro_jax.config import RetrievalConfig
from retro_jax.errors import UserError
from retro_jax.retrieval import routing
from retro_jax.retrieval.index import INDEXES, Given, finite
from retro_jax.retrieval.recall import measure, recalls
from retro_jax.retrieval.sharded import (
    IDS,
    ROUTES,
    open_shard,
    read_report,
    read_routes,
    shard_name,
)
from retro_jax.store import files

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
        if self.by_words:
            return self._given._replace(part=(shard, self.shards))
        return self._given._replace(tuned=self._given.tuned and not self.routed)

    def build_of(self, shard: int, ids: np.ndarray, vectors: np.ndarray):
        """Builds a shard of vectors [n, E] of these numbers [n].

        Raises:
          UserError: vectors with NaN or Inf, or as `Index.build`.
        """
        if self._index.takes == "vectors":
            vectors = finite(vectors, ids)

        def make(out: Path) -> dict:
            if self.routed:
                np.save(out / IDS, ids)
            return self._index.build(vectors, out, self._settings, self._given_for(shard))

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
        files.remove_directory(made)
        made.mkdir()
        report = {"kind": self._kind} | make(made) | {"size": size, "routed": self.routed}
        files.write_json(made / "index.json", report)
        files.remove_directory(directory)
        files.replace(made, directory)

    def finish(self) -> dict:
        """Writes what all shards are together, once each is built, and returns it.

        Returns:
          kind, what distances are, whether it is approximate, size (of the database), shards, their sizes,
          probes (shards that a query is sent to on average, 0 being all), slack (see routing.py), share (what of each
          is searched, 0 where each shard says that itself), and the recall@k: the lowest of the shards, or that of
          the whole route, or None, where it is not measured.

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
            "slack": 0.0,
            "share": 0.0,
            "k": self._given.k,
            "recall": None if self.by_words or self.routed else min(r["recall"] for r in reports),
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
        # Of a partition, whether it finds its vectors at all: how widely it is searched is a matter of the route.
        share = 1.0 if self.routed else 0.0
        opened = open_shard(self._out / shard_name(shard), 0, share=share).index
        return opened.again(self._of(ids), self._settings, self._given_for(shard))

    def route_again(self) -> tuple[str, bool]:
        """What `retro verify` asks of the whole route: its recall, and whether that is enough."""
        report = read_report(self._out)
        asked = (report["share"],), (report["slack"],)
        (found,) = recalls(self._out, self._vectors, self._given.k, *asked)
        return f"recall {found['recall']:.3f}", found["recall"] >= self._settings.min_recall


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
