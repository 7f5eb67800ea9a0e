"""Sentence encoders from directories make the vectors that their own libraries make."""

import json
import os

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import pytest
import torch
import transformers as hf
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from retro_jax.config import RetrievalConfig
from retro_jax.errors import UserError
from retro_jax.retrieval.embedder import open_embedder
from retro_jax.retrieval.embedders import bert

VOCAB = 60
_COMMON = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 40,
}  # fmt: skip
_LATE = {"pad_token_id": 1, "type_vocab_size": 1}
MODELS = {
    "bert": lambda: hf.BertModel(hf.BertConfig(**_COMMON)),
    "bert, tanh": lambda: hf.BertModel(hf.BertConfig(**_COMMON, hidden_act="gelu_new")),
    "roberta": lambda: hf.RobertaModel(hf.RobertaConfig(**_COMMON, **_LATE)),
    "xlm-roberta": lambda: hf.XLMRobertaModel(hf.XLMRobertaConfig(**_COMMON, **_LATE)),
    "distilbert": lambda: hf.DistilBertModel(
        hf.DistilBertConfig(
            vocab_size=VOCAB, dim=32, hidden_dim=48, n_layers=2, n_heads=4,
            max_position_embeddings=40,
        )
    ),
    "mpnet": lambda: hf.MPNetModel(
        hf.MPNetConfig(**_COMMON | {"max_position_embeddings": 300}, pad_token_id=1)
    ),
}  # fmt: skip
# Of many lengths; in MPNet distances past 128 share a bucket.
TEXTS = ["w1", "w2 w3 w4", "", " ".join(f"w{i % 50}" for i in range(30)), "w5 W6 w7"]
LONG = " ".join(f"w{i % 50}" for i in range(200))


def make(kind: str) -> torch.nn.Module:
    torch.manual_seed(0)
    model = MODELS[kind]().eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            norm = "norm" in name.lower() and name.endswith("weight")
            p.copy_(norm + 0.3 * torch.randn_like(p))
    return model


def save(directory, kind: str):
    """The model and a WordLevel tokenizer whose padding is the model's."""
    model, first = make(kind), ["<s>", "<pad>", "</s>", "<unk>"]
    words = {w: i for i, w in enumerate([*first, *(f"w{i}" for i in range(50))])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("</s>", 2), ("<s>", 0))
    directory.mkdir(exist_ok=True)
    model.save_pretrained(directory)
    tokenizer.save(str(directory / "tokenizer.json"))
    return model, tokenizer


def hidden(model, tokenizer, text: str) -> np.ndarray:
    """The last layer of one text, alone: [T, D]."""
    ids = torch.tensor([tokenizer.encode(text).ids])
    with torch.no_grad():
        return model(ids).last_hidden_state[0].numpy()


def vectors(directory, texts=TEXTS, **fields):
    settings = {"bert": {"directory": str(directory)} | fields}
    config = RetrievalConfig(embedder="bert", settings=settings)
    return open_embedder(config, None, 16).embed(texts)


@pytest.mark.parametrize("kind", MODELS)
def test_the_mean_of_the_last_layer_is_that_of_transformers(kind, tmp_path):
    """Texts of all lengths in one batch, each as if it were alone."""
    model, tokenizer = save(tmp_path, kind)
    texts = [*TEXTS, LONG] if kind == "mpnet" else TEXTS
    want = np.stack([hidden(model, tokenizer, text).mean(0) for text in texts])
    np.testing.assert_allclose(vectors(tmp_path, texts), want, atol=1e-5)


@pytest.mark.parametrize("kind", ["roberta", "mpnet"])
def test_prefixes_halves_and_shards_are_read(kind, tmp_path):
    model, _ = save(tmp_path / "plain", kind)
    _, _ = save(tmp_path / "other", kind)
    model.to(torch.bfloat16).save_pretrained(tmp_path / "other", max_shard_size="20KB")
    (tmp_path / "other" / "model.safetensors").unlink(missing_ok=True)
    file = tmp_path / "plain" / "model.safetensors"
    held = load_file(file)
    rounded = {
        f"{kind}.{n}": torch.tensor(v).to(torch.bfloat16).float().numpy() for n, v in held.items()
    }
    save_file(rounded | {"lm_head.bias": np.zeros(3, np.float32)}, file)
    one, other = vectors(tmp_path / "plain"), vectors(tmp_path / "other")
    np.testing.assert_array_equal(one, other)


