"""The chunk table: every document cut into chunks of M tokens, memory-mapped.

Row i holds M tokens (PAD after the end of its document), the number of its document and the row of
its continuation: the next chunk of the same document, or -1. The rows of a document are contiguous.
A document's tokens are BOS, its text, EOS; its chunk grid starts at BOS.
"""

import itertools
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from retro_jax import columns
from retro_jax.corpus.sources import BadDocument, Document, digest
from retro_jax.corpus.tokenizer import BOS, EOS, PAD, Tokenizer

_BLOCK = 1000  # documents


class ChunkTable:
    """A table on disk, opened read-only and memory-mapped.

    tokens [N, M] uint16 or int32, document [N] int32, continuation [N] int64;
    documents: for each one a dict with id, metadata, first (row), chunks, tokens and bytes;
    ids, texts: for each one a hash of its id and of its text.
    """

    def __init__(self, directory: Path):
        table = columns.Columns(directory)
        self.tokens, self.documents = table["tokens"], table["documents"]
        self.document, self.continuation = table["document"], table["continuation"]
        self.ids, self.texts = table["ids"], table["texts"]

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def chunk(self) -> int:
        """M, tokens of a chunk."""
        return self.tokens.shape[1]

    def values(self, ids: np.ndarray) -> np.ndarray:
        """[N, F]: chunks and their continuations, ids [...] -> tokens [..., 2 M].

        An id of -1 (no neighbour) gives PAD only; a chunk that ends its document gives PAD for F.

        Raises:
          IndexError: an id outside [-1, N).
        """
        ids = np.asarray(ids)
        if ids.size and (ids.min() < -1 or ids.max() >= len(self)):
            raise IndexError(f"chunk id outside [-1, {len(self)}): {ids.min()} to {ids.max()}")
        following = np.where(ids < 0, -1, self.continuation[np.maximum(ids, 0)])
        return np.concatenate([self.rows(ids), self.rows(following)], axis=-1)

    def rows(self, ids: np.ndarray) -> np.ndarray:
        """Chunks alone, ids [...] -> tokens [..., M]; PAD for -1."""
        ids = np.asarray(ids)
        return np.where((ids < 0)[..., None], PAD, self.tokens[np.maximum(ids, 0)])


def split_document(ids: list[int], chunk: int) -> np.ndarray:
    """Token ids of a text -> [rows, chunk]: BOS and EOS added, the tail filled with PAD."""
    ids = [BOS, *ids, EOS]
    rows = -(-len(ids) // chunk)
    out = np.full(rows * chunk, PAD, np.int64)
    out[: len(ids)] = ids
    return out.reshape(rows, chunk)


def build(
    documents: Iterable[Document],
    tokenizer: Tokenizer,
    chunk: int,
    directory: Path,
    refuse: Callable[[BadDocument], None] = lambda document: None,
) -> int:
    """Writes the chunk table of `documents` into a directory, or goes on where a call was killed.

    refuse: called with each document shorter than a chunk, which has none to retrieve with and is
    left out; may raise.

    Returns:
      The number of documents left out.
    """
    dtype = np.uint16 if tokenizer.vocab <= 2**16 else np.int32  # TensorFlow decodes no uint32
    writer = columns.Writer(
        directory,
        {
            "tokens": (dtype, (chunk,)),
            "document": (np.int32, ()),
            "continuation": (np.int64, ()),
            "documents": columns.LINES,
            "ids": ("S8", ()),
            "texts": ("S16", ()),
        },
    )
    state = writer.state = {"read": 0, "short": 0} | writer.state
    documents = iter(documents)
    for _ in itertools.islice(documents, state["read"]):
        pass
    for document in documents:
        state["read"] += 1
        ids = tokenizer.encode(document.text)
        if len(ids) + 2 < chunk:
            reason = f"the document has {len(ids)} tokens, fewer than a chunk of {chunk}"
            refuse(BadDocument(document.id, reason))
            state["short"] += 1
        else:
            first, rows = writer.rows("tokens"), split_document(ids, chunk)
            following = np.arange(first + 1, first + len(rows) + 1)
            following[-1] = -1
            entry = {
                "id": document.id,
                "first": first,
                "chunks": len(rows),
                "tokens": len(ids),
                "bytes": len(document.text.encode()),
                "metadata": document.metadata,
            }
            number = writer.rows("documents")
            writer.append(
                tokens=rows,
                document=np.full(len(rows), number),
                continuation=following,
                documents=[entry],
                ids=np.array([digest(document.id, 8)]),
                texts=np.array([digest(document.text, 16)]),
            )
        if state["read"] % _BLOCK == 0:
            writer.commit()
    writer.commit()
    writer.close()
    return state["short"]
