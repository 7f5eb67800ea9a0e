"""The words of a text, for search by words: what an index of words takes, and what candidates are ordered by.

A word is a run of letters, digits, marks and underscores, in lower case. Scripts that put no spaces between
words (Chinese, Japanese, Thai, Lao, Khmer, Burmese and their like) are cut into pairs of characters that
overlap, as Lucene's analyser of Chinese, Japanese and Korean does: such a pair is found wherever the word
that holds it stands. A character is a letter with its vowel signs and tone marks.
"""

import itertools
import zlib
from collections.abc import Iterator, Sequence

import numpy as np
import regex

NONE = -1  # fills the rest of a row
_WORD = regex.compile(r"[\p{L}\p{M}\p{N}_]+")
_ASCII = regex.compile(r"[a-z0-9_]+")
_SCRIPTS = ("Han", "Hiragana", "Katakana", "Bopomofo", "Yi", "Thai", "Lao", "Khmer", "Myanmar",
            "Tai_Tham", "New_Tai_Lue", "Tai_Le", "Tibetan", "Javanese", "Balinese")  # fmt: skip
_NO_SPACES = "".join(rf"\p{{Script={name}}}" for name in _SCRIPTS) + "\u30fc"  # the long vowel
_RUNS = regex.compile(
    rf"(?:(?=[\p{{L}}\p{{M}}\p{{N}}])[{_NO_SPACES}]\p{{M}}*)+|(?:(?![{_NO_SPACES}])[\p{{L}}\p{{M}}\p{{N}}_])+"
)
_WITHOUT = regex.compile(rf"[{_NO_SPACES}]")


def width_of(chunk: int) -> int:
    """W, the most words that are kept of a chunk of so many tokens. A token of most tokenizers holds one word
    at most."""
    return 2 * chunk


def words_of(texts: Sequence[str], width: int) -> np.ndarray:
    """Texts to their words as hashes, [n, W] int32 in the order of the text, -1 after the last; what a text
    holds beyond W is not seen."""
    out = np.full((len(texts), width), NONE, np.int32)
    for row, text in enumerate(texts):
        words = split(text)[:width]
        out[row, : len(words)] = [zlib.crc32(w.encode()) & 0x7FFFFFFF for w in words]
    return out


def split(text: str) -> list[str]:
    """The words of a text."""
    text = text.lower()
    if text.isascii():
        return _ASCII.findall(text)
    if not _WITHOUT.search(text):
        return _WORD.findall(text)
    return [word for run in _RUNS.findall(text) for word in _cut(run)]


def _cut(run: str) -> Iterator[str]:
    """A word as it is; of a script without spaces its pairs of characters, or the only one."""
    if not _WITHOUT.match(run):
        yield run
        return
    characters = regex.findall(r"\X", run)
    if len(characters) == 1:
        yield run
    for first, second in itertools.pairwise(characters):
        yield first + second
