"""The config.json that each family of Hugging Face's would write of a decoder that was trained here."""

from retro_jax.config import DecoderConfig
from retro_jax.weights.families import ACTIVATIONS

ARCHITECTURES = {
    "gpt2": "GPT2LMHeadModel", "gpt_neox": "GPTNeoXForCausalLM", "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM",
}  # fmt: skip


def config(kind: str, m: DecoderConfig) -> dict:
    """The config.json of a decoder as a family would write it, its vocabulary aside. It says what it can: read
    again, it may be another decoder."""
    # (The first of several names for the same.)
    names = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
    both = {
        "model_type": kind,
        "architectures": [ARCHITECTURES[kind]],
        "tie_word_embeddings": m.tied,
    }
    if kind == "gpt2":
        return both | {
            "n_embd": m.d, "n_layer": m.layers, "n_head": m.heads, "n_inner": m.ffw or 4 * m.d,
            "n_positions": max(1, m.max_length), "layer_norm_epsilon": m.norm_eps,
            "activation_function": names[m.activation],
        }  # fmt: skip
    both |= {
        "hidden_size": m.d, "num_hidden_layers": m.layers, "num_attention_heads": m.heads,
        "intermediate_size": m.ffw or 4 * m.d, "hidden_act": names[m.activation],
        "max_position_embeddings": m.max_length or 2**17, "attention_bias": m.out_bias,
        **_rope(m),
    }  # fmt: skip
    if kind == "gpt_neox":
        parallel = {"use_parallel_residual": m.parallel, "rotary_pct": m.rotary_share}
        return both | parallel | {"layer_norm_eps": m.norm_eps}
    window = {"sliding_window": m.max_length or None, "use_sliding_window": m.max_length > 0}
    return both | (window if kind != "llama" else {}) | {
        "num_key_value_heads": m.kv_heads or m.heads, "head_dim": m.head_size,
        "rms_norm_eps": m.norm_eps, "mlp_bias": False,
    }  # fmt: skip


def _rope(m: DecoderConfig) -> dict:
    """Rotary positions as transformers 5 reads them, and as 4 did."""
    scaling = {"rope_type": "default"}
    if len(m.rotary_scaling) == 1:
        scaling = {"rope_type": "linear", "factor": m.rotary_scaling[0]}
    elif m.rotary_scaling:
        names = (
            "factor",
            "low_freq_factor",
            "high_freq_factor",
            "original_max_position_embeddings",
        )
        scaling = {"rope_type": "llama3", **dict(zip(names, m.rotary_scaling))}
    share = {"partial_rotary_factor": m.rotary_share} if m.rotary_share != 1 else {}
    old = {"rope_scaling": scaling} if m.rotary_scaling else {}
    return old | {
        "rope_theta": m.rotary_base,
        "rope_parameters": scaling | share | {"rope_theta": m.rotary_base},
    }
