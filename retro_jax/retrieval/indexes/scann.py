"""ScaNN: approximate search in a tree with asymmetric hashing, for databases too large to be compared."""

import importlib.util
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from retro_jax import progress
from retro_jax.config.fields import require_share, setting
from retro_jax.errors import UserError
from retro_jax.retrieval.index import Given, Index, checked, nothing
from retro_jax.retrieval.indexes.exact import Exact
from retro_jax.retrieval.indexes.truth import Truth

_REORDER = 100  # candidates that are compared exactly, at least
_NEEDS = 100  # vectors; its hashing cannot be trained on fewer than a handful
_MISSING = (
    "config field retrieval.index = 'scann': the scann package has no build for this Python or system; use "
    "auto, faiss or exact"
)
_HASHED, _HASHED_ALONE = 2, 4  # numbers for a code of the hash; and where there is no tree
_CODES = 16  # that a code can be
_BATCH = 256  # queries that ScaNN gives to a thread
_COMPARED = 2**22  # candidates that are held at a time, of all queries


@dataclass(frozen=True)
class Settings:
    """The fields `retrieval.settings.scann.*`."""

    min_recall: float = setting(
        0.9, "recall@k against exact search on a sample; below it, prepare fails"
    )

    def __post_init__(self):
        require_share("retrieval.settings.scann.", self, "min_recall")


