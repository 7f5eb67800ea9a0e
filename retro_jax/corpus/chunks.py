"""The chunk table: every document cut into chunks of M tokens, memory-mapped.

Row i holds M tokens (PAD after the end of its document), the number of its document and the row of
its continuation: the next chunk of the same document, or -1. The rows of a document are contiguous.
A document's tokens are BOS, its text, EOS; its chunk grid starts at BOS.
"""

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from retro_jax.corpus.sources import BadDocument, Document
from retro_jax.corpus.tokenizer import BOS, EOS, PAD, Tokenizer


class ChunkTable:
    """A table on disk, opened read-only.

    tokens [N, M] unsigned, document [N] int32, continuation [N] int64;
    documents: one dict a document, with id, metadata, first (row), chunks, tokens and bytes.
    """

    def __init__(self, directory: Path):
        directory = Path(directory)
        with (directory / "documents.jsonl").open(encoding="utf-8") as lines:
            self.documents = [json.loads(line) for line in lines]
        self.tokens = np.load(directory / "tokens.npy", mmap_mode="r")
        self.document = np.load(directory / "document.npy", mmap_mode="r")
        self.continuation = np.load(directory / "continuation.npy", mmap_mode="r")

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
    documents: Iterable[Document], tokenizer: Tokenizer, chunk: int, directory: Path
) -> list[BadDocument]:
    """Writes the chunk table of `documents` into an existing, empty directory.

    Returns:
      The documents shorter than a chunk, which are left out: they have no chunk to retrieve with.
    """
    dtype = np.uint16 if tokenizer.vocab <= 2**16 else np.uint32
    short, tokens, owner, continuation, first = [], [], [], [], 0
    with (directory / "documents.jsonl").open("w", encoding="utf-8") as index:
        for document in documents:
            ids = tokenizer.encode(document.text)
            if len(ids) + 2 < chunk:
                short.append(
                    BadDocument(
                        document.id,
                        f"the document has {len(ids)} tokens, fewer than a chunk of {chunk}",
                    )
                )
                continue
            rows = split_document(ids, chunk).astype(dtype)
            number = len(owner)
            tokens.append(rows)
            owner.append(np.full(len(rows), number, np.int32))
            continuation.append(np.append(np.arange(first + 1, first + len(rows)), -1))
            entry = {
                "id": document.id,
                "first": first,
                "chunks": len(rows),
                "tokens": len(ids),
                "bytes": len(document.text.encode()),
                "metadata": document.metadata,
            }
            index.write(json.dumps(entry, ensure_ascii=False) + "\n")
            first += len(rows)
    np.save(directory / "tokens.npy", np.concatenate([*tokens, np.zeros((0, chunk), dtype)]))
    np.save(directory / "document.npy", np.concatenate([*owner, np.zeros(0, np.int32)]))
    np.save(
        directory / "continuation.npy",
        np.concatenate([*continuation, np.zeros(0, np.int64)]).astype(np.int64),
    )
    return short
