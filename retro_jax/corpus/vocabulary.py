"""What every tokenizer has in common: each token stands for certain bytes."""

import functools
from collections.abc import Iterable

import numpy as np

PAD, BOS, EOS, UNK = 0, 1, 2, 3


class Vocabulary:
    """Tokens to bytes, text and byte counts.

    first: what the id of a token is more than in the tokenizer's own file.
    ends: ids of the tokens that end a text. template: how a conversation is written (corpus/special.py), or "".
    """

    first, ends, template = 0, (EOS,), ""

    def __init__(self, pieces: list[bytes]):
        self._bytes = pieces

    @property
    def vocab(self) -> int:
        """How many tokens there are."""
        return len(self._bytes)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of the tokens; special tokens have none."""
        return b"".join([self._bytes[i] for i in ids])

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the tokens. A chunk may cut a character: its bytes show as U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def encode_special(self, text: str) -> list[int]:
        """Token ids of a text in which special tokens stand for themselves: there are none that a text can name."""
        return self.encode(text)

    def literally(self, text: str) -> str:
        """The text, of which `encode_special` makes no special token."""
        return text

    @property
    def silent(self) -> np.ndarray:
        """Which tokens are never drawn [vocab] bool: those without text, but for those that end one."""
        return (self.byte_counts == 0) & ~np.isin(np.arange(self.vocab), self.ends)

    @functools.cached_property
    def byte_counts(self) -> np.ndarray:
        """Bytes of each token, [vocab] int32; 0 for special tokens."""
        return np.array([len(b) for b in self._bytes], np.int32)
