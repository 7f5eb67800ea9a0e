"""The words of a chunk, for an index that searches words (BM25)."""

import re
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from retro_jax.retrieval.embedder import Embedder

_WORD = re.compile(r"\w+")
NONE = -1  # fills the rest of a row


class Words(Embedder):
    """Texts to their words in lower case, as hashes: [n, W] int32, -1 after the last.

    width: W, the most words of a text; what a chunk holds beyond them is not seen.
    """

    gives = "words"
    dtype = np.dtype("<i4")

    def __init__(self, width: int):
        self.width = width

    @classmethod
    def open(cls, settings, directory: Path, chunk: int) -> "Words":
        """A token of most tokenizers holds one word at most."""
        return cls(2 * chunk)

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Texts -> [n, W] int32."""
        out = np.full((len(texts), self.width), NONE, np.int32)
        for row, text in enumerate(texts):
            words = _WORD.findall(text.lower())[: self.width]
            out[row, : len(words)] = [zlib.crc32(w.encode()) & 0x7FFFFFFF for w in words]
        return out
