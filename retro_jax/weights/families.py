"""The families of decoders that Hugging Face's directories hold, each as a DecoderConfig and a table of names.

A table's rows, and the letters of its patterns, are those of name_table.py.
"""

from collections.abc import Callable
from dataclasses import dataclass

from retro_jax.errors import UserError
from retro_jax.weights.name_table import Row

ACTIVATIONS = {
    "gelu": "gelu_exact", "gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "gelu_fast": "gelu",
    "relu": "relu", "silu": "silu", "swish": "silu",
}  # fmt: skip
MOST = 2**24  # of any width, count or length; more is a damaged file


class Fields:
    """A config.json: its fields, of the types that they must have.

    Every method raises UserError that names the file, the field, its value, and what can be read.
    """

    def __init__(self, path, values: dict):
        self._path, self._values = path, values

    def refuse(self, name: str, why: str):
        """Says that a field's value cannot be read."""
        raise UserError(f"{self._path}: {name} = {self._values.get(name)!r}: {why}")

    def count(self, name: str, default: int | None = None, most: int = MOST) -> int:
        """A positive integer."""
        value = self._values.get(name)
        value = default if value is None else value
        if type(value) is not int or not 0 < value <= most:
            self.refuse(name, f"must be a number from 1 to {most:,}")
        return value

    def layers(self, name: str) -> int:
        """How many layers there are."""
        return self.count(name, most=10_000)

    def number(self, name: str, default: float) -> float:
        """A positive number."""
        value = self._values.get(name, default)
        if type(value) not in (int, float) or not 0 < value < 1e30:
            self.refuse(name, "must be a positive number")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """True or false."""
        value = self._values.get(name, default)
        if type(value) is not bool:
            self.refuse(name, "must be true or false")
        return value

    def get(self, name: str):
        """Whatever the field holds, or None."""
        return self._values.get(name)

    def activation(self, *names: str) -> str:
        """Ours of the first field that is there."""
        name = next((n for n in names if self._values.get(n) is not None), names[0])
        if not isinstance(self._values.get(name), str) or self._values[name] not in ACTIVATIONS:
            self.refuse(name, f"this activation is not supported; known: {', '.join(ACTIVATIONS)}")
        return ACTIVATIONS[self._values[name]]

    def must(self, name: str, allowed, feature: str):
        """Refuses a field whose value switches on what is not supported."""
        if self._values.get(name, allowed) not in (allowed, None):
            self.refuse(name, f"{feature} is not supported")

    def rotary(self, share: str | None = None) -> dict:
        """Fields of DecoderConfig about rotary positions, as transformers 5 writes them or as 4 did."""
        own = self._values.get("rope_parameters") or {}
        scaling = self._values.get("rope_scaling") or own
        name = "rope_scaling" if self._values.get("rope_scaling") else "rope_parameters"
        if not isinstance(own, dict) or not isinstance(scaling, dict):
            self.refuse(name, "must be an object with rope_type")
        inner = Fields(f"{self._path}: {name}", own | scaling)
        kind, factors = scaling.get("rope_type", scaling.get("type", "default")), ()
        if kind == "linear":
            factors = (inner.number("factor", 0),)
        elif kind == "llama3":
            names = ("factor", "low_freq_factor", "high_freq_factor")
            factor, low, high = (inner.number(name, 0) for name in names)
            if high <= low:
                inner.refuse("high_freq_factor", f"must be more than low_freq_factor = {low}")
            factors = (factor, low, high, inner.number("original_max_position_embeddings", 0))
        elif kind != "default":
            self.refuse(name, f"rotary positions of type {kind!r} are not supported")
        # GPT-NeoX calls it rotary_emb_base.
        old = next(
            (n for n in ("rope_theta", "rotary_emb_base") if n in self._values), "rope_theta"
        )
        where, field = (inner, "rope_theta") if "rope_theta" in own else (self, old)
        found = {"rotary_base": where.number(field, 10_000.0), "rotary_scaling": factors}
        if share:
            where, field = (
                (self, share) if share in self._values else (inner, "partial_rotary_factor")
            )
            found["rotary_share"] = where.number(field, 0.25)
        return found | {"positions": "rotary"}

    def window(self, default: int | None) -> int:
        """Tokens that attention looks back on, 0 being all: up to so many, a sequence is the same."""
        window = self._values.get("sliding_window", default)
        layers = self._values.get("layer_types") or ()
        if not isinstance(layers, list | tuple) or {*map(str, layers)} - {
            "full_attention",
            "sliding_attention",
        }:
            self.refuse("layer_types", "only full_attention and sliding_attention are supported")
        off = default is None and not self.flag("use_sliding_window", False)
        off = off or (layers and "sliding_attention" not in layers)
        return 0 if window is None or off else self.count("sliding_window", default)


