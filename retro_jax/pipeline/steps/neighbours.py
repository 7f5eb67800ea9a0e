"""The steps `neighbours/SPLIT`: the k nearest of every chunk, none of its own sequence's documents."""

import functools
from pathlib import Path

import numpy as np

from retro_jax.config import RetrievalConfig
from retro_jax.corpus.chunks import ChunkTable
from retro_jax.pipeline.step import Advance, Rows, nothing_done
from retro_jax.retrieval import forbidden, neighbours, sharded
from retro_jax.retrieval.bm25 import Statistics
from retro_jax.retrieval.index import INDEXES, Found, Index
from retro_jax.retrieval.ranking import Queries, Ranking
from retro_jax.retrieval.sharded import OneShard, ShardedIndex
from retro_jax.store import columns
from retro_jax.store.bucket import local
from retro_jax.store.columns import Columns

_MANY = 2**16  # queries of a block where each block opens every shard of an index


class FindNeighbours(Rows):
    """ids and distances of the k nearest of every chunk of a split; a part is a block of chunks.

    Args:
      database: the split that is searched. config: how.
    """

    unit = "blocks"

    def __init__(
        self, base: Path, name: str, settings: dict, inputs: tuple, database: str,
        config: RetrievalConfig,
    ):  # fmt: skip
        super().__init__(base, name, settings, inputs)
        self.database, self._config = database, config

    @property
    def doing(self) -> str:
        """For a progress bar."""
        return f"neighbours of {self.split} chunks"

    @property
    def k(self) -> int:
        """Neighbours of a chunk."""
        return self.settings["retrieval.neighbours"]

    @property
    def layout(self) -> dict:
        """ids are rows of the database's chunk table, -1 for none."""
        return {"ids": ("<i8", (self.k,)), "distances": ("<f4", (self.k,))}

    @property
    def together(self) -> int:
        """Chunks that are of one sequence."""
        length = self.settings.get("train.length")  # held-out text is cut by documents
        return length // self.table.chunk if length else 1

    @functools.cached_property
    def table(self) -> ChunkTable:
        """The chunks that retrieve."""
        return ChunkTable(self.at(f"chunks/{self.split}"))

    @functools.cached_property
    def shards(self) -> int:
        """Of the index."""
        return sharded.read_report(self.at("index"))["shards"]

    @property
    def block(self) -> int:
        """Chunks of a part: whole sequences, and many where each block opens every shard."""
        size = neighbours.BLOCK if self.shards == 1 else _MANY
        return self.together * -(-size // self.together)

    def total(self) -> int:
        """Chunks."""
        return len(self.table)

    def parts(self) -> int:
        """Blocks of chunks."""
        return -(-self.total() // self.block)

    def begins(self, part: int) -> int:
        """The first chunk of a block."""
        return part * self.block

    def make(self, part: int, advance: Advance = nothing_done) -> tuple[dict, dict]:
        """The neighbours of a block, [n, K] each."""
        return self.ranked(part, self._all.find(part, advance))

    def ranked(self, part: int, candidates: Found) -> tuple[dict, dict]:
        """What `make` returns, of the candidates of a block."""
        at = slice(self.begins(part), self.begins(part + 1))
        ids, distances = self._ranking.order(
            Queries(candidates[0], self._words(self.split, at)),
            self._database_words,
            candidates,
            self.k,
        )
        return {"ids": ids, "distances": distances}, {"fewer": self.fewer(ids)}

    @property
    def candidates(self) -> int:
        """How many are searched of a chunk."""
        return Ranking.of(self._config).fetch(self.k)

    @functools.cached_property
    def _ranking(self) -> Ranking:
        if self._config.rerank == "none":
            return Ranking.of(self._config)
        return Ranking.of(self._config, Statistics.load(local(self.at("statistics"))))

    @functools.cached_property
    def _database_words(self) -> np.ndarray | None:
        return self._words(self.database, slice(None))

    def _words(self, split: str, rows: slice) -> np.ndarray | None:
        if self._config.rerank == "none":
            return None
        return Columns(self.at(f"words/{split}"))["words"][rows]

    def fewer(self, ids: np.ndarray) -> int:
        """How many chunks have fewer than K."""
        return int((ids < 0).any(axis=1).sum())

    def finish(self, out: Path, counts: dict) -> dict:
        """What share of the chunks has fewer than K."""
        return {"share_with_fewer_than_k": counts["fewer"] / self.total()}

    @functools.cached_property
    def _all(self) -> "Search":
        return Search(self, ShardedIndex(self.at("index"), self.searched(self.database), False), 0)

    def in_shard(self, shard: Index, first: int) -> "Search":
        """The search in one shard of the index, whose first vector is number `first`."""
        own = columns.part(self.searched(self.database), first, first + len(shard))
        return Search(self, OneShard(shard, own), first)

    def searched(self, split: str) -> np.ndarray:
        """What the index takes, of a split [N, E]."""
        takes = INDEXES[self._config.index].takes
        step = "embeddings" if takes == "vectors" else "words"
        return Columns(self.at(f"{step}/{split}"))[takes]


class Search:
    """The search for the neighbours of a split's chunks, a block at a time.

    Args:
      index: what is searched. first: the number of its first chunk in the database.
    """

    def __init__(self, step: FindNeighbours, index: ShardedIndex | OneShard, first: int):
        self._step, self._index, self._first = step, index, first
        database = ChunkTable(step.at(f"chunks/{step.database}"))
        number = forbidden.copies(database)
        self._own = forbidden.own_documents(step.table, database, number)
        documents = database.document[first : first + len(index)]
        self._owners = neighbours.Owners(documents, number)
        self._queries = step.searched(step.split)

    def find(self, part: int, advance: Advance = nothing_done) -> Found:
        """ids [n, C] and distances [n, C] of the candidates of a block."""
        s = self._step
        begin, end = s.begins(part), min(s.begins(part + 1), s.total())
        none_of = forbidden.forbidden(s.table, self._own, begin, end, s.together)
        ids, distances = neighbours.find(
            self._index,
            self._queries[begin:end],
            none_of,
            self._owners,
            s.candidates,
            advance,
            s.block,
        )
        return np.where(ids < 0, -1, ids + self._first), distances
