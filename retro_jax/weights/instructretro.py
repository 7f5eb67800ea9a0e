"""NVIDIA's InstructRetro (Wang et al. 2023, arXiv 2310.07713) from its public checkpoints, as a whole RETRO.

`nvidia/retro-8b-base-4k`, `retro-8b-instruct-4k`, `retro-48b-*`: Megatron-LM's legacy format, which megatron.py
reads without running anything of it. What differs from the paper's network are options of ours: no positions
where it reads, no norm after the encoder, which is told the chunk as the first cross-attention's norm gives it
and also attends the zeros that fill a chunk up. Its first chunk is the short one: a text whose length is no
multiple of the chunk needs padding before it, to be computed as there.

Token i of its tokenizer is ours FIRST + i (corpus/pretrained.py); put its tokenizer.json into the directory.
BOS and EOS are taken to be 1 and 2, as SentencePiece numbers them.
"""

import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from retro_jax.config import DecoderConfig, EncoderConfig, ModelConfig, ReadingConfig
from retro_jax.errors import UserError
from retro_jax.weights import megatron, name_table
from retro_jax.weights.families import Fields
from retro_jax.weights.name_table import Row, Weights
from retro_jax.weights.pretrained import Pretrained

KIND = "instructretro"
_BOS, _EOS = 1, 2
_EMBEDDING, _READOUT = "embedding.word_embeddings.weight", "output_layer.weight"
# What the network must have been trained with, and how Megatron's arguments say so.
_NEEDED = {
    "swiglu": True, "add_bias_linear": False, "apply_layernorm_1p": True,
    "untie_embeddings_and_output_weights": True, "group_query_attention": False,
    "use_rotary_position_embeddings": True, "normalization": "LayerNorm",
    "apply_residual_connection_post_layernorm": False, "rotary_interleaved": False,
    "rotary_seq_len_interpolation_factor": None,
}  # fmt: skip


def read(path: Path) -> Pretrained:
    """The RETRO of a directory.

    Raises:
      UserError: it is damaged, or has what is not supported.
    """
    args, tensors = megatron.read(path)
    model = _model(path, args, tensors)
    size = tensors.shape(_EMBEDDING)[0]
    vocab = name_table.vocabulary_size(path, size)
    rows = name_table.vocabulary(vocab, size, _BOS, _EOS)
    tables = {"embedding": _EMBEDDING, "readout": _READOUT}
    made = Weights(path, tensors, names(model), model, vocab, True, rows, size, tables)
    kind = tensors["final_norm.weight"].dtype
    dtype = kind if kind == jnp.bfloat16 else np.dtype(np.float32)
    return Pretrained(path, KIND, model, vocab, True, dtype, made.read)