def _gpt2(f: Fields) -> dict:
    f.must("scale_attn_weights", True, "attention that is not scaled")
    f.must("scale_attn_by_inverse_layer_idx", False, "attention scaled by layer")
    f.must("add_cross_attention", False, "cross-attention")
    f.must("tie_word_embeddings", True, "a GPT-2 with a readout of its own")
    d, heads = f.count("n_embd"), f.count("n_head")
    if d % heads:
        f.refuse("n_embd", f"must be a multiple of n_head = {heads}")
    return {
        "d": d, "layers": f.layers("n_layer"), "heads": heads, "kv_heads": heads,
        "head_size": d // heads, "ffw": f.count("n_inner", 4 * d),
        "positions": "learned", "max_length": f.count("n_positions"),
        "norm": "layer", "norm_bias": True, "norm_eps": f.number("layer_norm_epsilon", 1e-5),
        "activation": f.activation("activation_function"),
        "qkv_bias": True, "out_bias": True, "ffw_bias": True, "tied": True,
    }  # fmt: skip


_GPT2 = (
    ("ln_1.weight", "d -> 1 d", ("attention_norm.scale",)),
    ("ln_1.bias", "d -> 1 d", ("attention_norm.shift_bias",)),
    ("attn.c_attn.weight", "d (p n h) -> p d n h",
     ("attention.query", "attention.key", "attention.value")),
    ("attn.c_attn.bias", "(p n h) -> p n h",
     ("attention.query_bias", "attention.key_bias", "attention.value_bias")),
    ("attn.c_proj.weight", "(n a h) d -> 1 n a h d", ("attention.out",)),
    ("attn.c_proj.bias", "d -> 1 d", ("attention.out_bias",)),
    ("ln_2.weight", "d -> 1 d", ("norm.scale",)),
    ("ln_2.bias", "d -> 1 d", ("norm.shift_bias",)),
    ("mlp.c_fc.weight", "d f -> 1 d f", ("feed_forward.up",)),
    ("mlp.c_fc.bias", "f -> 1 f", ("feed_forward.up_bias",)),
    ("mlp.c_proj.weight", "f d -> 1 f d", ("feed_forward.down",)),
    ("mlp.c_proj.bias", "d -> 1 d", ("feed_forward.down_bias",)),
)  # fmt: skip


def _neox(f: Fields) -> dict:
    d, heads = f.count("hidden_size"), f.count("num_attention_heads")
    if d % heads:
        f.refuse("hidden_size", f"must be a multiple of num_attention_heads = {heads}")
    bias = f.flag("attention_bias", True)
    return {
        "d": d, "layers": f.layers("num_hidden_layers"), "heads": heads, "kv_heads": heads,
        "head_size": d // heads, "ffw": f.count("intermediate_size", 4 * d),
        **f.rotary("rotary_pct"),
        "norm": "layer", "norm_bias": True, "norm_eps": f.number("layer_norm_eps", 1e-5),
        "activation": f.activation("hidden_act"), "parallel": f.flag("use_parallel_residual", True),
        "qkv_bias": bias, "out_bias": bias, "ffw_bias": True,
        "tied": f.flag("tie_word_embeddings", False),
    }  # fmt: skip


_NEOX = (
    ("input_layernorm.weight", "d -> 1 d", ("attention_norm.scale",)),
    ("input_layernorm.bias", "d -> 1 d", ("attention_norm.shift_bias",)),
    ("attention.query_key_value.weight", "(n p h) d -> p d n h",
     ("attention.query", "attention.key", "attention.value")),
    ("attention.query_key_value.bias", "(n p h) -> p n h",
     ("attention.query_bias", "attention.key_bias", "attention.value_bias")),
    ("attention.dense.weight", "d (n a h) -> 1 n a h d", ("attention.out",)),
    ("attention.dense.bias", "d -> 1 d", ("attention.out_bias",)),
    ("post_attention_layernorm.weight", "d -> 1 d", ("norm.scale",)),
    ("post_attention_layernorm.bias", "d -> 1 d", ("norm.shift_bias",)),
    ("mlp.dense_h_to_4h.weight", "f d -> 1 d f", ("feed_forward.up",)),
    ("mlp.dense_h_to_4h.bias", "f -> 1 f", ("feed_forward.up_bias",)),
    ("mlp.dense_4h_to_h.weight", "d f -> 1 f d", ("feed_forward.down",)),
    ("mlp.dense_4h_to_h.bias", "d -> 1 d", ("feed_forward.down_bias",)),
)  # fmt: skip