class Scann(Index):
    """A tree of about sqrt(N) leaves, asymmetric hashing, exact reordering."""

    Settings = Settings
    approximate = True
    # benchmarks/growth.py, 50,000 to 1,000,000 vectors of 256 numbers: docs/pipeline.md.
    growth = 0.56

    @classmethod
    def check(cls, settings):
        """Raises UserError where ScaNN has no build (it ships for Linux, Python < 3.14)."""
        if not importlib.util.find_spec("scann"):
            raise UserError(_MISSING)

    @classmethod
    def build(cls, vectors: np.ndarray, directory: Path, settings, given: Given) -> dict:
        """See `Index.build`; of fewer than a hundred vectors the index is exact."""
        if len(vectors) < _NEEDS:
            return Exact.build(vectors, directory, settings, given)
        found = library()
        if found is None:
            raise UserError(_MISSING)
        index, recall = build(found, vectors, directory, settings.min_recall, given)
        names = ("leaves", "leaves_to_search", "reorder")
        report = {name: getattr(index, name) for name in names}
        return {"kind": "scann", "recall": recall, "width": vectors.shape[1]} | report

    @classmethod
    def open(cls, directory: Path, report: dict) -> "Scann":
        """Reads the whole index into memory."""
        found = library()
        if found is None:
            raise UserError(f"{directory}: this index needs the scann package; pip install scann")
        searcher = found.scann_ops_pybind.load_searcher(str(directory / "scann"))
        names = ("size", "width", "leaves", "leaves_to_search", "reorder")
        return cls(searcher, *(report[name] for name in names))

    def again(self, vectors: np.ndarray, settings, given: Given) -> tuple[str, bool]:
        """Its recall, measured again: no two indexes of the same vectors are the same."""
        recall = Truth(vectors, given.k).recall_of(self)
        return f"recall {recall:.3f}", recall >= settings.min_recall

    def __init__(
        self, searcher, size: int, width: int, leaves: int, leaves_to_search: int, reorder: int
    ):
        self._searcher = searcher
        self._size, self._width = size, width
        self.leaves, self.leaves_to_search, self.reorder = leaves, leaves_to_search, reorder
        self._hashed = _HASHED if leaves > 1 else _HASHED_ALONE

    def __len__(self) -> int:
        return self._size

    def wide(self, share: float) -> "Scann":
        """See `Index.wide`; the wider it is searched, the larger a part of that is compared exactly."""
        searched = math.ceil(share * self.leaves)
        reorder = max(_REORDER, int(share**3 * self._size))
        return Scann(self._searcher, self._size, self._width, self.leaves, searched, reorder)

    def operations(self, k: int) -> float:
        """See `Index.operations`: products with the leaves' centres, tables of products with what hashes stand for, a
        sum over each hash that is looked at, products with the candidates."""
        visited = max(self.leaves_to_search, _visited(k, len(self), self.leaves)) / self.leaves
        compared = min(len(self), max(self.reorder, 4 * k))
        centres = self.leaves if self.leaves > 1 else 0
        exactly = centres + _CODES + compared  # rows of E numbers
        return self._width * (2.0 * exactly + visited * len(self) / self._hashed)

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """queries [Q, E] -> ids [Q, k] int64, distances [Q, k] float32."""
        queries = checked(queries, self._width)
        ids, distances = nothing(len(queries), k)
        found = min(k, len(self))
        if not found or not len(queries):
            return ids, distances
        visited = max(self.leaves_to_search, _visited(found, len(self), self.leaves))
        compared = min(len(self), max(self.reorder, 4 * found))
        block = max(1, _COMPARED // compared)
        for at in (slice(i, i + block) for i in range(0, len(queries), block)):
            many = len(queries[at]) > _BATCH
            searcher = self._searcher
            search = searcher.search_batched_parallel if many else searcher.search_batched
            near, d = search(
                queries[at],
                final_num_neighbors=found,
                pre_reorder_num_neighbors=compared,
                leaves_to_search=visited if self.leaves > 1 else None,
            )
            # Where the searched leaves held fewer than k, ScaNN writes id 0 with a NaN distance.
            missing = ~np.isfinite(d)
            ids[at, :found] = np.where(missing, -1, near.astype(np.int64))
            distances[at, :found] = np.where(missing, np.inf, np.maximum(d, 0))
        return ids, distances


def _visited(k: int, size: int, leaves: int) -> int:
    """How many leaves are searched at least.

    Whoever asks for many neighbours is about to discard most: leaves are searched in proportion, all of them long
    before k is the size, so that a larger k can reach every vector.
    """
    return min(leaves, -(-10 * k * leaves // size))


def library():
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


def build(scann, vectors, directory, min_recall: float, given: Given) -> tuple[Scann, float | None]:
    """Builds and writes the index of vectors [N, E]; returns it and the recall it reached, if it is tuned.

    Vectors that do not cluster get no tree, most of whose leaves a search would visit: every vector's hash is
    looked at.

    Raises:
      UserError: the recall stays below `min_recall`.
    """
    (size, width), k = vectors.shape, given.k
    leaves = max(1, int(np.sqrt(size))) if given.clusters else 1
    builder = scann.scann_ops_pybind.builder(vectors, k, "squared_l2")
    if leaves > 1:
        sample = min(size, 250_000)
        builder = builder.tree(leaves, max(1, leaves // 10), training_sample_size=sample)
    builder = builder.score_ah(_HASHED if leaves > 1 else _HASHED_ALONE).reorder(_REORDER)
    with progress.hushed():
        searcher = builder.build()
    least = _visited(k + 1, size, leaves)  # by whatever is measured below

    def at(*setting):
        return Scann(searcher, size, width, leaves, *setting)

    index, recall = at(least, _REORDER), None
    if given.tuned:
        index, recall = _tuned(at, Truth(vectors, k).recall_of, index, min_recall)
        if recall < min_recall:
            raise UserError(
                f"config field retrieval.settings.scann.min_recall = {min_recall}: the ScaNN index reaches recall@{k} "
                f"{recall:.3f} with everything searched; lower it or use retrieval.index = 'exact'"
            )
    (directory / "scann").mkdir()
    try:
        searcher.serialize(str(directory / "scann"), relative_path=True)
    except RuntimeError as error:
        raise OSError(f"ScaNN cannot write its index: {error}") from error
    return index, recall


def _tuned(
    at: Callable[[int, int], Scann],
    measure: Callable[[Scann], float],
    narrow: Scann,
    min_recall: float,
) -> tuple[Scann, float]:
    """The narrowest search that reaches the recall, or everything; and its recall.

    at: an index of so many leaves to search, and so many candidates to compare exactly. narrow: the narrowest.
    """
    size, leaves, least = len(narrow), narrow.leaves, narrow.leaves_to_search
    # How many leaves to search and how many candidates to compare exactly depends on the data (where
    # much is nearly equal, on the second); double what helps more until the recall is reached.
    setting, before = (max(least, leaves // 10), _REORDER), (least - 1, _REORDER)
    index = at(*setting)
    recall = measure(index)
    while recall < min_recall and setting != (leaves, size):
        searched, reorder = before = setting
        wider = {(min(leaves, 2 * searched), reorder), (searched, min(size, 2 * reorder))}
        tried = [at(*wide) for wide in sorted(wider - {setting})]
        recall, index = max(((measure(t), t) for t in tried), key=lambda pair: pair[0])
        setting = index.leaves_to_search, index.reorder
    # Then back, halving the way between too narrow and wide enough: what is searched is time. What was widened last
    # was too narrow before; the other may have been widened in vain.
    last = 0 if setting[0] != before[0] else 1
    lows = {last: before[last], 1 - last: (least, _REORDER)[1 - last] - 1}
    for which, low in lows.items():
        setting = [index.leaves_to_search, index.reorder]
        high = setting[which]
        while recall >= min_recall and high - low > max(1, low // 8):
            setting[which] = (low + high) // 2
            narrower = at(*setting)
            reached = measure(narrower)
            if reached < min_recall:
                low = setting[which]
            else:
                high, recall, index = setting[which], reached, narrower
    return index, recall
