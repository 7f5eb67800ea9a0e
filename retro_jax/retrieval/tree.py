"""ScaNN: approximate search in a tree with asymmetric hashing, for databases too large to be compared."""

import sys

import numpy as np

from retro_jax.errors import UserError
from retro_jax.retrieval.exact import ExactIndex, checked, nothing

_REORDER = 100  # candidates that are compared exactly, at least
_BATCH = 256  # queries that ScaNN gives to a thread


class ScannIndex:
    """ScaNN: a tree of about sqrt(N) leaves, asymmetric hashing, exact reordering."""

    kind = "scann"

    def __init__(
        self, searcher, size: int, width: int, leaves: int, leaves_to_search: int, reorder: int
    ):
        self._searcher = searcher
        self._size, self._width = size, width
        self.leaves, self.leaves_to_search, self.reorder = leaves, leaves_to_search, reorder

    def __len__(self) -> int:
        return self._size

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """queries [Q, E] -> ids [Q, k] int64, distances [Q, k] float32."""
        queries = checked(queries, self._width)
        ids, distances = nothing(len(queries), k)
        found = min(k, len(self))
        if not found or not len(queries):
            return ids, distances
        # Who asks for many neighbours is about to discard most: search leaves in proportion, all of
        # them long before k = N, so that a larger k can reach every vector.
        share = min(1.0, 10 * found / len(self))
        many = len(queries) > _BATCH
        search = self._searcher.search_batched_parallel if many else self._searcher.search_batched
        near, d = search(
            queries,
            final_num_neighbors=found,
            pre_reorder_num_neighbors=min(len(self), max(self.reorder, 4 * found)),
            leaves_to_search=max(self.leaves_to_search, int(np.ceil(share * self.leaves))),
        )
        # Where the searched leaves held fewer than k, ScaNN writes id 0 with a NaN distance.
        missing = ~np.isfinite(d)
        ids[:, :found] = np.where(missing, -1, near.astype(np.int64))
        distances[:, :found] = np.where(missing, np.inf, np.maximum(d, 0))
        return ids, distances


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


def recall_of(vectors: np.ndarray, k: int):
    """A function from an index of `vectors` to its recall@k, against exact search for 1,000 of them;
    that a vector finds itself does not count."""
    sample = np.random.default_rng(0).choice(len(vectors), min(len(vectors), 1000), replace=False)
    queries = vectors[np.sort(sample)]
    _, truth = ExactIndex(vectors).search(queries, k + 1)
    # Rounding of the distances that an index computes in float32.
    slack = 1e-5 * (1 + np.square(queries).sum(axis=1, keepdims=True))

    def recall(index) -> float:
        _, distances = index.search(queries, k + 1)
        # By distance, not by id: duplicate chunks are equally near, and either is right.
        return float((distances[:, 1:] <= truth[:, -1:] + slack).mean())

    return recall


def build(scann, vectors, directory, min_recall: float, k: int) -> tuple[ScannIndex, float]:
    """Builds and writes the index of vectors [N, E]; returns it and the recall it reached.

    Raises:
      UserError: the recall stays below `min_recall`.
    """
    size, width = vectors.shape
    leaves = max(1, int(np.sqrt(size)))
    builder = scann.scann_ops_pybind.builder(vectors, k, "squared_l2")
    builder = builder.tree(leaves, max(1, leaves // 10), training_sample_size=min(size, 250_000))
    searcher = builder.score_ah(2).reorder(100).build()
    measure = recall_of(vectors, k)
    # How many leaves to search and how many candidates to compare exactly depends on the data (where
    # much is nearly equal, on the second); double what helps more until the recall is reached.
    at = lambda *setting: ScannIndex(searcher, size, width, leaves, *setting)  # noqa: E731
    setting = before = max(1, leaves // 10), _REORDER
    index = at(*setting)
    recall = measure(index)
    while recall < min_recall and setting != (leaves, size):
        searched, reorder = before = setting
        wider = {(min(leaves, 2 * searched), reorder), (searched, min(size, 2 * reorder))}
        tried = [at(*wide) for wide in sorted(wider - {setting})]
        recall, index = max(((measure(t), t) for t in tried), key=lambda pair: pair[0])
        setting = index.leaves_to_search, index.reorder
    # Then back, halving the way between too narrow and wide enough: what is searched is time.
    which = 0 if setting[0] != before[0] else 1
    low, high = before[which], setting[which]
    while recall >= min_recall and high - low > max(1, low // 8):
        middle = (low + high) // 2
        narrower = at(*(middle, setting[1]) if which == 0 else (setting[0], middle))
        reached = measure(narrower)
        if reached < min_recall:
            low = middle
        else:
            high, recall, index = middle, reached, narrower
    if recall < min_recall:
        raise UserError(
            f"config field retrieval.min_recall = {min_recall}: the ScaNN index reaches recall@{k} "
            f"{recall:.3f} with everything searched; lower it or use retrieval.index = 'exact'"
        )
    (directory / "scann").mkdir()
    try:
        searcher.serialize(str(directory / "scann"), relative_path=True)
    except RuntimeError as error:
        raise OSError(f"ScaNN cannot write its index: {error}") from error
    return index, recall
