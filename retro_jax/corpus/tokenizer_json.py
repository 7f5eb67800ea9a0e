"""Any Hugging Face `tokenizer.json` that loses nothing, behind the interface of `tokenizer.Tokenizer`."""

import json
import random
import re
from collections.abc import Iterator

import tokenizers

from retro_jax.corpus.special import Special
from retro_jax.corpus.vocabulary import BOS, EOS, Vocabulary
from retro_jax.errors import UserError

FIRST = 4  # the file's id 0 is ours 4: PAD, BOS, EOS and UNK stand before
_MULTIPLE = 64  # of the vocabulary's size, so that it can be split over a mesh
_SPACE = "▁"
_NONE = Special()
_JOINER = "\u2060"  # takes no room
_PROBES = (
    "two words", " a space before", "after ", "tab\tand\n\nlines\r\n", "naïve café", "日本語", "🙂👩‍👩‍👧",
    "▁", "\0\x01", "<s>", "</s>", "<|endoftext|>", "[CLS]", "e\u0301", "ﬁ",
)  # fmt: skip
_RANDOM = 300  # random texts that are tried
_BETWEEN = ("", "", " ", "  ", "\n", "\t", "\r\n", "\u00a0", "\u3000")
_CHARACTERS = (
    *range(0x20, 0x7F),
    *range(0xA1, 0x180),
    *range(0x4E00, 0x4E40),
    0x0,
    0x301,
    0x1F642,
    0xFFFD,
)
# Bytes for which a file need not have a piece: those that UTF-8 never has, and those of control characters other than
# white space, and of planes 4 to 11, in which there is no character.
_IMPOSSIBLE = (0xC0, 0xC1, *range(0xF5, 0x100))
_PLANES = {0xF1: "\U00040000-\U0007ffff", 0xF2: "\U00080000-\U000bffff"}
_RARE = (*(b for b in range(0x20) if b not in b"\t\n\r"), 0x7F, *_PLANES)
_GAPS = 1024  # numbers that need not have a token
_BYTE_PIECE = re.compile("<0x([0-9A-F]{2})>")
_DROPPING = ("CharDelimiterSplit", "WhitespaceSplit", "Whitespace", "BertPreTokenizer")
_USE = "use one with byte-level BPE or byte fallback, or corpus.tokenizer=train"


