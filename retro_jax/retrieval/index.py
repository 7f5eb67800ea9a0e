"""What an index is, and which there are: the search for the nearest vectors (or words) of a database.

`search(queries, k) -> (ids, distances)`: ids are int64 [Q, k] and distances float32 [Q, k], nearest first;
-1 and +inf stand where fewer than k exist. Equal distances are in the order of ids.

An index is one class in one file of `indexes/`, and one line of INDEXES. It searches one shard; sharded.py
puts the shards of a database together.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from retro_jax.config import RetrievalConfig
from retro_jax.config.table import NoSettings, Table, check_names
from retro_jax.errors import UserError
from retro_jax.retrieval.bm25 import Statistics
from retro_jax.retrieval.embedder import EMBEDDERS

INDEXES = Table(
    "retrieval.index",
    "retrieval.settings",
    {
        "auto": "retro_jax.retrieval.indexes.auto:Auto",
        "exact": "retro_jax.retrieval.indexes.exact:Exact",
        "scann": "retro_jax.retrieval.indexes.scann:Scann",
        "faiss": "retro_jax.retrieval.indexes.faiss:Faiss",
        "bm25": "retro_jax.retrieval.indexes.bm25:Bm25",
    },
)

Found = tuple[np.ndarray, np.ndarray]  # ids [Q, k] int64, distances [Q, k] float32


class Given(NamedTuple):
    """What an index is built for.

    Attributes:
      k: neighbours, or candidates, that are asked for: a recall is measured at it.
      clusters: whether near vectors lie together (`Embedder.clusters`).
      statistics: of the words of the whole database, for an index that takes words.
      part: for such a one, which share of the words it is to have: its number, and how many there are.
      tuned: whether it chooses itself how widely it is searched, as its `min_recall` asks. False for a partition:
        there the route says how widely (recall.py).
    """

    k: int
    clusters: bool = True
    statistics: Statistics | None = None
    part: tuple[int, int] = (0, 1)
    tuned: bool = True


class Index:
    """One shard of a database, searched by many threads at a time.

    Attributes:
      Settings: a dataclass, its own settings (retrieval.settings.NAME).
      takes: what it searches; an embedder `gives` the same. distance: what its distances are.
      approximate: whether it may miss a neighbour; then it has a setting `min_recall`, which its recall must
        reach if it is `Given.tuned`, and a method `wide`.
      compares: whether vectors can be compared with a query directly (`neighbours.among`).
      growth: the time of a search grows as the number of vectors to this power.
      small: the name of the index for few vectors, of documents that are added later.
    """

    Settings: type = NoSettings
    takes, distance = "vectors", "squared L2"
    approximate, compares = False, True
    growth, small = 1.0, "auto"

    @classmethod
    def check(cls, settings):
        """Raises UserError, before anything slow has run, if a library that it needs is missing."""

    @classmethod
    def build(cls, vectors: np.ndarray, directory: Path, settings, given: Given) -> dict:
        """Writes the index of vectors [N, E], or of words [N, W], into an existing directory.

        Returns:
          `recall` at k (None: not measured), whatever `open` needs, and `kind`, the name of the class that opens it,
          where that is another one.

        Raises:
          UserError: the index cannot be built here, or its recall is too low.
        """
        raise NotImplementedError

    @classmethod
    def open(cls, directory: Path, report: dict) -> "Index":
        """Opens what `build` wrote; report: what that returned, and `size`, the number of vectors."""
        raise NotImplementedError

    @classmethod
    def joined(cls, parts: list["Index"]) -> "Index":
        """Of an index that takes words, which also has `scored` and `build_scored` (indexes/bm25.py): one of all
        words, from those of shares of them (`Given.part`)."""
        raise NotImplementedError

    def __len__(self) -> int:
        raise NotImplementedError

    def search(self, queries: np.ndarray, k: int) -> Found:
        """The k nearest of queries [Q, E].

        Raises:
          ValueError: queries of another width, or NaN or Inf among them (`checked`).
        """
        raise NotImplementedError

    def operations(self, k: int) -> float:
        """Multiplications and additions that a search for the k nearest of one query takes, on average. Adding a
        number of a table is one."""
        raise NotImplementedError

    def again(self, vectors: np.ndarray, settings, given: Given) -> tuple[str, bool]:
        """What `retro verify` asks: whether it is the index of these vectors [N, E], and in a few words
        what was looked at."""
        raise NotImplementedError

    def wide(self, share: float) -> "Index":
        """The same index, which compares a query with about this share of its vectors; for one that may miss some."""
        raise NotImplementedError

    @classmethod
    def kind_for(cls, size: int) -> type["Index"]:
        """The class that so many vectors are searched with."""
        return cls


def check(config: RetrievalConfig):
    """Looks at everything that a config says of retrieval, before anything slow has run.

    Raises:
      UserError: an embedder or index that is not known, settings that it does not have, or an embedder
        and an index that do not go together.
    """
    check_names(config.settings, EMBEDDERS, INDEXES)
    embedder, index = EMBEDDERS[config.embedder], INDEXES[config.index]
    EMBEDDERS.settings_of(config.embedder, config.settings)
    index.check(INDEXES.settings_of(config.index, config.settings))
    if embedder.gives != index.takes:
        fitting = next(name for name in INDEXES if INDEXES[name].takes == embedder.gives)
        raise UserError(
            f"config field retrieval.index = {config.index!r}: it searches {index.takes}, and "
            f"retrieval.embedder = {config.embedder!r} makes {embedder.gives}; give "
            f"--config.retrieval.index={fitting}, or another embedder"
        )


def nothing(rows: int, k: int) -> Found:
    """ids and distances where nothing was found: -1 and +inf."""
    return np.full((rows, k), -1, np.int64), np.full((rows, k), np.inf, np.float32)


def merge(found: list[Found], k: int) -> Found:
    """The k nearest of what several searches found, [(ids [Q, k'], distances [Q, k'])]; equal distances
    in the order of ids."""
    ids, distances = (np.concatenate(x, axis=1) for x in zip(*found))
    near = np.lexsort((ids, distances), axis=1)[:, :k]
    return np.take_along_axis(ids, near, 1), np.take_along_axis(distances, near, 1)


def distinct(found: list[Found]) -> list[Found]:
    """What several searches found, together, each id once: where it was found first."""
    ids, distances = (np.concatenate(x, axis=1) for x in zip(*found))
    order = np.argsort(ids, axis=1, kind="stable")
    ordered = np.take_along_axis(ids, order, 1)
    again = np.zeros(ids.shape, bool)
    np.put_along_axis(again, order[:, 1:], ordered[:, 1:] == ordered[:, :-1], 1)
    return [(np.where(again, -1, ids), np.where(again, np.float32(np.inf), distances))]


def finite(vectors: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Vectors [N, E] as float32.

    ids: their numbers, for the message.

    Raises:
      UserError: one of them holds NaN or Inf.
    """
    vectors = np.ascontiguousarray(vectors, np.float32)
    if not np.isfinite(vectors).all():
        bad = ids[np.flatnonzero(~np.isfinite(vectors).all(axis=1))[0]]
        raise UserError(f"the embedding of chunk {bad} holds NaN or Inf: check the embedder")
    return vectors


def checked(queries: np.ndarray, width: int) -> np.ndarray:
    """Queries [Q, width] as float32.

    Raises:
      ValueError: another width, or NaN or Inf among them.
    """
    queries = np.ascontiguousarray(queries, np.float32)
    if queries.ndim != 2 or queries.shape[1] != width:
        raise ValueError(f"queries must be [Q, {width}], not {list(queries.shape)}")
    if not np.isfinite(queries).all():
        raise ValueError("a query holds NaN or Inf")
    return queries


Allowed = Callable[[np.ndarray], np.ndarray]  # rows [n] to bool [n]