def _llama(f: Fields) -> dict:
    """Llama, Mistral, Qwen2 and Qwen3: they differ in biases, windows and norms of heads."""
    d, heads = f.count("hidden_size"), f.count("num_attention_heads")
    kv_heads = f.count("num_key_value_heads", heads)
    if heads % kv_heads:
        f.refuse("num_key_value_heads", f"must divide num_attention_heads = {heads}")
    if f.get("head_dim") is None and d % heads:
        f.refuse("hidden_size", f"must be a multiple of num_attention_heads = {heads}")
    kind = f.get("model_type")
    f.must("mlp_bias", False, "a feed-forward with biases and a gate")
    bias = kind in ("llama", "qwen3") and f.flag("attention_bias", False)
    # Mistral's window is on if nothing is said, Qwen's off; Llama has none.
    window = 0 if kind == "llama" else f.window(4096 if kind == "mistral" else None)
    return {
        "d": d, "layers": f.layers("num_hidden_layers"), "heads": heads, "kv_heads": kv_heads,
        "head_size": f.count("head_dim", max(1, d // heads)), "ffw": f.count("intermediate_size"),
        **f.rotary(), "max_length": window,
        "norm": "rms", "norm_eps": f.number("rms_norm_eps", 1e-6),
        "activation": f.activation("hidden_act"), "gated": True,
        "qkv_bias": bias or kind == "qwen2", "out_bias": bias,
        "qk_norm": kind == "qwen3", "tied": f.flag("tie_word_embeddings", False),
    }  # fmt: skip


_LLAMA = (
    ("input_layernorm.weight", "d -> 1 d", ("attention_norm.scale",)),
    ("self_attn.q_proj.weight", "(n a h) d -> 1 d n a h", ("attention.query",)),
    ("self_attn.k_proj.weight", "(n h) d -> 1 d n h", ("attention.key",)),
    ("self_attn.v_proj.weight", "(n h) d -> 1 d n h", ("attention.value",)),
    ("self_attn.o_proj.weight", "d (n a h) -> 1 n a h d", ("attention.out",)),
    ("self_attn.q_proj.bias", "(n a h) -> 1 n a h", ("attention.query_bias",)),
    ("self_attn.k_proj.bias", "(n h) -> 1 n h", ("attention.key_bias",)),
    ("self_attn.v_proj.bias", "(n h) -> 1 n h", ("attention.value_bias",)),
    ("self_attn.o_proj.bias", "d -> 1 d", ("attention.out_bias",)),
    ("self_attn.q_norm.weight", "h -> 1 h", ("attention.query_norm.scale",)),
    ("self_attn.k_norm.weight", "h -> 1 h", ("attention.key_norm.scale",)),
    ("post_attention_layernorm.weight", "d -> 1 d", ("norm.scale",)),
    ("mlp.gate_proj.weight", "f d -> 1 d f", ("feed_forward.gate",)),
    ("mlp.up_proj.weight", "f d -> 1 d f", ("feed_forward.up",)),
    ("mlp.down_proj.weight", "d f -> 1 f d", ("feed_forward.down",)),
)  # fmt: skip


@dataclass(frozen=True)
class Family:
    """One way in which decoders are written down."""

    model: Callable[[Fields], dict]  # fields of DecoderConfig
    layer: str  # what begins the names of a layer, {} being its number from 0
    layers: tuple[Row, ...]
    top: tuple[Row, ...]
    embedding: str
    readout: str  # of a model whose readout is not its embedding
    optional: str = ""  # what files may leave out before every name but the readout's


_DECODER = Family(
    _llama, "model.layers.{}.", _LLAMA, (("model.norm.weight", "d -> 1 d", ("norm.scale",)),),
    "model.embed_tokens.weight", "lm_head.weight",
)  # fmt: skip
FAMILIES = {
    "gpt2": Family(
        _gpt2, "transformer.h.{}.", _GPT2,
        (
            ("transformer.wpe.weight", "t d -> 1 t d", ("positions",)),
            ("transformer.ln_f.weight", "d -> 1 d", ("norm.scale",)),
            ("transformer.ln_f.bias", "d -> 1 d", ("norm.shift_bias",)),
        ),
        "transformer.wte.weight", "lm_head.weight", "transformer.",
    ),
    "gpt_neox": Family(
        _neox, "gpt_neox.layers.{}.", _NEOX,
        (
            ("gpt_neox.final_layer_norm.weight", "d -> 1 d", ("norm.scale",)),
            ("gpt_neox.final_layer_norm.bias", "d -> 1 d", ("norm.shift_bias",)),
        ),
        "gpt_neox.embed_in.weight", "embed_out.weight", "gpt_neox.",
    ),
    "llama": _DECODER, "mistral": _DECODER, "qwen2": _DECODER, "qwen3": _DECODER,
}  # fmt: skip
