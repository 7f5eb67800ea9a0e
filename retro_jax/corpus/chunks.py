"""The chunk table: every document cut into chunks of M tokens, memory-mapped.

Row i holds M tokens (PAD after the end of its document), the number of its document and the row of
its continuation: the next chunk of the same document, or -1. The rows of a document are contiguous.
A document's tokens are BOS, its text, EOS; its chunk grid starts at BOS.
"""

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from retro_jax.corpus.document import BadDocument, Document, digest
from retro_jax.corpus.tokenizer import BOS, EOS, PAD, Tokenizer
from retro_jax.store import columns

_PART = 2**20  # characters


class ChunkTable:
    """A table on disk, opened read-only and memory-mapped.

    tokens [N, M] uint16 or int32, document [N] int32, continuation [N] int64;
    documents: for each one a dict with id, text (its hash), metadata, first (row), chunks, tokens and
    bytes;
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

    def texts_of(self, tokenizer: Tokenizer, rows) -> list[str]:
        """What the tokens of some rows say: live queries are made of the same text (databases/)."""
        return [tokenizer.decode(row) for row in np.asarray(self.tokens[rows]).tolist()]

    def part(self, begin: int, end: int) -> "ChunkTable":
        """Chunks begin .. end - 1 and what continues them, read into memory; ids count from `begin`.
        What continues the last one is the last row itself, which is not of the part."""
        part = object.__new__(ChunkTable)
        part.tokens = np.asarray(self.tokens[begin : end + 1])
        following = np.asarray(self.continuation[begin : end + 1])
        part.continuation = np.where(following < 0, -1, following - begin)
        return part

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
        near = np.where(
            ids < 0, max(0, ids.max(initial=0)), ids
        )  # of a bucket all between are read
        return np.where((ids < 0)[..., None], PAD, self.tokens[near])


def token_ids(text: str, tokenizer: Tokenizer) -> np.ndarray:
    """The token ids of a document's text [n] int32. A text of more than a million characters is encoded
    in parts: a tokenizer's list of numbers takes many times the memory of an array."""
    parts = (text[i : i + _PART] for i in range(0, max(1, len(text)), _PART))
    return np.concatenate([np.array(tokenizer.encode(part), np.int32) for part in parts])


def split_document(ids: np.ndarray, chunk: int) -> np.ndarray:
    """Token ids of a text -> [rows, chunk] int32: BOS and EOS added, the tail filled with PAD."""
    rows = -(-(len(ids) + 2) // chunk)
    out = np.full(rows * chunk, PAD, np.int32)
    out[: len(ids) + 2] = np.concatenate([[BOS], ids, [EOS]])
    return out.reshape(rows, chunk)


def encode(
    documents: Iterable[Document],
    tokenizer: Tokenizer,
    chunk: int,
    refuse: Callable[[BadDocument], None] | None = lambda document: None,
) -> tuple[np.ndarray, list[dict]]:
    """The chunks [n, M] of documents and the entry of each, but for its first row.

    A document shorter than a chunk, which has none to retrieve with, is left out; `refuse` is called
    with it, and may raise. With None for `refuse` it is kept, for who only looks it up: one chunk, filled
    with PAD.
    """
    rows, entries, sizes = [np.zeros((0, chunk), np.int32)], [], tokenizer.byte_counts
    for document in documents:
        ids = token_ids(document.text, tokenizer)
        if refuse and len(ids) + 2 < chunk:
            reason = f"the document has {len(ids)} tokens, fewer than a chunk of {chunk}"
            refuse(BadDocument(document.id, "short", reason))
            continue
        rows.append(split_document(ids, chunk))
        entries.append(
            {
                "id": document.id,
                "text": digest(document.text, 16).hex(),
                "chunks": len(rows[-1]),
                "tokens": len(ids),
                "bytes": int(sizes[ids].sum()),  # all, but for control characters without a token
                "metadata": document.metadata,
            }
        )
    return np.concatenate(rows), entries


def layout(tokenizer: Tokenizer, chunk: int) -> dict:
    """The columns of a chunk table."""
    return {
        # TensorFlow, which may read the shards, decodes no uint32.
        "tokens": (np.uint16 if tokenizer.vocab <= 2**16 else np.int32, (chunk,)),
        "document": (np.int32, ()),
        "continuation": (np.int64, ()),
        "documents": columns.LINES,
        "ids": ("S8", ()),
        "texts": ("S16", ()),
    }


def place(tokens: np.ndarray, entries: list[dict]) -> dict:
    """The columns of what `encode` gave, as if a table began with it."""
    counts = np.array([e["chunks"] for e in entries], np.int64)
    first = np.cumsum(counts) - counts
    following = np.arange(1, 1 + counts.sum())
    following[np.cumsum(counts) - 1] = -1
    return {
        "tokens": tokens,
        "document": np.repeat(np.arange(len(counts)), counts),
        "continuation": following,
        "documents": [{"first": int(f)} | e for f, e in zip(first, entries)],
        "ids": np.array([digest(e["id"], 8) for e in entries], "S8"),
        "texts": np.array([bytes.fromhex(e["text"]) for e in entries], "S16"),
    }


def moved(rows: dict, row: int, number: int) -> dict:
    """The columns of a part of a table, of which `row` chunks of `number` documents stand before it."""
    following = np.asarray(rows["continuation"])
    return rows | {
        "document": np.asarray(rows["document"]) + number,
        "continuation": np.where(following < 0, -1, following + row),
        "documents": [d | {"first": d["first"] + row} for d in rows["documents"]],
    }