def sentence_transformers(directory, pooling: dict, unit: bool = False, **more):
    """Makes a directory one of sentence-transformers, its network in the root."""
    modules = [{"idx": 0, "path": "", "type": "sentence_transformers.models.Transformer"}]
    modules += [{"idx": 1, "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}]
    if unit:
        kind = "sentence_transformers.models.Normalize"
        modules += [{"idx": 2, "path": "2_Normalize", "type": kind}]
    (directory / "modules.json").write_text(json.dumps(modules))
    (directory / "1_Pooling").mkdir(exist_ok=True)
    (directory / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    for name, values in more.items():
        (directory / f"{name}.json").write_text(json.dumps(values))


POOLINGS = {
    "cls": lambda h: h[0], "mean": lambda h: h.mean(0), "max": lambda h: h.max(0),
    "mean_sqrt_len": lambda h: h.sum(0) / np.sqrt(len(h)),
}  # fmt: skip


@pytest.mark.parametrize(
    ("pooling", "names"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, ("cls",)),
        ({"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True}, ("mean",)),
        ({"pooling_mode_max_tokens": True, "include_prompt": True}, ("max",)),
        ({"pooling_mode_mean_sqrt_len_tokens": True}, ("mean_sqrt_len",)),
        ({"pooling_mode_max_tokens": True, "pooling_mode_cls_token": True}, ("cls", "max")),
        ({"pooling_mode": "cls"}, ("cls",)),
        ({"pooling_mode": ["mean", "max"]}, ("max", "mean")),
    ],
)
@pytest.mark.parametrize("unit", [False, True])
def test_the_directory_says_how_a_text_becomes_a_vector(pooling, names, unit, tmp_path):
    model, tokenizer = save(tmp_path, "bert")
    sentence_transformers(tmp_path, pooling, unit)
    want = np.stack(
        [np.concatenate([POOLINGS[n](hidden(model, tokenizer, t)) for n in names]) for t in TEXTS]
    )
    if unit:
        want = want / np.linalg.norm(want, axis=1, keepdims=True)
    np.testing.assert_allclose(vectors(tmp_path), want, atol=1e-5)


def test_lengths_cases_and_prompts_are_the_directorys(tmp_path):
    """Cut to its length, the last special token kept; lower case; the default prompt before every text."""
    model, tokenizer = save(tmp_path, "bert")
    sentence_transformers(
        tmp_path, {"pooling_mode": "mean"},
        sentence_bert_config={"max_seq_length": 8, "do_lower_case": True},
        config_sentence_transformers={
            "prompts": {"query": "w9 w8 ", "other": "w1"}, "default_prompt_name": "query",
        },
    )  # fmt: skip
    cut = [f"w9 w8 {text.lower()}".split()[:6] for text in TEXTS]
    want = np.stack([hidden(model, tokenizer, " ".join(words)).mean(0) for words in cut])
    np.testing.assert_allclose(vectors(tmp_path), want, atol=1e-5)
    values = {"prompts": {"query": "w9 "}, "default_prompt_name": None}
    (tmp_path / "config_sentence_transformers.json").write_text(json.dumps(values))
    assert bert.read_directory(tmp_path).prompt == ""


def test_what_is_not_supported_is_refused_by_its_name(tmp_path):
    save(tmp_path, "bert")
    config = json.loads((tmp_path / "config.json").read_text())

    def says(message):
        with pytest.raises(UserError, match=message):
            vectors(tmp_path)

    for change, message in (
        (
            {"model_type": "t5"},
            "model_type = 't5': no encoder of BERT's family; known: bert, roberta",
        ),
        ({"hidden_act": "swish"}, "hidden_act = 'swish': is not supported"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type = 'relative_key'"),
        ({"num_attention_heads": 5}, "hidden_size = 32: must be a multiple of the 5 heads"),
        ({"is_decoder": True}, "a decoder is not supported"),
        ({"vocab_size": 50}, "but config.json implies"),
        ({"num_hidden_layers": 3}, "the files hold no encoder.layer.2"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config | change))
        says(message)
    (tmp_path / "config.json").write_text(json.dumps(config))
    sentence_transformers(tmp_path, {"pooling_mode_lasttoken": True})
    says("pooling_mode_lasttoken = True: this pooling is not supported")
    sentence_transformers(tmp_path, {"pooling_mode": "weightedmean"})
    says("pooling_mode = 'weightedmean': known: cls, max, mean")
    sentence_transformers(tmp_path, {"pooling_mode_cls_token": False})
    says("names no pooling")
    sentence_transformers(tmp_path, {"pooling_mode": "cls", "include_prompt": False})
    says("a pooling without the prompt is not supported")
    for path in ("../other", "/etc", None):
        modules = [
            {"path": path, "type": "sentence_transformers.models.Transformer"},
            {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        ]
        (tmp_path / "modules.json").write_text(json.dumps(modules))
        says("is no folder of this directory")
    modules[0]["path"] = ""
    modules.append({"path": "2_Dense", "type": "sentence_transformers.models.Dense"})
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    says("modules .*'Dense'.*: supported are Transformer, Pooling")
    for text in ("{", "3", '["x"]'):
        (tmp_path / "modules.json").write_text(text)
        says(r"modules\.json")
