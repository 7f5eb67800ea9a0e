"""GGUF files, in which llama.cpp keeps a model: their fields, and the tokenizer that they hold.

Read by the package `gguf` (pip install 'retro_jax[gguf]'). Nothing of a file is run.
"""

import functools
import json
import struct
from pathlib import Path

import numpy as np

from retro_jax.errors import UserError

# How text is cut before pairs are merged, by what a file calls it (tokenizer.ggml.pre). The expressions are those of
# the tokenizers that the models were published with.
_CONTRACTED = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT2 = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_DIGITS = {"type": "Digits", "individual_digits": True}


def _split(numbers: str) -> list[dict]:
    pattern = {"Regex": _CONTRACTED + _WORDS % numbers}
    split = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
    return [split, _GPT2 | {"use_regex": False}]


CUTS = {
    "default": [_GPT2], "gpt-2": [_GPT2], "smollm": [_DIGITS, _GPT2],
    "llama-bpe": _split("{1,3}"), "llama3": _split("{1,3}"), "qwen2": _split(""),
}  # fmt: skip
_WHOLE = ("llama-bpe", "llama3")  # a word that is a token is that token, whatever the merges say
_UNKNOWN, _CONTROL, _OWN = 2, 3, 4  # kinds of tokens


def is_one(path: Path) -> bool:
    """Whether a path names such a file, which need not be there."""
    return str(path).endswith(".gguf")  # which may lie in a bucket


def open_file(path: Path):
    """A file's GGUFReader, whose arrays lie on disk.

    Raises:
      UserError: the file is missing or damaged, or the package is.
    """
    path = Path(path)
    try:
        at = path.stat()
    except OSError as error:
        raise UserError(f"{path}: no such GGUF file; nothing is downloaded here") from error
    return _opened(path, at.st_size, at.st_mtime_ns)


@functools.lru_cache(maxsize=2)
def _opened(path: Path, size: int, changed: int):
    try:
        from gguf import GGUFReader
    except ModuleNotFoundError as error:
        raise UserError(f"{path}: reading GGUF needs pip install 'retro_jax[gguf]'") from error

    class Reader(GGUFReader):
        """The package's, with the file as a plain array: a slice of a memmap takes four times as long, and reading a
        vocabulary takes a million."""

        @property
        def data(self) -> np.ndarray:
            return self._plain

        @data.setter
        def data(self, mapped: np.memmap):
            self._plain = mapped.view(np.ndarray)

    try:
        return Reader(path)
    except (OSError, ValueError, LookupError, TypeError, OverflowError, struct.error) as error:
        raise UserError(
            f"{path}: no GGUF file, damaged or cut off ({error}); fetch it again"
        ) from error


def forget():
    """Gives up what is kept of open files: a vocabulary's tokens and merges take 160 MB as the reader has them."""
    _opened.cache_clear()


def field(path: Path, name: str, default=None):
    """What a field of a file holds.

    Raises:
      UserError: as `open_file`; or it is damaged.
    """
    found = open_file(path).fields.get(name)
    if found is None:
        return default
    try:
        return found.contents()
    except (ValueError, LookupError, TypeError) as error:
        raise UserError(f"{path}: {name} is damaged ({error}); fetch the file again") from error


def tokenizer_json(path: Path) -> bytes:
    """The Hugging Face tokenizer.json that a file's tokens and merges are.

    Raises:
      UserError: as `field`; or a tokenizer of a kind that is not known.
    """
    kind, cut = field(path, "tokenizer.ggml.model"), field(path, "tokenizer.ggml.pre", "default")
    if kind != "gpt2":
        raise UserError(
            f"{path}: tokenizer.ggml.model = {kind!r} is not supported; known: 'gpt2' (byte-level BPE)"
        )
    if cut not in CUTS:
        raise UserError(
            f"{path}: tokenizer.ggml.pre = {cut!r} is not supported; known: {', '.join(CUTS)}"
        )
    tokens, merges = (field(path, f"tokenizer.ggml.{n}") for n in ("tokens", "merges"))
    kinds = field(path, "tokenizer.ggml.token_type", [])
    if not tokens or not merges or len(set(tokens)) < len(tokens):
        raise UserError(
            f"{path}: its tokens or merges are missing, or two tokens are one; fetch it again"
        )
    added = [
        {
            "id": i, "content": token, "special": of in (_UNKNOWN, _CONTROL), "single_word": False,
            "lstrip": False, "rstrip": False, "normalized": False,
        }
        for i, (token, of) in enumerate(zip(tokens, kinds)) if of in (_UNKNOWN, _CONTROL, _OWN)
    ]  # fmt: skip
    model = {
        "type": "BPE", "vocab": {token: i for i, token in enumerate(tokens)}, "merges": merges,
        "dropout": None, "unk_token": None, "fuse_unk": False, "byte_fallback": False,
        "ignore_merges": cut in _WHOLE,
    }  # fmt: skip
    made = {
        "version": "1.0", "added_tokens": added, "normalizer": None, "post_processor": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": CUTS[cut]},
        "decoder": _GPT2, "model": model,
    }  # fmt: skip
    return json.dumps(made, ensure_ascii=False).encode()
