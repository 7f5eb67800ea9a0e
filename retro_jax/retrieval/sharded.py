"""The index of a whole database, in shards: memory is that of one shard, and what they find is merged.

A directory of shards, each an index of its own of at most `retrieval.index_shard` vectors, and
`index.json`, which says what they are together.
"""

import itertools
import shutil
from pathlib import Path

import numpy as np

from retro_jax.config import RetrievalConfig
from retro_jax.errors import UserError
from retro_jax.retrieval.index import INDEXES, Found, Given, Index, finite, merge
from retro_jax.store import files

_ANEW = "delete the index, and run prepare again"


class ShardedIndex:
    """The shards of a database, searched one after another.

    Args:
      vectors: what is searched [N, E], for comparing a part of it directly.
      keep: hold every shard open, for whoever searches often; otherwise one at a time is in memory.

    Attributes:
      of: the class of the first shard, whose distances are those of all.
    """

    def __init__(self, directory: Path, vectors: np.ndarray | None = None, keep: bool = True):
        self._directories = sorted(p for p in Path(directory).iterdir() if p.is_dir())
        report = read_report(directory)
        self._sizes, self.of, self._vectors = report["sizes"], INDEXES[report["kind"]], vectors
        keep = keep or len(self._sizes) == 1
        self._open = [open_shard(p) for p in self._directories] if keep else None

    def __len__(self) -> int:
        return sum(self._sizes)

    @property
    def shards(self) -> int:
        """How many there are."""
        return len(self._sizes)

    @property
    def compares(self) -> bool:
        """Whether vectors can be compared with a query directly; see `compared`."""
        return self.of.compares and self._vectors is not None

    @property
    def compared(self) -> np.ndarray:
        """The vectors [N, E]."""
        return self._vectors

    def shard(self, number: int) -> Index:
        """One shard, as an index of its own."""
        return self._open[number] if self._open else open_shard(self._directories[number])

    def bounds(self, number: int) -> tuple[int, int]:
        """The first vector of a shard and the first one after it."""
        return sum(self._sizes[:number]), sum(self._sizes[: number + 1])

    def search(self, queries: np.ndarray, k: int) -> Found:
        """The k nearest of queries [Q, E]; see index.py."""
        best = None
        for number in range(self.shards):
            ids, distances = self.shard(number).search(queries, k)
            found = np.where(ids < 0, -1, ids + self.bounds(number)[0]), distances
            best = merge([best, found], k) if best else found
        return best


class OneShard:
    """One shard of a database, as `ShardedIndex` has all of them: for a worker that searches it alone.

    Args:
      vectors: the shard's own [n, E].
    """

    def __init__(self, shard: Index, vectors: np.ndarray):
        self.search, self.of, self.compared = shard.search, type(shard), vectors
        self.compares, self._size = type(shard).compares, len(shard)

    def __len__(self) -> int:
        return self._size


def build(
    vectors: np.ndarray, directory: Path, config: RetrievalConfig, given: Given, kind: str = ""
) -> dict:
    """Builds the index of vectors [N, E], or of words [N, W], in an existing directory, or goes on after a kill.

    Args:
      kind: a name of INDEXES; by default the config's.

    Returns:
      What was built, see `finish`.

    Raises:
      UserError: no vectors, vectors with NaN or Inf, or as `Index.build`.
    """
    bounds = shard_bounds(len(vectors), config.index_shard)
    for number, (begin, end) in enumerate(itertools.pairwise(bounds)):
        own = Path(directory) / shard_name(number)
        if not is_built(own):
            build_shard(vectors[begin:end], own, config, given, begin, kind)
    return finish(Path(directory), len(bounds) - 1)


def shard_bounds(count: int, shard: int) -> list[int]:
    """Where each shard of `count` vectors begins, and where the last one ends.

    Raises:
      UserError: there is no vector.
    """
    if not count:
        raise UserError("the database is empty: the corpus has no training chunk")
    shards = -(-count // shard)
    return [count * i // shards for i in range(shards + 1)]


def shard_name(number: int) -> str:
    """The directory of a shard."""
    return f"{number:05d}"


def build_shard(
    vectors: np.ndarray,
    directory: Path,
    config: RetrievalConfig,
    given: Given,
    first: int,
    kind: str = "",
):
    """Builds one shard, whole or absent; its first vector is number `first` of the database."""
    index = INDEXES[kind or config.index]
    settings = INDEXES.settings_of(kind or config.index, config.settings)
    if index.takes == "vectors":
        vectors = finite(vectors, first)
    made = files.aside(directory)
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir()
    report = index.build(vectors, made, settings, given)
    report = {"kind": kind or config.index} | report | {"size": len(vectors)}
    files.write_json(made / "index.json", report)
    shutil.rmtree(directory, ignore_errors=True)
    files.replace(made, directory)


def is_built(directory: Path) -> bool:
    """Whether a shard is complete."""
    return (directory / "index.json").exists()


def open_shard(directory: Path) -> Index:
    """Opens one shard that `build_shard` wrote."""
    report = read_report(directory)
    return INDEXES[report["kind"]].open(directory, report)


def read_report(directory: Path) -> dict:
    """What index.json says of an index or of one shard."""
    return files.read_json(directory / "index.json", _ANEW)


def finish(directory: Path, shards: int) -> dict:
    """Writes what all shards are together, once each is built, and returns it.

    Returns:
      kind, what distances are, whether it is approximate, size, shards, their sizes, the lowest recall.
    """
    reports = [read_report(directory / shard_name(i)) for i in range(shards)]
    kind = INDEXES[reports[0]["kind"]]
    report = {
        "kind": reports[0]["kind"],
        "distance": kind.distance,
        "approximate": kind.approximate,
        "size": sum(r["size"] for r in reports),
        "shards": shards,
        "sizes": [r["size"] for r in reports],
        "recall": min(r["recall"] for r in reports),
    }
    files.write_json(directory / "index.json", report)
    return report
