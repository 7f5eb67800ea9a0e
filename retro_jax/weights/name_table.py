"""Tables of names: which of a file's tensors the network's weights are made of, and the other way.

A row of a table is (their name, pattern, our names). The pattern, in einops' words, turns their tensor into
p of ours, stacked; read from right to left it makes theirs of ours. n heads of keys and values, a heads of
queries for each, h head size, d width, f inner width of the feed-forward, t positions.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
from einops import rearrange

from retro_jax.config import DecoderConfig, ModelConfig
from retro_jax.corpus.tokenizer import BOS, EOS
from retro_jax.corpus.tokenizer_json import FIRST, PretrainedTokenizer, padded
from retro_jax.errors import UserError
from retro_jax.weights import pretrained
from retro_jax.weights.pretrained import NEVER

Row = tuple[str, str, tuple[str, ...]]


class Weights:
    """The tensors of files as the network's weights.

    Args:
      path: of the directory, for messages. tensors: name -> array; with `shape(name)`.
      rows: of the table, with whole names. model, vocab, retrieval: the network.
      vocabulary: [V] which row of the file's tables each token has, -1 being none; or None, if they are
        the same.
      tables: {"embedding": their name, "readout": theirs}.
      find: from a name to what the files call it.
      ignored: of a name that the table does not have, whether that is no fault.

    Raises:
      UserError: a tensor is missing, has not the shape that the network implies, or belongs to none.
    """

    def __init__(
        self, path: Path, tensors: Mapping, rows: Iterable[Row], model: ModelConfig, vocab: int,
        retrieval: bool, vocabulary: np.ndarray | None, size: int, tables: dict[str, str],
        find: Callable[[str], str] = str, ignored: Callable[[str], bool] = lambda name: False,
    ):  # fmt: skip
        self._tensors, self._find = tensors, find
        self._vocabulary, self._tables = vocabulary, tables
        self._shapes = pretrained.shapes(model, vocab, retrieval)
        self._sizes = letters(model.decoder)
        self._from, wanted = {}, {}  # our name -> (their name, pattern, which part, of how many)
        for theirs, pattern, ours in rows:
            if ours[0] in self._shapes:
                wanted[theirs] = theirs_shape(pattern, self._sizes | {"p": len(ours)})
                for part, own in enumerate(ours):
                    self._from[own] = (theirs, pattern, part, len(ours))
        d = model.decoder.d
        wanted |= {theirs: (size, d) for own, theirs in tables.items() if own in self._shapes}
        known = {*tables.values()}
        for name, shape in wanted.items():
            there = find(name)
            if there not in tensors:
                raise UserError(
                    f"{path}: the files hold no {name}, which the config implies; fetch or save it again"
                )
            known.add(there)
            if tensors.shape(there) != shape:
                raise UserError(
                    f"{path}: {there} is {list(tensors.shape(there))}, but the config implies {list(shape)}"
                )
        for name in tensors:
            if name not in known and not ignored(name):
                raise UserError(
                    f"{path}: holds {name}, which a model of this kind does not have: another "
                    "architecture, or weights of an adapter, which have to be merged first"
                )

    def read(self, name: str) -> np.ndarray:
        """A weight by its name; see `Pretrained`."""
        if name == "readout_bias":
            return np.where(self._vocabulary < 0, NEVER, 0).astype(np.float32)
        if name in self._tables:
            theirs = self._tensors[self._find(self._tables[name])]
            if self._vocabulary is None:
                return theirs
            made = theirs[np.maximum(self._vocabulary, 0)]
            made[self._vocabulary < 0] = 0
            return made
        theirs, pattern, part, parts = self._from[name]
        made = to_ours(self._tensors[self._find(theirs)], pattern, self._sizes | {"p": parts})
        return made[part].reshape(self._shapes[name])


def below(rows: Iterable[Row], theirs: str, ours: str) -> list[Row]:
    """The rows of a part, whose names begin so."""
    return [
        (theirs + name, pattern, tuple(ours + own for own in owns)) for name, pattern, owns in rows
    ]


def vocabulary_size(path: Path, size: int) -> int:
    """How many tokens there are here, of a directory whose files have `size` rows: those of its tokenizer.json,
    where there is one.

    Raises:
      UserError: the tokenizer has tokens that the files have no row for.
    """
    file = path / "tokenizer.json"
    if not file.is_file():
        return padded(FIRST + size)
    tokenizer = PretrainedTokenizer(file.read_bytes(), str(file))
    if tokenizer.byte_counts[FIRST + size :].any():
        raise UserError(f"{file}: has tokens past vocab_size = {size} of config.json")
    return tokenizer.vocab


def vocabulary(vocab: int, size: int, bos: int | None, eos: int) -> np.ndarray:
    """[vocab] which row of a file's `size` each token here has; -1: none.

    Their token i is ours FIRST + i, but for BOS and EOS, which have rows of their own here, and no second.
    """
    rows = np.full(vocab, -1)
    known = min(size, vocab - FIRST)
    rows[FIRST : FIRST + known] = np.arange(known)
    rows[EOS], rows[BOS] = eos, eos if bos is None else bos
    for token in (eos, bos):
        if token is not None and FIRST + token < vocab:
            rows[FIRST + token] = -1
    return rows


def letters(decoder: DecoderConfig) -> dict[str, int]:
    """What the letters of a pattern stand for."""
    d, n = decoder, decoder.kv_heads or decoder.heads
    return {
        "n": n, "a": d.heads // n, "h": d.head_size, "d": d.d, "f": d.ffw or 4 * d.d, "t": d.max_length,
    }  # fmt: skip


def to_ours(theirs: np.ndarray, pattern: str, sizes: dict[str, int]) -> np.ndarray:
    """Their tensor -> [p, ...] ours, a view of it."""
    used = {name: size for name, size in sizes.items() if name in pattern.split("->")[0]}
    return rearrange(np.asarray(theirs), pattern, **used)


def to_theirs(ours: list[np.ndarray], pattern: str, sizes: dict[str, int]) -> np.ndarray:
    """The inverse of `to_ours`: parts in the network's layout -> their tensor."""
    left, right = (side.strip() for side in pattern.split("->"))
    axes = right.split()[1:]
    parts = [x.reshape([sizes[a] for a in axes]) for x in ours]
    used = {name: size for name, size in sizes.items() if name in left}
    return np.ascontiguousarray(rearrange(np.stack(parts), f"{right} -> {left}", **used))


def theirs_shape(pattern: str, sizes: dict[str, int]) -> tuple[int, ...]:
    """The shape of their tensor: a size for each letter or bracket of the left side."""
    groups = re.findall(r"\([^)]*\)|\S+", pattern.split("->")[0])
    return tuple(
        int(np.prod([sizes[letter] for letter in group.strip("()").split()])) for group in groups
    )
