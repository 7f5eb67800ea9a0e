"""What `prepare` made, opened: the tokenizer, the chunk tables, the embedder, the vectors, the index."""

import functools

import numpy as np

from retro_jax.corpus.chunks import ChunkTable
from retro_jax.corpus.tokenizer import open_tokenizer
from retro_jax.pipeline.recipe import database_split
from retro_jax.retrieval.embedder import Embedder, open_embedder
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
    def embedder(self) -> Embedder:
        """The embedder that the database was made with."""
        e = self.experiment
        where = self.work.prepared("embedder")
        return open_embedder(e.retrieval, where, e.model.reading.chunk)

    def table(self, split: str) -> ChunkTable:
        """The chunk table of a split."""
        return ChunkTable(self.work.prepared(f"chunks/{split}"))

    def vectors(self, split: str) -> np.ndarray:
        """The embeddings of a split's chunks [N, E]."""
        return Columns(self.work.prepared(f"embeddings/{split}"))["vectors"]

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

    @property
    def database_vectors(self) -> np.ndarray:
        """The embeddings of what is retrieved [N, E]."""
        return self.vectors(database_split(self.experiment))

    def index(self) -> ShardedIndex:
        """The index of what is retrieved, with all shards open."""
        return ShardedIndex(self.work.prepared("index"), self.database_vectors)