class PretrainedTokenizer(Vocabulary):
    """Text to token ids and back, the file's ids moved by FIRST.

    What a file may ask for and what changes the text is left out: Unicode normalisation, a space put before it,
    special tokens found in it, white space that a token takes from beside it, merges left out by chance. Where a
    text has nothing of this, the tokens are the file's own. Control characters, and characters of planes that Unicode
    has not assigned, are left out of a text where the file has no piece for their bytes, as transformers does.

    Args:
      data: the bytes of a tokenizer.json.
      name: of the file, for messages. special: which of its tokens begin and end texts.

    Raises:
      UserError: not a tokenizer, or one that does not give every text back: its own added tokens and random text
        of its own tokens are tried.
    """

    first = FIRST

    def __init__(self, data: bytes, name: str, special: Special = _NONE):
        try:
            fields = json.loads(data)
            self._byte_level = '"ByteLevel"' in json.dumps(fields.get("decoder"))
            fields |= self._lossless(fields)
            self._pieces = tokenizers.Tokenizer.from_str(json.dumps(fields))
            added = fields.get("added_tokens") or ()
            ids = [self._pieces.token_to_id(t["content"]) for t in added]
            self._special = {i for i, t in zip(ids, added) if t.get("special")}
            self._added = {i: t["content"] for i, t in zip(ids, added)}
            drops = _drops(fields.get("pre_tokenizer"))
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic of the library is no Exception
            raise UserError(f"{name}: no Hugging Face tokenizer ({str(error)[:200]})") from error
        if len(self._added) < len({t["content"] for t in added}):
            raise UserError(f"{name}: two of its added_tokens have one id; give each its own")
        if drops:
            raise UserError(
                f"{name}: its pre_tokenizer {drops} drops the text that it splits at; {_USE}"
            )
        self._pieces.encode_special_tokens = True
        ids = self._pieces.get_vocab(with_added_tokens=True).values()
        size = max(ids, default=0) + 1
        if size > 2 * len(ids) + _GAPS:
            raise UserError(
                f"{name}: has token {size - 1:,} in a vocabulary of {len(ids):,}; number them without gaps"
            )
        missing = self._bytes_without_a_piece()
        self._dropped = _characters(missing)
        if lost := [b for b in missing if b not in (*_IMPOSSIBLE, *_RARE)]:
            raise UserError(
                f"{name}: has no piece for {len(missing)} of the 256 bytes, 0x{lost[0]:02X} for example, so it would "
                f"lose text; {_USE}"
            )
        own = [self._piece_bytes(i) for i in range(size)]
        super().__init__([b""] * FIRST + own + [b""] * (padded(FIRST + size) - FIRST - size))
        self._space_mark = [self._pieces.token_to_id(f"<0x{b:02X}>") for b in _SPACE.encode()]
        # The weights have a place of their own for what begins and ends documents (weights/name_table.py).
        place = {} if special.bos is None else {special.bos: BOS}
        place |= {special.eos[0]: EOS} if special.eos else {}
        self.ends = (EOS, *(place.get(i, i + FIRST) for i in special.eos[1:] if i < size))
        self.template = special.template
        self.specials = {self._added[i]: place.get(i, i + FIRST) for i in sorted(self._special)}
        named = sorted(
            self.specials, key=len, reverse=True
        )  # of two that begin alike the longer one
        self._named = re.compile("|".join(map(re.escape, named)) or r"(?!)")
        parted = (re.escape(n) for n in named if len(n) > 1 and _JOINER not in n)
        self._long = re.compile("|".join(parted) or r"(?!)")
        for probe in self._probes():
            try:
                kept = self._dropped.sub("", probe).encode()
                same = self.decode_bytes(self.encode(probe)) == kept
            except (TypeError, KeyError):
                same = False
            if not same:
                raise UserError(
                    f"{name}: this tokenizer does not give {probe[:60]!r} back, so bytes could not be "
                    f"counted; {_USE}"
                )

    def _lossless(self, fields: dict) -> dict:
        """What to put in place of the file's own fields."""
        changed = {"normalizer": None, "truncation": None, "padding": None, "post_processor": None}
        changed["model"] = (
            fields["model"] | {"dropout": None} if "dropout" in fields["model"] else fields["model"]
        )
        kept = [t | {"lstrip": False, "rstrip": False} for t in fields.get("added_tokens") or ()]
        if not self._byte_level:
            space = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
            return changed | {"normalizer": space, "pre_tokenizer": None, "added_tokens": kept}
        vocab = changed["model"].get("vocab") or {}
        # One that is also a piece of bytes would stand for two texts.
        kept = [t for t in kept if t.get("special") or not _is_two(t["content"], vocab)]
        before = fields.get("pre_tokenizer") or {}
        for part in before.get("pretokenizers", [before]):
            if part.get("type") == "ByteLevel":
                part["add_prefix_space"] = False
        return changed | {"pre_tokenizer": before or None, "added_tokens": kept}

    def _piece_bytes(self, i: int) -> bytes:
        piece = self._pieces.id_to_token(i)
        if piece is None or i in self._special:
            return b""
        if self._byte_level:
            return piece.encode() if i in self._added else _bytes_of(piece)
        if found := _BYTE_PIECE.fullmatch(piece):
            return bytes([int(found[1], 16)])
        return piece.replace(_SPACE, " ").encode()

    def _bytes_without_a_piece(self) -> list[int]:
        pieces = self._pieces.get_vocab(with_added_tokens=False)
        named = {b: c for c, b in _BYTE.items()}
        if not self._byte_level:
            named = {b: f"<0x{b:02X}>" for b in range(256)}
        return [b for b in range(256) if named[b] not in pieces]

    def _probes(self) -> Iterator[str]:
        """Texts that must come back: fixed ones, the added tokens, and random text of the tokens."""
        yield from _PROBES
        for content in self._added.values():
            yield from (content, f"a{content}b", f" {content} ", f"\n{content}\t{content}")
        draw = random.Random(0)
        for _ in range(_RANDOM):
            parts = []
            for _ in range(draw.randint(1, 12)):
                piece = self._bytes[draw.randrange(len(self._bytes))].decode("utf-8", "ignore")
                parts += [piece, draw.choice(_BETWEEN), chr(draw.choice(_CHARACTERS))]
            yield "".join(parts)

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, without BOS and EOS."""
        text = self._dropped.sub("", text)
        if self._byte_level:
            return self._encode(text)
        first, *others = text.split(_SPACE)  # a space's mark in the text is no space
        ids = self._encode(first)
        for part in others:
            ids += [i + FIRST for i in self._space_mark] + self._encode(part)
        return ids

    def encode_special(self, text: str) -> list[int]:
        """Token ids of a text in which the file's special tokens stand for themselves, as in a chat template's."""
        ids, at = [], 0
        for found in self._named.finditer(text):
            ids += [*self.encode(text[at : found.start()]), self.specials[found[0]]]
            at = found.end()
        return ids + self.encode(text[at:])

    def literally(self, text: str) -> str:
        """The text, of which `encode_special` makes no special token: an invisible character parts their names, but for
        one of a single character, and one that has this character in it."""
        while self._long.search(text):  # parting a name may leave another one that it held
            text = self._long.sub(lambda found: found[0][0] + _JOINER + found[0][1:], text)
        return text

    def _encode(self, text: str) -> list[int]:
        return [i + FIRST for i in self._pieces.encode(text, add_special_tokens=False).ids]


def padded(size: int) -> int:
    """The size of a vocabulary of so many tokens."""
    return size + -size % _MULTIPLE


def _characters(missing: list[int]) -> re.Pattern:
    """Finds the characters of texts that the missing bytes leave without a token."""
    own = "".join(_PLANES.get(b, re.escape(chr(b))) for b in missing if b in _RARE)
    return re.compile(f"[{own}]" if own else r"(?!)")


def _drops(pre_tokenizer) -> str:
    """The type of the part of a pre_tokenizer that drops text, if one does."""
    if isinstance(pre_tokenizer, list):
        return next(filter(None, map(_drops, pre_tokenizer)), "")
    if not isinstance(pre_tokenizer, dict):
        return ""
    if pre_tokenizer.get("behavior") == "Removed" or pre_tokenizer.get("type") in _DROPPING:
        return pre_tokenizer["type"]
    return _drops(pre_tokenizer.get("pretokenizers"))


def _is_two(content: str, vocab) -> bool:
    """Whether an added token is a piece of the vocabulary too, whose bytes are others."""
    return content in vocab and _bytes_of(content) != content.encode()


def _bytes_of(piece: str) -> bytes:
    """The bytes of a piece that is written in `_BYTE`; no text has a piece that is not."""
    return bytes(_BYTE[c] for c in piece) if set(piece) <= _BYTE.keys() else b""


def _byte_characters() -> dict[str, int]:
    """GPT-2's character for each byte: itself where it can be seen, else from U+0100 on."""
    seen = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in seen]
    return {chr(b): b for b in seen} | {chr(0x100 + i): b for i, b in enumerate(others)}


_BYTE = _byte_characters()
