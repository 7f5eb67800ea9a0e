"""One interface to nearest-neighbour search: `search(queries, k) -> (ids, distances)`.

Distances are squared L2, as in the paper (section 2.3). ids are int64 [Q, k] and distances float32
[Q, k], nearest first; -1 and +inf stand where fewer than k exist.
"""

import json
import sys
from pathlib import Path

import numpy as np

from retro_jax.errors import UserError

SCANN_FROM = 20_000  # chunks; below it exact search is fast enough and has no recall to lose
_SCANN_NEEDS = 100  # vectors; its hashing cannot be trained on fewer than a handful
_BLOCK = 2_000_000  # entries of a distance matrix that exact search holds at a time


class ExactIndex:
    """Compares a query with every vector."""

    kind = "exact"

    def __init__(self, vectors: np.ndarray):
        self._vectors = vectors
        self._norms = np.einsum("ne,ne->n", vectors, vectors)

    def __len__(self) -> int:
        return len(self._vectors)

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """queries [Q, E] -> ids [Q, k] int64, distances [Q, k] float32."""
        queries = _checked(queries, self._vectors.shape[1])
        ids, distances = _empty(len(queries), k)
        found = min(k, len(self))
        if not found:
            return ids, distances
        block = max(1, _BLOCK // len(self))
        for start in range(0, len(queries), block):
            q = queries[start : start + block]
            d = self._norms - 2 * (q @ self._vectors.T) + np.einsum("qe,qe->q", q, q)[:, None]
            near = np.argpartition(d, found - 1, axis=1)[:, :found]
            near = np.take_along_axis(
                near, np.argsort(np.take_along_axis(d, near, 1), axis=1, kind="stable"), 1
            )
            ids[start : start + block, :found] = near
            distances[start : start + block, :found] = np.maximum(np.take_along_axis(d, near, 1), 0)
        return ids, distances


class ScannIndex:
    """ScaNN: a tree of about sqrt(N) leaves, asymmetric hashing, exact reordering."""

    kind = "scann"

    def __init__(self, searcher, size: int, width: int, leaves: int, leaves_to_search: int):
        self._searcher = searcher
        self._size, self._width = size, width
        self.leaves, self.leaves_to_search = leaves, leaves_to_search

    def __len__(self) -> int:
        return self._size

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """queries [Q, E] -> ids [Q, k] int64, distances [Q, k] float32."""
        queries = _checked(queries, self._width)
        ids, distances = _empty(len(queries), k)
        found = min(k, len(self))
        if not found or not len(queries):
            return ids, distances
        # Who asks for many neighbours is about to discard most: search leaves in proportion, all of
        # them long before k = N, so that a larger k can reach every vector.
        share = min(1.0, 10 * found / len(self))
        near, d = self._searcher.search_batched(
            queries,
            final_num_neighbors=found,
            pre_reorder_num_neighbors=min(len(self), max(100, 4 * found)),
            leaves_to_search=max(self.leaves_to_search, int(np.ceil(share * self.leaves))),
        )
        # Where the searched leaves held fewer than k, ScaNN writes id 0 with a NaN distance.
        missing = ~np.isfinite(d)
        ids[:, :found] = np.where(missing, -1, near.astype(np.int64))
        distances[:, :found] = np.where(missing, np.inf, np.maximum(d, 0))
        return ids, distances


def _checked(queries: np.ndarray, width: int) -> np.ndarray:
    queries = np.ascontiguousarray(queries, np.float32)
    if queries.ndim != 2 or queries.shape[1] != width:
        raise ValueError(f"queries must be [Q, {width}], not {list(queries.shape)}")
    if not np.isfinite(queries).all():
        raise ValueError("a query holds NaN or Inf")
    return queries


def _empty(rows: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    return np.full((rows, k), -1, np.int64), np.full((rows, k), np.inf, np.float32)


def _scann():
    """The scann package, or None where it has no build (it ships for Linux, Python < 3.14).

    scann imports TensorFlow ops built for one version of TensorFlow and fails beside any other;
    searching needs none of them, so TensorFlow is hidden during the import.
    """
    missing = object()
    saved = sys.modules.get("tensorflow", missing)
    sys.modules["tensorflow"] = None
    try:
        import scann
    except ImportError:
        return None
    finally:
        if saved is missing:
            del sys.modules["tensorflow"]
        else:
            sys.modules["tensorflow"] = saved
    return scann


def build(
    vectors: np.ndarray, directory: Path, kind: str, min_recall: float, k: int
) -> tuple[ExactIndex | ScannIndex, dict]:
    """Builds an index of vectors [N, E] and writes it into an existing directory.

    Args:
      kind: auto | exact | scann; auto is exact below SCANN_FROM vectors or without ScaNN, and so
        is scann for less than a hundred vectors.
      min_recall: recall@k that must be reached, against exact search on 1,000 of the vectors; that
        a vector finds itself does not count.
      k: neighbours to measure the recall at.

    Returns:
      The index, and what was built: kind, size, recall, and for ScaNN its leaves.

    Raises:
      UserError: no vectors, vectors with NaN or Inf, no ScaNN, or a recall below `min_recall`.
    """
    vectors = np.ascontiguousarray(vectors, np.float32)
    if not len(vectors):
        raise UserError("the database is empty: the corpus has no training chunk")
    if not np.isfinite(vectors).all():
        bad = int(np.flatnonzero(~np.isfinite(vectors).all(axis=1))[0])
        raise UserError(f"the embedding of chunk {bad} holds NaN or Inf: check the embedder")
    fewest = {"exact": np.inf, "auto": SCANN_FROM, "scann": _SCANN_NEEDS}[kind]
    scann = _scann() if len(vectors) >= fewest else None
    if kind == "scann" and len(vectors) >= fewest and scann is None:
        raise UserError(
            "config field retrieval.index = 'scann': the scann package has no build for this "
            "Python or system; use auto or exact"
        )
    if scann is None:
        np.save(directory / "vectors.npy", vectors)
        index = ExactIndex(vectors)
        report = {"kind": "exact", "size": len(index), "recall": 1.0}
    else:
        index, recall = _build_scann(scann, vectors, directory, min_recall, k)
        report = {
            "kind": "scann",
            "size": len(index),
            "recall": recall,
            "leaves": index.leaves,
            "leaves_to_search": index.leaves_to_search,
            "width": vectors.shape[1],
        }
    (directory / "index.json").write_text(json.dumps(report, indent=2))
    return index, report


def _build_scann(scann, vectors, directory, min_recall, k) -> tuple[ScannIndex, float]:
    size, width = vectors.shape
    leaves = max(1, int(np.sqrt(size)))
    builder = scann.scann_ops_pybind.builder(vectors, k, "squared_l2")
    builder = builder.tree(leaves, max(1, leaves // 10), training_sample_size=min(size, 250_000))
    searcher = builder.score_ah(2).reorder(100).build()
    exact = ExactIndex(vectors)
    sample = np.random.default_rng(0).choice(size, min(size, 1000), replace=False)
    _, truth = exact.search(vectors[sample], k + 1)
    # Rounding of |x|^2 - 2 q x + |q|^2, by which exact search computes distances.
    slack = 1e-5 * (1 + np.square(vectors[sample]).sum(axis=1, keepdims=True))
    # The share of leaves to search depends on the data; double it until the recall is reached.
    searched = max(1, leaves // 10)
    while True:
        index = ScannIndex(searcher, size, width, leaves, searched)
        _, distances = index.search(vectors[sample], k + 1)
        # By distance, not by id: duplicate chunks are equally near, and either is right.
        recall = float((distances[:, 1:] <= truth[:, -1:] + slack).mean())
        if recall >= min_recall or searched >= leaves:
            break
        searched = min(leaves, 2 * searched)
    if recall < min_recall:
        raise UserError(
            f"config field retrieval.min_recall = {min_recall}: the ScaNN index reaches recall@{k} "
            f"{recall:.3f} with every leaf searched; lower it or use retrieval.index = 'exact'"
        )
    (directory / "scann").mkdir()
    try:
        searcher.serialize(str(directory / "scann"), relative_path=True)
    except RuntimeError as error:
        raise OSError(f"ScaNN cannot write its index: {error}") from error
    return index, recall


def load(directory: Path) -> ExactIndex | ScannIndex:
    """Opens an index that `build` wrote."""
    directory = Path(directory)
    report = json.loads((directory / "index.json").read_text())
    if report["kind"] == "exact":
        return ExactIndex(np.load(directory / "vectors.npy", mmap_mode="r"))
    scann = _scann()
    if scann is None:
        raise UserError(f"{directory}: this index needs the scann package; pip install scann")
    searcher = scann.scann_ops_pybind.load_searcher(str(directory / "scann"))
    return ScannIndex(
        searcher, report["size"], report["width"], report["leaves"], report["leaves_to_search"]
    )
