"""What `prepare` made, opened: the tokenizer, the chunk tables, words and vectors, the index."""

import functools

import numpy as np

from retro_jax.corpus.chunks import ChunkTable
from retro_jax.corpus.tokenizer import open_tokenizer
from retro_jax.pipeline.recipe import database_split, searched
from retro_jax.retrieval.bm25 import Statistics
from retro_jax.retrieval.embedder import reads_words
from retro_jax.retrieval.encoder import Encoder
from retro_jax.retrieval.index import INDEXES
from retro_jax.retrieval.ranking import Queries, Ranking
from retro_jax.retrieval.sharded import ShardedIndex
from retro_jax.store.columns import Columns
from retro_jax.store.records import Records
from retro_jax.store.workdir import WorkDir


class Prepared:
    """The steps of a working directory, each opened when it is asked for.

    Raises:
      FileNotFoundError: what is asked for is not there; `prepare.check_prepared` says so beforehand.
    """

    def __init__(self, work: WorkDir):
        self.work, self.experiment = work, work.experiment

    @functools.cached_property
    def tokenizer(self):
        """The tokenizer that was trained, or given."""
        return open_tokenizer(self.work.prepared("tokenizer"))

    @functools.cached_property
    def encoder(self) -> Encoder:
        """Texts to what is searched, as the database was made."""
        e = self.experiment
        return Encoder(e.retrieval, self.work.prepared("embedder"), e.model.reading.chunk)

    @functools.cached_property
    def ranking(self) -> Ranking:
        """How candidates are ordered."""
        return Ranking.of(self.experiment.retrieval, self.statistics)

    @functools.cached_property
    def statistics(self) -> Statistics | None:
        """Of the words of the database, where words are looked at."""
        if not reads_words(self.experiment.retrieval):
            return None
        return Statistics.load(self.work.prepared("statistics"))

    def table(self, split: str) -> ChunkTable:
        """The chunk table of a split."""
        return ChunkTable(self.work.prepared(f"chunks/{split}"))

    def searched(self, split: str) -> np.ndarray:
        """What the index takes of a split's chunks: vectors [N, E] or words [N, W]."""
        takes = INDEXES[self.experiment.retrieval.index].takes
        return Columns(self.work.prepared(searched(self.experiment, split)))[takes]

    def words(self, split: str) -> np.ndarray | None:
        """The words of a split's chunks [N, W], where candidates are ordered by them."""
        if self.experiment.retrieval.rerank == "none":
            return None
        return Columns(self.work.prepared(f"words/{split}"))["words"]

    def queries(self, split: str) -> Queries:
        """A split's chunks as queries."""
        return Queries(self.searched(split), self.words(split))

    def neighbours(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """ids [N, K] and distances [N, K] of what the chunks of a split retrieve."""
        near = Columns(self.work.prepared(f"neighbours/{split}"))
        return near["ids"], near["distances"]

    def records(self, split: str) -> Records:
        """The TFRecord shards of a split."""
        return Records(self.work.prepared(f"shards/{split}"))

    @property
    def database(self) -> ChunkTable:
        """The chunk table of what is retrieved."""
        return self.table(database_split(self.experiment))

    def look_up(self, k: int) -> float:
        """Multiplications and additions of looking up k neighbours of a chunk: its vector, the search, the ranking."""
        found = self.index().operations(self.ranking.fetch(k))
        return self.encoder.operations + found + self.ranking.operations

    def index(self) -> ShardedIndex:
        """The index of what is retrieved, with all shards open."""
        split = database_split(self.experiment)
        return ShardedIndex(self.work.prepared("index"), self.searched(split))
