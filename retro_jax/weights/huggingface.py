"""Decoders from directories of Hugging Face: GPT-2, GPT-NeoX (Pythia), Llama, Mistral, Qwen2, Qwen3.

A file's token i is ours FIRST + i, as its tokenizer.json reads here (corpus/pretrained.py). BOS and EOS take
the rows of the file's own, which then nothing else uses; a file without a BOS begins texts with its EOS. What
is no token of the file (PAD, UNK, the vocabulary's padding) has a row of zeros, and a readout's bias that
keeps it from ever being predicted, so that probabilities are those of the file. Files of decoders that were
trained here have the tokens as they are here, and say so in config.json.
"""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from retro_jax.config import DecoderConfig, ModelConfig, ReadingConfig
from retro_jax.config.fields import binding
from retro_jax.corpus.tokenizer import BOS, EOS, PAD
from retro_jax.errors import UserError
from retro_jax.weights import family_configs, name_table, pretrained
from retro_jax.weights.families import FAMILIES, Family, Fields
from retro_jax.weights.name_table import Row, Weights
from retro_jax.weights.pretrained import Pretrained
from retro_jax.weights.tensors import Tensors

SAME_TOKENS = "retro_jax_tokens"  # a field of config.json
# Buffers of old versions: masks and angles, which follow from the config.
_BUFFERS = re.compile(r"\.(attn|attention)\.(bias|masked_bias)$|rotary_emb\.inv_freq$")


def read(path: Path, config: dict, tensors: Mapping) -> Pretrained:
    """The decoder of a directory with config.json and *.safetensors, or of what says the same in another way.

    tensors: its files' name -> array, with `shape(name)`.

    Raises:
      UserError: of another family, with a feature that is not supported, or damaged.
    """
    file = _says(path)
    family = _family(file, config)
    model = model_of(file, config)
    size = Fields(file, config).count("vocab_size")
    vocab, rows = vocabulary(path, config)

    def find(name: str) -> str:
        short = name.removeprefix(family.optional) if family.optional else name
        return name if name in tensors else short

    made = Weights(
        path, tensors, names(family, model.decoder), model, vocab, False, rows, size,
        {"embedding": family.embedding, "readout": family.readout}, find,
        lambda name: bool(_BUFFERS.search(name)),
    )  # fmt: skip
    dtype = pretrained.dtype_of(config, file)
    return Pretrained(path, config["model_type"], model, vocab, False, dtype, made.read)


def _says(path: Path) -> Path:
    """The file that has the config: of a directory its config.json, of a GGUF file that file."""
    return path if path.is_file() else path / "config.json"


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
    family, here = _family(file, config), file.parent
    # (GPT-2's is always the embedding, and files may hold it twice.)
    silent = "tie_word_embeddings" not in config and config["model_type"] != "gpt2"
    if silent and any(here.glob("*.safetensors")):
        config = config | {"tie_word_embeddings": family.readout not in Tensors(here)}
    fields = family.model(Fields(file, config))
    shifted = config.get(SAME_TOKENS) is not True
    decoder = DecoderConfig(**fields, scale_embedding=False, readout_bias=shifted)
    return ModelConfig(decoder=decoder, reading=ReadingConfig(cca_layers=(1,)))


def vocabulary(path: Path, config: dict) -> tuple[int, np.ndarray | None]:
    """How many tokens there are here, and [V] which row of the file's each has, -1 being none; or None, if they
    are the same. No weights need to be there.
    """
    fields = Fields(_says(path), config)
    size = fields.count("vocab_size")
    if fields.get(SAME_TOKENS) is True:
        return size, None
    vocab = name_table.vocabulary_size(path, size)
    eos, bos = (_token(fields, name, size) for name in ("eos_token_id", "bos_token_id"))
    if eos is None:
        fields.refuse("eos_token_id", f"must be a token of the {size}, which ends documents")
    return vocab, name_table.vocabulary(vocab, size, bos, eos)


def _token(fields: Fields, name: str, size: int) -> int | None:
    value = fields.get(name)
    value = value[0] if isinstance(value, list) and value else value
    return value if type(value) is int and 0 <= value < size else None


def names(family: Family, decoder: DecoderConfig) -> list[Row]:
    """The family's table for all layers, with whole names."""
    rows = list(family.top)
    for number in range(decoder.layers):
        rows += name_table.below(family.layers, family.layer.format(number), f"layers.{number}.")
    return rows


def config_of(decoder: DecoderConfig, vocab: int) -> dict:
    """The config.json of a decoder that was trained here, whose tokens are the file's as they are.

    Raises:
      UserError: no family has such a decoder.
    """
    same = {"kv_heads": decoder.kv_heads or decoder.heads, "ffw": decoder.ffw or 4 * decoder.d}
    decoder = dataclasses.replace(decoder, **same)
    wanted, nearest = binding(decoder, "model.decoder."), None
    for kind in FAMILIES:
        config = family_configs.config(kind, decoder) | {
            "vocab_size": vocab,
            "bos_token_id": BOS,
            "eos_token_id": EOS,
            "pad_token_id": PAD,
            SAME_TOKENS: True,
        }
        try:
            made = binding(model_of(Path(kind), config).decoder, "model.decoder.")
        except UserError:
            continue
        differing = {name: value for name, value in wanted.items() if made[name] != value}
        if not differing:
            return config
        if nearest is None or len(differing) < len(nearest[1]):
            nearest = kind, differing
    kind, differing = nearest
    what = ", ".join(f"{name} = {value!r}" for name, value in differing.items())
    raise UserError(
        f"no family of Hugging Face's has such a decoder ({what}: not of the nearest, {kind}); export "
        "without --decoder"
    )
