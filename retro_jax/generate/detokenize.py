"""Tokens that come one by one, as text: whole characters only, and nothing of a text that ends it."""

import bisect
import codecs
from collections.abc import Sequence


class Text:
    """What a continuation says so far.

    Attributes:
      text: all of it, up to a stop text. ended: a stop text was met. ends: how long the text was after
      each token.
    """

    def __init__(self, tokenizer, stop: Sequence[str] = ()):
        self._tokenizer, self._stop = tokenizer, tuple(stop)
        self._bytes = codecs.getincrementaldecoder("utf-8")("replace")
        self.text, self.ended, self.ends = "", False, []
        self._told, self._closed = 0, False

    def add(self, token: int):
        """One more token."""
        self._extend(self._bytes.decode(self._tokenizer.decode_bytes([token])))
        self.ends.append(len(self.text))

    def close(self):
        """No more tokens: a character that is incomplete shows as U+FFFD."""
        if not self.ended:
            self._extend(self._bytes.decode(b"", final=True))
        self._closed = True
        self.ends = [min(end, len(self.text)) for end in self.ends]
        if self.ends:
            self.ends[-1] = len(self.text)

    def tell(self) -> str:
        """What can be told since the last call; what may yet become a stop text is held back."""
        held = 0 if self.ended or self._closed else self._may_stop()
        new = self.text[self._told : len(self.text) - held]
        self._told += len(new)
        return new

    @property
    def told_tokens(self) -> int:
        """How many tokens the text that was told is made of; the last one may say more."""
        return self._made_of(self._told)

    @property
    def tokens(self) -> int:
        """How many tokens the text is made of: where it was cut, the one that is cut is the last."""
        return self._made_of(len(self.text)) if self.ended else len(self.ends)

    def _made_of(self, characters: int) -> int:
        return min(len(self.ends), bisect.bisect_left(self.ends, characters) + 1)

    def _extend(self, more: str):
        if self.ended or not more:
            return
        longest = max(map(len, self._stop), default=1)
        begin = max(0, len(self.text) - longest + 1)
        self.text += more
        found = [at for s in self._stop if (at := self.text.find(s, begin)) >= 0]
        if found:
            self.text, self.ended = self.text[: min(found)], True

    def _may_stop(self) -> int:
        """How long an end of the text is that a stop text begins with."""
        lengths = (
            n for s in self._stop for n in range(min(len(s) - 1, len(self.text)), 0, -1)
            if self.text.endswith(s[:n])
        )  # fmt: skip
        return max(lengths, default=0)
