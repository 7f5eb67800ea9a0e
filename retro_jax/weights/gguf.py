"""Decoders from GGUF files: Llama (SmolLM too), Qwen2, Qwen3.

A file's fields become the config.json that Hugging Face would write, and its tensors have Hugging Face's names, so
that it is read as such a directory is. Weights are float32, made of the file's numbers when they are asked for.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from retro_jax.corpus import gguf
from retro_jax.errors import UserError
from retro_jax.model.positions import speeds
from retro_jax.weights import huggingface
from retro_jax.weights.families import Fields
from retro_jax.weights.pretrained import Pretrained

ARCHITECTURES = ("llama", "qwen2", "qwen3")
_TOP = {
    "token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head",
}  # fmt: skip
_LAYER = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm", "ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
# Pairs that turn less than once within 8,192 tokens turn slower, those that turn more than four times do not: so in all
# models of Llama 3.1 to 3.3 (config.json of meta-llama/Llama-3.1-8B and Llama-3.2-1B).
_LLAMA3 = (1.0, 4.0, 8192)
_SLOWER = "rope_freqs.weight"
_NAME = re.compile(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)")


def read(path: Path) -> Pretrained:
    """The decoder of a file.

    Raises:
      UserError: of another architecture, with a feature that is not supported, or damaged.
    """
    return huggingface.read(path, config_of(path), Tensors(path))


def config_of(path: Path) -> dict:
    """What a config.json of Hugging Face's would say; no weight is read.

    Raises:
      UserError: as `read`.
    """
    kind = gguf.field(path, "general.architecture")
    if kind not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise UserError(f"{path}: general.architecture = {kind!r} is not supported; known: {known}")

    def of(name: str, default=None):
        return gguf.field(path, f"{kind}.{name}", default)

    tensors = Tensors(path)
    said = Fields(
        path, {n: of(n) for n in ("expert_count", "rope.scaling.type", "rope.dimension_count")}
    )
    said.must("expert_count", 0, "a mixture of experts")
    scaling = said.get("rope.scaling.type")
    if scaling not in (None, "none", "linear"):
        said.refuse("rope.scaling.type", "rotary positions that are scaled so are not supported")
    d, heads = of("embedding_length"), of("attention.head_count")
    size = of("attention.key_length") or (d // heads if _both_counts(d, heads) else None)
    if said.get("rope.dimension_count") not in (None, size):
        said.refuse("rope.dimension_count", f"must be the size of a head, {size}")
    base = of("rope.freq_base", 10_000.0)
    scaled = {}
    if scaling == "linear":
        if tensors.slower is not None:
            said.refuse("rope.scaling.type", f"goes with no {_SLOWER}")
        scaled = {"rope_type": "linear", "factor": of("rope.scaling.factor")}
    elif tensors.slower is not None:
        scaled = _llama3(path, tensors.slower, base, size)
    return {
        "model_type": kind, "hidden_size": d, "num_hidden_layers": of("block_count"),
        "num_attention_heads": heads, "num_key_value_heads": of("attention.head_count_kv"), "head_dim": size,
        "intermediate_size": of("feed_forward_length"), "hidden_act": "silu",
        "rms_norm_eps": of("attention.layer_norm_rms_epsilon"), "rope_theta": base,
        "max_position_embeddings": of("context_length"), "vocab_size": tensors.rows,
        "attention_bias": kind == "llama" and "model.layers.0.self_attn.q_proj.bias" in tensors,
        "tie_word_embeddings": "lm_head.weight" not in tensors, "dtype": "float32",
        **{n: gguf.field(path, f"tokenizer.ggml.{n}") for n in ("bos_token_id", "eos_token_id")},
        **({"rope_scaling": scaled} if scaled else {}),
    }  # fmt: skip


def _llama3(path: Path, slower: np.ndarray, base: float, size: int) -> dict:
    """Llama 3.1's scaling of rotary positions, from what a file has of it: by how much slower each pair of a head's
    numbers turns.

    Raises:
      UserError: it is another scaling.
    """
    half, factor = len(slower), float(np.max(slower))
    ours = speeds(half, base) / speeds(half, base, (factor, *_LLAMA3))
    if 2 * half != size or not np.allclose(slower, ours, rtol=1e-3):
        raise UserError(
            f"{path}: rope_freqs.weight = [{', '.join(f'{x:.4g}' for x in slower[:4])}, ..]: rotary positions that are "
            "scaled so are not supported, only as Llama 3.1's are; convert the model's safetensors directory instead"
        )
    names = ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    return {"rope_type": "llama3", "factor": factor, **dict(zip(names, _LLAMA3))}


def _both_counts(*values) -> bool:
    return all(type(v) is int and v > 0 for v in values)


class Tensors(Mapping):
    """Hugging Face's name -> float32 array of a file, whatever the numbers in it are.

    Attributes:
      slower: by how much slower each pair of a head's numbers turns; None: not at all.

    Raises:
      UserError: of a tensor's array: its numbers are of a type that cannot be read.
    """

    def __init__(self, path: Path):
        kind = gguf.field(path, "general.architecture")
        found = {t.name: t for t in gguf.open_file(path).tensors}
        slower = found.pop(_SLOWER, None)
        self.slower = None if slower is None else np.asarray(slower.data, np.float32)
        self._path, self._found = path, {_theirs(name): t for name, t in found.items()}
        # llama.cpp turns neighbouring numbers of a head together, where Hugging Face turns its two halves.
        self._heads = {}
        if kind == "llama":
            heads = gguf.field(path, "llama.attention.head_count")
            read = gguf.field(path, "llama.attention.head_count_kv") or heads
            self._heads = {"q_proj": heads, "k_proj": read}

    def __getitem__(self, name: str) -> np.ndarray:
        from gguf.quants import dequantize

        tensor = self._found[name]
        try:
            made = dequantize(tensor.data, tensor.tensor_type).reshape(self.shape(name))
        except (NotImplementedError, KeyError) as error:
            raise UserError(
                f"{self._path}: {name} is of type {tensor.tensor_type.name}, which is not supported"
            ) from error
        except ValueError as error:
            raise UserError(
                f"{self._path}: {name} is damaged ({error}); fetch the file again"
            ) from error
        made = np.asarray(made, np.float32)
        heads = self._heads.get(name.split(".")[-2]) if name.count(".") > 1 else None
        if not heads:
            return made
        return made.reshape(heads, -1, 2, *made.shape[1:]).swapaxes(1, 2).reshape(made.shape)

    def __contains__(self, name: object) -> bool:  # Mapping's own would read the array
        return name in self._found

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of an array, without reading it."""
        return tuple(int(n) for n in reversed(self._found[name].shape))

    @property
    def rows(self) -> int | None:
        """Tokens of the vocabulary."""
        embedding = "model.embed_tokens.weight"
        return self.shape(embedding)[0] if embedding in self else None


def _theirs(name: str) -> str:
    """Hugging Face's name of a tensor; what it does not have keeps its own."""
    found = _NAME.fullmatch(name)
    if not found:
        return name
    layer, part, kind = found.groups()
    table = _TOP if layer is None else _LAYER
    if part not in table:
        return name
    return (f"model.layers.{layer}." if layer else "") + f"{table[part]}.{kind}"
