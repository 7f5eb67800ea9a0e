"""One interface to nearest-neighbour search: `search(queries, k) -> (ids, distances)`.

ids are int64 [Q, k] and distances (squared L2; minus the score of BM25) float32 [Q, k], nearest first;
-1 and +inf stand where fewer than k exist.

A database is searched in shards, each an index of its own of at most `retrieval.index_shard` vectors:
memory is that of one shard, and what the shards find is merged.
"""

import itertools
import json
import shutil
from pathlib import Path

import numpy as np

from retro_jax import workdir
from retro_jax.errors import UserError
from retro_jax.retrieval import bm25, tree
from retro_jax.retrieval.bm25 import Bm25Index
from retro_jax.retrieval.exact import ExactIndex, squared_norms
from retro_jax.retrieval.tree import ScannIndex

SCANN_FROM = 20_000  # chunks; below it exact search is fast enough and has no recall to lose
_SCANN_NEEDS = 100  # vectors; its hashing cannot be trained on fewer than a handful


class ShardedIndex:
    """The shards of a database, searched one after another.

    keep: hold every shard open, for who searches often; otherwise one at a time is in memory.
    """

    def __init__(self, directory: Path, keep: bool):
        self._directories = sorted(p for p in Path(directory).iterdir() if p.is_dir())
        self._sizes = json.loads((Path(directory) / "index.json").read_text())["sizes"]
        keep = keep or len(self._sizes) == 1
        self._open = [load_shard(p) for p in self._directories] if keep else None

    def __len__(self) -> int:
        return sum(self._sizes)

    @property
    def shards(self) -> int:
        """How many."""
        return len(self._sizes)

    def shard(self, number: int):
        """One shard, as an index of its own."""
        return self._open[number] if self._open else load_shard(self._directories[number])

    def bounds(self, number: int) -> tuple[int, int]:
        """The first vector of a shard and the first one after it."""
        return sum(self._sizes[:number]), sum(self._sizes[: number + 1])

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """queries [Q, E] -> ids [Q, k] int64, distances [Q, k] float32."""
        best = None
        for number in range(self.shards):
            ids, distances = self.shard(number).search(queries, k)
            found = np.where(ids < 0, -1, ids + self.bounds(number)[0]), distances
            best = merge([best, found], k) if best else found
        return best


def merge(found: list[tuple[np.ndarray, np.ndarray]], k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest of what several searches found, [(ids [Q, k'], distances [Q, k'])]; equal distances
    in the order of ids."""
    ids, distances = (np.concatenate(x, axis=1) for x in zip(*found))
    near = np.lexsort((ids, distances), axis=1)[:, :k]
    return np.take_along_axis(ids, near, 1), np.take_along_axis(distances, near, 1)


def build(
    vectors: np.ndarray,
    directory: Path,
    kind: str,
    min_recall: float,
    k: int,
    shard: int,
    statistics: bm25.Statistics | None = None,
) -> dict:
    """Builds an index of vectors [N, E] in an existing directory, or goes on after a kill.

    Args:
      kind: auto | exact | scann | bm25; auto is exact for a shard of less than SCANN_FROM vectors or
        without ScaNN, and so is scann for less than a hundred vectors. Words are for bm25.
      min_recall: recall@k that every shard must reach, see `tree.build`.
      k: neighbours to measure the recall at.
      shard: vectors of a shard at most.
      statistics: what bm25 scores with; by default each shard's own.

    Returns:
      What was built: kind, size, shards, their sizes, the lowest recall.

    Raises:
      UserError: no vectors, vectors with NaN or Inf, no ScaNN, or a recall below `min_recall`.
    """
    if not len(vectors):
        raise UserError("the database is empty: the corpus has no training chunk")
    bounds = shard_bounds(len(vectors), shard)
    for number, (begin, end) in enumerate(itertools.pairwise(bounds)):
        own = Path(directory) / shard_name(number)
        if not (own / "index.json").exists():
            shutil.rmtree(own, ignore_errors=True)
            own.mkdir()
            build_shard(vectors[begin:end], own, kind, min_recall, k, begin, statistics)
    return finish(Path(directory), len(bounds) - 1)


def shard_bounds(count: int, shard: int) -> list[int]:
    """Where each shard of `count` vectors begins, and where the last one ends."""
    shards = -(-count // shard)
    return [count * i // shards for i in range(shards + 1)]


def shard_name(number: int) -> str:
    """The directory of a shard."""
    return f"{number:05d}"


def finish(directory: Path, shards: int) -> dict:
    """Writes what all shards are together, once each is built, and returns it."""
    reports = [
        json.loads((directory / shard_name(i) / "index.json").read_text()) for i in range(shards)
    ]
    report = {
        "kind": reports[0]["kind"],
        "size": sum(r["size"] for r in reports),
        "shards": shards,
        "sizes": [r["size"] for r in reports],
        "recall": min(r["recall"] for r in reports),
    }
    (directory / "index.json").write_text(json.dumps(report, indent=2) + "\n")
    return report


def load(directory: Path, keep: bool = True) -> ShardedIndex:
    """Opens an index that `build` wrote; see `ShardedIndex`."""
    return ShardedIndex(directory, keep)


def build_shard(
    vectors, directory: Path, kind: str, min_recall: float, k: int, first: int, statistics=None
):
    """Builds one shard in an existing directory; its first vector is number `first` of the database."""
    if kind == "bm25":
        bm25.build(vectors, directory, statistics)
        report = {"kind": "bm25", "size": len(vectors), "recall": 1.0}
        workdir.write_json(directory / "index.json", report)
        return
    vectors = np.ascontiguousarray(vectors, np.float32)
    if not np.isfinite(vectors).all():
        bad = first + int(np.flatnonzero(~np.isfinite(vectors).all(axis=1))[0])
        raise UserError(f"the embedding of chunk {bad} holds NaN or Inf: check the embedder")
    fewest = {"exact": np.inf, "auto": SCANN_FROM, "scann": _SCANN_NEEDS}[kind]
    scann = tree.library() if len(vectors) >= fewest else None
    if kind == "scann" and len(vectors) >= fewest and scann is None:
        raise UserError(
            "config field retrieval.index = 'scann': the scann package has no build for this "
            "Python or system; use auto or exact"
        )
    if scann is None:
        np.save(directory / "vectors.npy", vectors)
        np.save(directory / "norms.npy", squared_norms(vectors))
        report = {"kind": "exact", "size": len(vectors), "recall": 1.0}
    else:
        index, recall = tree.build(scann, vectors, directory, min_recall, k)
        report = {
            "kind": "scann",
            "size": len(index),
            "recall": recall,
            "leaves": index.leaves,
            "leaves_to_search": index.leaves_to_search,
            "reorder": index.reorder,
            "width": vectors.shape[1],
        }
    workdir.write_json(directory / "index.json", report)


def load_shard(directory: Path) -> ExactIndex | ScannIndex | Bm25Index:
    """Opens one shard that `build_shard` wrote."""
    report = json.loads((directory / "index.json").read_text())
    if report["kind"] == "bm25":
        return Bm25Index(directory, report["size"])
    if report["kind"] == "exact":
        vectors, norms = (
            np.load(directory / f"{name}.npy", mmap_mode="r") for name in ("vectors", "norms")
        )
        return ExactIndex(vectors, norms)
    scann = tree.library()
    if scann is None:
        raise UserError(f"{directory}: this index needs the scann package; pip install scann")
    searcher = scann.scann_ops_pybind.load_searcher(str(directory / "scann"))
    names = ("size", "width", "leaves", "leaves_to_search", "reorder")
    return ScannIndex(searcher, *(report[name] for name in names))
