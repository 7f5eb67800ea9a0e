"""Decoders from directories of Hugging Face: GPT-2, GPT-NeoX (Pythia), Llama, Mistral, Qwen2, Qwen3.

A file's token i is ours FIRST + i, as its tokenizer.json reads here (corpus/pretrained.py). BOS and EOS take
the rows of the file's own, which then nothing else uses; a file without a BOS begins texts with its EOS. What
is no token of the file (PAD, UNK, the vocabulary's padding) has a row of zeros, and a readout's bias that
keeps it from ever being predicted, so that probabilities are those of the file.
"""

import re
from pathlib import Path

import numpy as np

from retro_jax.config import ModelConfig
from retro_jax.corpus.pretrained import FIRST, PretrainedTokenizer, padded
from retro_jax.errors import UserError
from retro_jax.interop import pretrained, table
from retro_jax.interop.families import FAMILIES, Family, Fields
from retro_jax.interop.pretrained import Pretrained
from retro_jax.interop.table import Row, Weights
from retro_jax.interop.tensors import Tensors

# Buffers of old versions: masks and angles, which follow from the config.
_BUFFERS = re.compile(r"\.(attn|attention)\.(bias|masked_bias)$|rotary_emb\.inv_freq$")


def read(path: Path, config: dict) -> Pretrained:
    """The decoder of a directory with config.json and *.safetensors.

    Raises:
      UserError: of another family, with a feature that is not supported, or damaged.
    """
    file = path / "config.json"
    family, tensors = _family(file, config), Tensors(path)
    config = {"tie_word_embeddings": family.readout not in tensors} | config
    model = model_of(file, config)
    fields = Fields(file, config)
    size = fields.count("vocab_size")
    vocab, rows = vocabulary(path, fields, size)

    def find(name: str) -> str:
        short = name.removeprefix(family.optional) if family.optional else name
        return name if name in tensors else short

    made = Weights(
        path, tensors, names(family, model), model, vocab, False, rows, size,
        {"embedding": family.embedding, "readout": family.readout}, find,
        lambda name: bool(_BUFFERS.search(name)),
    )  # fmt: skip
    dtype = pretrained.dtype_of(config, file)
    return Pretrained(path, config["model_type"], model, vocab, False, dtype, made.read)


def _family(file: Path, config: dict) -> Family:
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise UserError(
            f"{file}: model_type = {kind!r} is not supported; known: {', '.join(FAMILIES)}"
        )
    return FAMILIES[kind]


def model_of(file: Path, config: dict) -> ModelConfig:
    """What a config.json says of the network; cross-attention has its defaults."""
    if config.get("quantization_config"):
        raise UserError(f"{file}: quantization_config: quantised weights are not supported")
    fields = _family(file, config).model(Fields(file, config))
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
    return vocab, table.vocabulary(vocab, size, bos, eos)


def _token(fields: Fields, name: str, size: int) -> int | None:
    value = fields.get(name)
    value = value[0] if isinstance(value, list) and value else value
    return value if type(value) is int and 0 <= value < size else None


def names(family: Family, model: ModelConfig) -> list[Row]:
    """The family's table for all layers, with whole names."""
    rows = list(family.top)
    for number in range(model.layers):
        begin, ours = family.layer.format(number), f"layers.{number}."
        rows += [
            (begin + n, pattern, tuple(ours + o for o in own)) for n, pattern, own in family.layers
        ]
    return rows
