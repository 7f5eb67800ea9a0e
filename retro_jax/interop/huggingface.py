"""Decoders from directories of Hugging Face: GPT-2, GPT-NeoX (Pythia), Llama, Mistral, Qwen2, Qwen3.

A file's token i is ours FIRST + i, as its tokenizer.json reads here (corpus/pretrained.py). BOS and EOS take
the rows of the file's own, which then nothing else uses; a file without a BOS begins texts with its EOS. What
is no token of the file (PAD, UNK, the vocabulary's padding) has a row of zeros, and a readout's bias that
keeps it from ever being predicted, so that probabilities are those of the file.
"""

import re
from pathlib import Path

import numpy as np
from einops import EinopsError, rearrange

from retro_jax.config import ModelConfig
from retro_jax.corpus.pretrained import FIRST, PretrainedTokenizer, padded
from retro_jax.corpus.tokenizer import BOS, EOS
from retro_jax.errors import UserError
from retro_jax.interop import pretrained
from retro_jax.interop.families import FAMILIES, Family, Fields
from retro_jax.interop.pretrained import NEVER, Pretrained
from retro_jax.interop.tensors import Tensors

# Buffers of old versions: masks and angles, which follow from the config.
_BUFFERS = re.compile(r"\.(attn|attention)\.(bias|masked_bias)$|rotary_emb\.inv_freq$")


def read(path: Path, config: dict) -> Pretrained:
    """The decoder of a directory with config.json and *.safetensors.

    Raises:
      UserError: of another family, with a feature that is not supported, or damaged.
    """
    file, kind = path / "config.json", config.get("model_type")
    if kind not in FAMILIES:
        raise UserError(
            f"{file}: model_type = {kind!r} is not supported; known: {', '.join(FAMILIES)}"
        )
    if config.get("quantization_config"):
        raise UserError(f"{file}: quantization_config: quantised weights are not supported")
    family, tensors = FAMILIES[kind], Tensors(path)
    config = {"tie_word_embeddings": family.readout not in tensors} | config
    model = model_of(file, config)
    fields = Fields(file, config)
    size = fields.count("vocab_size")
    vocab, rows = vocabulary(path, fields, size)
    found = _Weights(path, family, tensors, model, vocab, rows, size)
    dtype = pretrained.dtype_of(config, file)
    identity = pretrained.identity(config, tensors.about())
    return Pretrained(path, kind, model, vocab, False, dtype, identity, found.read)


def model_of(file: Path, config: dict) -> ModelConfig:
    """What a config.json says of the network; cross-attention has its defaults."""
    fields = FAMILIES[config["model_type"]].model(Fields(file, config))
    return ModelConfig(**fields, scale_embedding=False, readout_bias=True, cca_layers=(1,))


def vocabulary(path: Path, fields: Fields, size: int) -> tuple[int, np.ndarray]:
    """How many tokens there are here, and [V] which row of the file's each has, -1 being none.

    size: rows of the file. With the directory's tokenizer.json the vocabulary is the tokenizer's.
    """
    vocab, file = padded(FIRST + size), path / "tokenizer.json"
    if file.is_file():
        tokenizer = PretrainedTokenizer(file.read_bytes(), str(file))
        vocab = tokenizer.vocab
        if tokenizer.byte_counts[FIRST + size :].any():
            raise UserError(f"{file}: has tokens past vocab_size = {size} of config.json")
    eos, bos = (_token(fields, name, size) for name in ("eos_token_id", "bos_token_id"))
    if eos is None:
        fields.refuse("eos_token_id", f"must be a token of the {size}, which ends documents")
    rows = np.full(vocab, -1)
    known = min(size, vocab - FIRST)
    rows[FIRST : FIRST + known] = np.arange(known)
    rows[EOS], rows[BOS] = eos, eos if bos is None else bos
    for token in (eos, bos):
        if token is not None and FIRST + token < vocab:
            rows[FIRST + token] = -1
    return vocab, rows


def _token(fields: Fields, name: str, size: int) -> int | None:
    value = fields.get(name)
    value = value[0] if isinstance(value, list) and value else value
    return value if type(value) is int and 0 <= value < size else None


class _Weights:
    """The tensors of a directory as the network's weights."""

    def __init__(self, path, family: Family, tensors: Tensors, model, vocab, rows, size):
        self._path, self._family, self._tensors = path, family, tensors
        self._model, self._vocab, self._rows, self._size = model, vocab, rows, size
        self._shapes = pretrained.shapes(model, vocab, False)
        self._sizes = letters(model)
        self._from = {}  # our name -> (their name, pattern, which part)
        for begin, theirs, rows_ in self._tables():
            for name, pattern, ours in rows_:
                for part, own in enumerate(ours):
                    if begin + own in self._shapes:
                        self._from[begin + own] = (theirs + name, pattern, part, len(ours))
        self._check()

    def _tables(self):
        yield "", "", self._family.top
        for number in range(self._model.layers):
            yield f"layers.{number}.", self._family.layer.format(number), self._family.layers

    def _check(self):
        """That all are there, of the shapes that config.json implies, and nothing else."""
        family, sizes = self._family, self._sizes
        d = self._model.d
        wanted = {family.embedding: (self._size, d)}
        if not self._model.tied:
            wanted[family.readout] = (self._size, d)
        for name, pattern, _, parts in self._from.values():
            wanted[name] = theirs_shape(pattern, sizes | {"p": parts})
        for name, shape in wanted.items():
            held = self._tensors.shape(self._find(name))
            if held != shape:
                raise UserError(
                    f"{self._path}: {name} is {list(held)}, but config.json implies {list(shape)}"
                )
        known = {self._find(name) for name in wanted} | {family.readout}
        for name in self._tensors:
            if name not in known and not _BUFFERS.search(name):
                raise UserError(
                    f"{self._path}: holds {name}, which a model of this kind does not have: another "
                    "architecture, or weights of an adapter, which have to be merged first"
                )

    def _find(self, name: str) -> str:
        """The name as the files have it."""
        short = name.removeprefix(self._family.optional) if self._family.optional else name
        for each in (name, short):
            if each in self._tensors:
                return each
        raise UserError(
            f"{self._path}: the files hold no {name}, which config.json implies; fetch or save it again"
        )

    def read(self, name: str) -> np.ndarray:
        """A weight by its name; see `Pretrained`."""
        if name == "readout_bias":
            return np.where(self._rows < 0, NEVER, 0).astype(np.float32)
        if name in ("embedding", "readout"):
            theirs = self._tensors[self._find(getattr(self._family, name))]
            made = theirs[np.maximum(self._rows, 0)]
            made[self._rows < 0] = 0
            return made
        theirs, pattern, part, parts = self._from[name]
        made = to_ours(self._tensors[self._find(theirs)], pattern, self._sizes | {"p": parts})
        return made[part].reshape(self._shapes[name])


def letters(model: ModelConfig) -> dict[str, int]:
    """What the letters of a pattern stand for."""
    n = model.kv_heads or model.heads
    return {
        "n": n, "a": model.heads // n, "h": model.head_size, "d": model.d,
        "f": model.ffw or 4 * model.d, "t": model.max_length,
    }  # fmt: skip


def to_ours(theirs: np.ndarray, pattern: str, sizes: dict[str, int]) -> np.ndarray:
    """Their tensor -> [p, ...] ours, a view of it."""
    used = {name: size for name, size in sizes.items() if name in pattern.split("->")[0]}
    try:
        return rearrange(np.asarray(theirs), pattern, **used)
    except EinopsError as error:
        raise UserError(f"a tensor {list(theirs.shape)} is not {pattern} of {used}") from error


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
