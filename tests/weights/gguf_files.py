"""Models of transformers as llama.cpp's GGUF files, as its converter writes them."""

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind
from tokenizers.pre_tokenizers import ByteLevel

_PARTS = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm", "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
_TOP = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
MERGES = ["Ġ t", "h e", "i n", "Ġt he"]
TOKENS = [
    "<pad>",
    "<s>",
    "</s>",
    *sorted(ByteLevel.alphabet()),
    *(m.replace(" ", "") for m in MERGES),
]


def write(
    path,
    model,
    quantised: Kind = Kind.F32,
    pre: str = "smollm",
    odd: str = "",
    slower=None,
    **fields,
):
    """Writes a Llama, Qwen2 or Qwen3; matrices are `quantised`.

    odd: a tensor that has a type nobody reads. slower: by how much slower each pair of a head's numbers turns. fields:
    strings and numbers, of more fields, with __ for each point of their names.
    """
    c = model.config
    kind = fields.pop("architecture", c.model_type)
    writer = gguf.GGUFWriter(path, kind)
    writer.add_block_count(c.num_hidden_layers)
    writer.add_context_length(c.max_position_embeddings)
    writer.add_embedding_length(c.hidden_size)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count(c.num_attention_heads)
    writer.add_head_count_kv(c.num_key_value_heads)
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    writer.add_rope_freq_base(c.rope_parameters["rope_theta"])
    if getattr(c, "head_dim", None):
        writer.add_key_length(c.head_dim)
        writer.add_value_length(c.head_dim)
    for name, value in fields.items():
        add = writer.add_string if isinstance(value, str) else writer.add_uint32
        add(name.replace("__", "."), value)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3, 3] + [1] * (len(TOKENS) - 3))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(c.bos_token_id)
    writer.add_eos_token_id(c.eos_token_id)
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and c.tie_word_embeddings:
            continue
        x = weight.numpy()
        if kind == "llama" and ("q_proj" in name or "k_proj" in name):
            heads = c.num_attention_heads if "q_proj" in name else c.num_key_value_heads
            x = x.reshape(heads, 2, -1, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)
        theirs = _name(name)
        if theirs == odd:
            writer.add_tensor(theirs, x.astype(np.int8))
        elif x.ndim == 1 or quantised == Kind.F32:
            writer.add_tensor(theirs, np.ascontiguousarray(x))
        else:
            writer.add_tensor(theirs, gguf.quants.quantize(x, quantised), raw_dtype=quantised)
    if slower is not None:
        writer.add_tensor("rope_freqs.weight", np.asarray(slower, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _name(name: str) -> str:
    if name in _TOP:
        return _TOP[name]
    _, _, layer, part = name.split(".", 3)
    part, kind = part.rsplit(".", 1)
    return f"blk.{layer}.{_PARTS[part]}.{kind}"
