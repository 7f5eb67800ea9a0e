"""SentencePiece with byte fallback: decode(encode(text)) == text for every text."""

import functools
import io
import re
from collections.abc import Iterable
from pathlib import Path

import sentencepiece
from upath import UPath

from retro_jax.corpus import gguf, special
from retro_jax.corpus.tokenizer_json import PretrainedTokenizer
from retro_jax.corpus.vocabulary import BOS, EOS, PAD, UNK, Vocabulary
from retro_jax.errors import UserError

_SPACE = "▁"  # what SentencePiece writes for a space
_SAMPLE = 20_000_000  # characters; more teach a small vocabulary nothing new
_LINE = 2000  # characters; SentencePiece skips what is much longer


class Tokenizer(Vocabulary):
    """Text to token ids and back.

    PAD fills the tail of a document's last chunk and stands for "no token" everywhere; BOS opens
    and EOS closes a document. None of them is produced by `encode`.
    """

    def __init__(self, model: bytes):
        self._pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
        super().__init__([self._piece_bytes(i) for i in range(self._pieces.get_piece_size())])
        # SentencePiece's own mark for a space, found in a text, must not become a space.
        self._space_mark = [self._pieces.piece_to_id(f"<0x{b:02X}>") for b in _SPACE.encode()]

    def _piece_bytes(self, i: int) -> bytes:
        if i <= UNK:
            return b""
        piece = self._pieces.id_to_piece(i)
        if self._pieces.is_byte(i):
            return bytes([int(piece[3:5], 16)])
        return piece.replace(_SPACE, " ").encode()

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, without BOS and EOS."""
        first, *others = text.split(_SPACE)
        ids = self._pieces.encode(first)
        for part in others:
            ids += self._space_mark + self._pieces.encode(part)
        return ids


def train(texts: Iterable[str], vocab: int) -> bytes:
    """Trains a BPE vocabulary with byte fallback and returns the model file's bytes.

    Args:
      texts: the training documents; held-out text never reaches the tokenizer.
      vocab: number of pieces, the bytes and special tokens included.

    Raises:
      UserError: the text is too small for `vocab`.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_lines(texts),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab,
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            allow_whitespace_only_pieces=True,
            character_coverage=0.9999,
            required_chars=_SPACE,  # which a text without spaces would not teach it
            max_sentence_length=4 * _LINE,
            pad_id=PAD,
            bos_id=BOS,
            eos_id=EOS,
            unk_id=UNK,
            num_threads=2,
            minloglevel=2,
        )
    except RuntimeError as error:
        if least := re.search(r"required_chars\. \d+ vs (\d+)", str(error)):
            raise UserError(
                f"config field corpus.vocab = {vocab}: the corpus has too many different characters for that "
                f"few pieces; give at least {least[1]}"
            ) from error
        most = re.search(r"value <= (\d+)", str(error))
        why = f"it has {most[1]} at most" if most else " ".join(str(error).split())
        raise UserError(
            f"config field corpus.vocab = {vocab}: the corpus is too small for that many pieces ({why}); "
            "lower it or give more text"
        ) from error
    return model.getvalue()


def _lines(texts: Iterable[str]) -> Iterable[str]:
    seen = 0
    for text in texts:
        for line in text.splitlines(keepends=True):
            for start in range(0, len(line), _LINE):
                yield line[start : start + _LINE]
        seen += len(text)
        if seen > _SAMPLE:
            return


def load(path: Path, with_it: special.Special | None = None):
    """The tokenizer of a file: SentencePiece's .model, a Hugging Face tokenizer.json, or that of a GGUF file.

    with_it: what is known of its special tokens; by default what stands beside it.

    Raises:
      UserError: the file is missing, damaged, or of a tokenizer that loses text.
    """
    path = UPath(path)
    if not path.is_file():
        raise UserError(f"{path}: no such tokenizer file")
    name, data = file_of(path)
    if name == "tokenizer.json":
        return _pretrained(
            data, str(path), special.given_with(path) if with_it is None else with_it
        )
    try:
        made = Tokenizer(data)
    except RuntimeError as error:
        raise UserError(f"{path}: no SentencePiece model ({error})") from error
    for probe in ("two  words", " 日本語🙂\n", "\0"):
        if made.decode_bytes(made.encode(probe)) != probe.encode():
            raise UserError(
                f"{path}: this tokenizer does not give {probe!r} back, so bytes could not be counted; "
                "train it with byte_fallback, the identity normalisation and no dummy prefix, and "
                "pad, bos, eos, unk as ids 0 to 3"
            )
    return made


@functools.lru_cache(maxsize=4)
def _pretrained(data: bytes, name: str, known: special.Special) -> PretrainedTokenizer:
    """One for all who open the same file: to look through a large vocabulary takes half a second."""
    return PretrainedTokenizer(data, name, known)


def file_of(path: Path) -> tuple[str, bytes]:
    """What a prepared corpus keeps of a given tokenizer: the name of the file and its bytes."""
    if gguf.is_one(path):
        return "tokenizer.json", gguf.tokenizer_json(path)
    return "tokenizer" + path.suffix, path.read_bytes()


def open_tokenizer(directory: Path):
    """The tokenizer in a directory: its tokenizer.json, or else its tokenizer.model."""
    given = directory / "tokenizer.json"
    return load(given if given.exists() else directory / "tokenizer.model", special.read(directory))