def _model(path: Path, args: dict, tensors) -> ModelConfig:
    """The network: what shapes tell, from the shapes; the rest from Megatron's arguments."""
    for name in (_EMBEDDING, "final_norm.weight", "layers.0.mlp.dense_4h_to_h.weight"):
        if name not in tensors:
            raise UserError(f"{path}: the checkpoint holds no {name}: no RETRO of Megatron-LM's")
    fields = Fields(f"{path}: the checkpoint's arguments", args)
    for name, value in _NEEDED.items():
        fields.must(name, value, "this")

    def numbers(pattern: str) -> list[int]:
        found = (re.fullmatch(pattern, name) for name in tensors)
        return sorted({int(match[1]) for match in found if match})

    layers = numbers(r"layers\.(\d+)\.input_norm\.weight")
    crossing = numbers(r"layers\.(\d+)\.inter_attention\.query\.weight")
    for name, found in (("layers", layers), ("cross-attention", crossing)):
        if not found:
            raise UserError(f"{path}: the checkpoint holds no {name}: no RETRO of Megatron-LM's")
    inside = rf"layers\.{crossing[0]}\.retriever\.layers\.(\d+)\."
    own_layers = numbers(inside + r"input_norm\.weight")
    own_crossing = numbers(inside + r"inter_attention\.query\.weight")
    d, heads = tensors.shape("final_norm.weight")[0], fields.count("num_attention_heads")
    size = fields.count("kv_channels", max(1, d // heads))
    ffw = tensors.shape("layers.0.mlp.dense_4h_to_h.weight")[-1]
    chunk = fields.count("retro_gpt_chunk_length", 64)
    decoder = DecoderConfig(
        d=d, layers=len(layers), heads=heads, kv_heads=heads, head_size=size, ffw=ffw,
        positions="rotary", rotary_share=fields.number("rotary_percent", 1.0),
        rotary_base=fields.number("rotary_base", 10_000.0),
        norm="layer", norm_bias=True, norm_unit_offset=True,
        norm_eps=fields.number("layernorm_epsilon", fields.number("norm_epsilon", 1e-5)),
        activation="silu", gated=True, tied=False, readout_bias=True, scale_embedding=False,
    )  # fmt: skip
    encoder = EncoderConfig(
        d=d, layers=len(own_layers), heads=heads, head_size=size, ffw=ffw,
        cross_layers=tuple(i + 1 for i in own_crossing), share_embedding=True, final_norm=False,
    )  # fmt: skip
    reading = ReadingConfig(
        chunk=chunk, retrieved=2 * chunk, cca_layers=tuple(i + 1 for i in crossing),
        positions="none", normed_chunk=True, filled_chunk=True,
    )  # fmt: skip
    return ModelConfig(decoder, encoder, reading)


def _norm(theirs: str, ours: str) -> list[Row]:
    return [
        (f"{theirs}.weight", "d -> 1 d", (f"{ours}.scale",)),
        (f"{theirs}.bias", "d -> 1 d", (f"{ours}.shift_bias",)),
    ]


def _layer(cross: str) -> list[Row]:
    """A layer's table; cross: what its cross-attention is called here, if it has one.

    Megatron names norms after what comes before them: that before the feed-forward is
    post_attention_norm, or post_inter_attention_norm where a cross-attention stands between.
    """
    rows = [
        *_norm("input_norm", "attention_norm"),
        ("self_attention.query_key_value.weight", "(n p h) d -> p d n h",
         ("attention.query", "attention.key", "attention.value")),
        ("self_attention.dense.weight", "d (n h) -> 1 n h d", ("attention.out",)),
        ("mlp.dense_h_to_4h.weight", "(p f) d -> p d f", ("feed_forward.gate", "feed_forward.up")),
        ("mlp.dense_4h_to_h.weight", "d f -> 1 f d", ("feed_forward.down",)),
    ]  # fmt: skip
    if not cross:
        return rows + _norm("post_attention_norm", "norm")
    own = f"{cross}.attention"
    return [
        *rows,
        *_norm("post_attention_norm", f"{cross}.norm"),
        *_norm("post_inter_attention_norm", "norm"),
        ("inter_attention.query.weight", "(n h) d -> 1 d n h", (f"{own}.query",)),
        (
            "inter_attention.key_value.weight",
            "(n p h) d -> p d n h",
            (f"{own}.key", f"{own}.value"),
        ),
        ("inter_attention.dense.weight", "d (n h) -> 1 n h d", (f"{own}.out",)),
    ]


def names(model: ModelConfig) -> list[Row]:
    """The whole table."""
    rows = _norm("final_norm", "norm")
    for number in range(model.decoder.layers):
        cross = "cca" if number + 1 in model.reading.cca_layers else ""
        rows += name_table.below(_layer(cross), f"layers.{number}.", f"layers.{number}.")
    first = model.reading.cca_layers[0] - 1
    for number in range(model.encoder.layers):
        cross = "cross" if number + 1 in model.encoder.cross_layers else ""
        theirs = f"layers.{first}.retriever.layers.{number}."
        rows += name_table.below(_layer(cross), theirs, f"encoder.layers.{number}.")
    return rows
