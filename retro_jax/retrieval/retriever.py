"""Live retrieval: the tokens of a chunk to its neighbours, through the database's own path."""

from dataclasses import dataclass

import numpy as np

from retro_jax.corpus.chunks import ChunkTable
from retro_jax.corpus.tokenizer import Tokenizer


@dataclass(frozen=True)
class Neighbours:
    """What n chunks retrieved; PAD, -1 and +inf where fewer than K exist."""

    tokens: np.ndarray  # [n, K, R]
    ids: np.ndarray  # [n, K], rows of the chunk table
    distances: np.ndarray  # [n, K], squared L2

    def of(self, rows) -> "Neighbours":
        """Those of some of the chunks."""
        return Neighbours(self.tokens[rows], self.ids[rows], self.distances[rows])


class Retriever:
    """Embedder, index and chunk table of a database, together.

    Args:
      table: the chunks. searcher: their index. embedder, tokenizer: those the index was made with.
      k: neighbours of a chunk.
    """

    def __init__(self, table: ChunkTable, searcher, embedder, tokenizer: Tokenizer, k: int):
        self.table, self._index = table, searcher
        self._embedder, self._tokenizer, self.k = embedder, tokenizer, k

    def retrieve(self, chunks: np.ndarray) -> Neighbours:
        """The K nearest database chunks of each chunk: tokens [n, M] -> Neighbours."""
        vectors = self._embedder.embed([self._tokenizer.decode(c) for c in chunks.tolist()])
        ids, distances = self._index.search(vectors, self.k)
        return Neighbours(self.table.values(ids), ids, distances)

    def document_of(self, id: int) -> dict:
        """The chunk table's entry of the document that a chunk is from."""
        return self.table.documents[int(self.table.document[id])]
