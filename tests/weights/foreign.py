"""Random small decoders of other people's code, and what it computes with them."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import tokenizers
import torch
import transformers as hf

VOCAB, BOS, EOS = 263, 1, 2  # four rows more than the tokenizer has tokens
_COMMON = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3,
    "num_attention_heads": 4, "bos_token_id": BOS, "eos_token_id": EOS,
}  # fmt: skip
_KV = {"num_key_value_heads": 2}
_LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500_000.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
}  # fmt: skip
_LINEAR = {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0}
MODELS = {
    "gpt2": lambda: hf.GPT2LMHeadModel(
        hf.GPT2Config(
            vocab_size=VOCAB, n_embd=32, n_head=4, n_layer=3, n_positions=40, bos_token_id=EOS,
            eos_token_id=EOS,
        )
    ),
    "gpt_neox": lambda: hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**_COMMON)),
    "gpt_neox, in series": lambda: hf.GPTNeoXForCausalLM(
        hf.GPTNeoXConfig(**_COMMON, use_parallel_residual=False, rotary_pct=0.5)
    ),
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**_COMMON, **_KV)),
    "llama, biases": lambda: hf.LlamaForCausalLM(
        hf.LlamaConfig(**_COMMON, attention_bias=True, head_dim=16, rope_parameters=_LINEAR)
    ),
    "llama 3.1": lambda: hf.LlamaForCausalLM(
        hf.LlamaConfig(**_COMMON, **_KV, rope_parameters=_LLAMA3, tie_word_embeddings=True)
    ),
    "mistral": lambda: hf.MistralForCausalLM(
        hf.MistralConfig(**_COMMON, **_KV, sliding_window=32)
    ),
    "qwen2": lambda: hf.Qwen2ForCausalLM(hf.Qwen2Config(**_COMMON, **_KV)),
    "qwen3": lambda: hf.Qwen3ForCausalLM(
        hf.Qwen3Config(**_COMMON, **_KV, head_dim=16, tie_word_embeddings=True)
    ),
}  # fmt: skip


def two_layers() -> hf.LlamaForCausalLM:
    """A Llama to train: it compiles in two thirds of the time of three layers."""
    config = hf.LlamaConfig(**_COMMON | {"num_hidden_layers": 2}, **_KV)
    return with_random_weights(hf.LlamaForCausalLM(config))


def llama3(length: int) -> hf.LlamaForCausalLM:
    """A Llama whose positions are scaled as Llama 3.1's, which was made for texts of `length` tokens before."""
    scaling = _LLAMA3 | {"original_max_position_embeddings": length}
    config = hf.LlamaConfig(**_COMMON, **_KV, rope_parameters=scaling)
    return with_random_weights(hf.LlamaForCausalLM(config))


def large_heads() -> hf.Qwen3ForCausalLM:
    """A Qwen3 with heads of 128: transformers takes no others from a GGUF file."""
    config = hf.Qwen3Config(**_COMMON, **_KV, head_dim=128, tie_word_embeddings=True)
    return with_random_weights(hf.Qwen3ForCausalLM(config))


def make(name: str) -> torch.nn.Module:
    """One of MODELS with random weights."""
    return with_random_weights(MODELS[name]())


def with_random_weights(model: torch.nn.Module) -> torch.nn.Module:
    """All random: biases and norms too, since 0 and 1 would hide mistakes."""
    torch.manual_seed(0)
    model.eval()
    with torch.no_grad():
        for parameter_name, p in model.named_parameters():
            norm = "norm" in parameter_name or "ln_" in parameter_name
            p.copy_((norm and parameter_name.endswith("weight")) + 0.2 * torch.randn_like(p))
    return model


def logits(model, ids: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """[B, L, VOCAB] float32."""
    with torch.no_grad():
        mask = None if mask is None else torch.tensor(mask)
        return model(torch.tensor(ids), attention_mask=mask).logits.float().numpy()


def save_tokenizer(directory):
    """A byte-level BPE of all bytes and no merges, <s> and </s> being 1 and 2: 259 tokens."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocab = {"<pad>": 0, "<s>": BOS, "</s>": EOS} | {c: 3 + i for i, c in enumerate(alphabet)}
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, []))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    made.add_special_tokens(["<pad>", "<s>", "</s>"])
    made.save(str(directory / "tokenizer.json"))
