"""A tiny Llama that chats, and a working directory of it with a database: for tests of chats."""

import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import tokenizers
import torch
import transformers as hf
from conftest import write_corpus

from retro_jax.cli import main as cli

SPECIAL = ["<pad>", "<s>", "</s>", "<|user|>", "<|assistant|>", "<|end|>"]
MESSAGES = [
    {"role": "user", "content": "kara lopo?"},
    {"role": "assistant", "content": "minel"},
    {"role": "user", "content": "tenra kais mipo"},
]
END = SPECIAL.index("<|end|>")
TEMPLATE = """\
{{ bos_token }}
{%- for m in messages %}
{%- if m.role == 'system' and not loop.first %}{{ raise_exception('a system message comes first') }}{% endif %}
<|{{ 'assistant' if m.role == 'assistant' else 'user' }}|>{{ m.content }}<|end|>
{% endfor %}
{% if add_generation_prompt %}<|assistant|>{% endif %}
"""


def save(directory):
    """A Llama with random weights that has a chat template, as transformers saves it."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*SPECIAL, *alphabet])}
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, []))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    made.add_special_tokens(SPECIAL)
    theirs = hf.PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", chat_template=TEMPLATE
    )
    theirs.save_pretrained(directory)
    torch.manual_seed(0)
    config = hf.LlamaConfig(
        vocab_size=len(vocab), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, bos_token_id=1, eos_token_id=[2, END],
    )  # fmt: skip
    hf.LlamaForCausalLM(config).save_pretrained(directory)
    return theirs


def made(root: Path):
    """(their tokenizer, the working directory of the model as it is, with a database of documents)."""
    (root / "base").mkdir()
    theirs = save(root / "base")
    write_corpus(root / "texts", documents=12)
    fields = {
        "corpus.source": f"text:{root}/texts/*.txt", "methods": "('language_model',)", "train.steps": 0,
        "retrieval.embedder": "words", "retrieval.index": "bm25", "train.length": 512, "train.batch": 2,
        "evaluate.stride": 256, "corpus.heldout": 0.2, "generate.tokens": 5, "mesh.cpu_devices": 8,
    }  # fmt: skip
    words = [f"--config=experiments/retrofit.py:{root}/base", f"--workdir={root}/run"]
    words += [f"--config.{n}={v}" for n, v in fields.items()]
    for stage in ("prepare", "train"):
        assert cli.main([stage, *words]) == 0
    return theirs, root / "run"
