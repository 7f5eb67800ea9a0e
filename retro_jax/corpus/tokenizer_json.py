"""Any Hugging Face `tokenizer.json` that loses nothing, behind the interface of `tokenizer.Tokenizer`."""

import json

import tokenizers

from retro_jax.corpus.vocabulary import Vocabulary
from retro_jax.errors import UserError

FIRST = 4  # the file's id 0 is ours 4: PAD, BOS, EOS and UNK stand before
_MULTIPLE = 64  # of the vocabulary's size, so that it can be split over a mesh
_SPACE = "▁"
_PROBES = (
    "two words", " a space before", "after ", "tab\tand\n\nlines\r\n", "naïve café", "日本語", "🙂👩‍👩‍👧",
    "▁", "\0\x01", "<s>", "</s>", "<|endoftext|>", "[CLS]", "e\u0301", "ﬁ",
)  # fmt: skip


class PretrainedTokenizer(Vocabulary):
    """Text to token ids and back, the file's ids moved by FIRST.

    Three things that a file may ask for are left out, because they change the text: Unicode
    normalisation, a space put before it, and special tokens found in it. Where a text has none of
    them, the tokens are the file's own.

    Args:
      data: the bytes of a tokenizer.json.
      name: of the file, for messages.

    Raises:
      UserError: not a tokenizer, or one that does not give every text back.
    """

    def __init__(self, data: bytes, name: str):
        try:
            fields = json.loads(data)
            self._byte_level = '"ByteLevel"' in json.dumps(fields.get("decoder"))
            self._pieces = tokenizers.Tokenizer.from_str(
                json.dumps(fields | self._lossless(fields))
            )
        except Exception as error:  # the library raises Exception itself
            raise UserError(f"{name}: no Hugging Face tokenizer ({error})") from error
        self._pieces.encode_special_tokens = True
        special = {t["id"] for t in fields.get("added_tokens", ()) if t.get("special")}
        size = max(self._pieces.get_vocab(with_added_tokens=True).values()) + 1
        own = [b"" if i in special else self._piece_bytes(i) for i in range(size)]
        super().__init__([b""] * FIRST + own + [b""] * (padded(FIRST + size) - FIRST - size))
        self._space_mark = [self._pieces.token_to_id(f"<0x{b:02X}>") for b in _SPACE.encode()]
        for probe in _PROBES:
            try:
                same = self.decode_bytes(self.encode(probe)) == probe.encode()
            except (TypeError, KeyError):
                same = False
            if not same:
                raise UserError(
                    f"{name}: this tokenizer does not give {probe!r} back, so bytes could not be "
                    "counted; use one with byte-level BPE or byte fallback, or corpus.tokenizer=train"
                )

    def _lossless(self, fields: dict) -> dict:
        """What to put in place of the file's own fields."""
        changed = {"normalizer": None, "truncation": None, "padding": None, "post_processor": None}
        if not self._byte_level:
            space = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
            return changed | {"normalizer": space, "pre_tokenizer": None}
        before = fields.get("pre_tokenizer") or {}
        for part in before.get("pretokenizers", [before]):
            if part.get("type") == "ByteLevel":
                part["add_prefix_space"] = False
        return changed | {"pre_tokenizer": before or None}

    def _piece_bytes(self, i: int) -> bytes:
        piece = self._pieces.id_to_token(i)
        if piece is None:
            return b""
        if self._byte_level:
            return bytes(_BYTE[c] for c in piece) if set(piece) <= _BYTE.keys() else piece.encode()
        if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
            return bytes([int(piece[3:5], 16)])
        return piece.replace(_SPACE, " ").encode()

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, without BOS and EOS."""
        if self._byte_level:
            return self._encode(text)
        first, *others = text.split(_SPACE)  # a space's mark in the text is no space
        ids = self._encode(first)
        for part in others:
            ids += [i + FIRST for i in self._space_mark] + self._encode(part)
        return ids

    def _encode(self, text: str) -> list[int]:
        return [i + FIRST for i in self._pieces.encode(text, add_special_tokens=False).ids]


def padded(size: int) -> int:
    """The size of a vocabulary of so many tokens."""
    return size + -size % _MULTIPLE


def _byte_characters() -> dict[str, int]:
    """GPT-2's character for each byte: itself where it can be seen, else from U+0100 on."""
    seen = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in seen]
    return {chr(b): b for b in seen} | {chr(0x100 + i): b for i, b in enumerate(others)}


_BYTE = _byte_characters()
