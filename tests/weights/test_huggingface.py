"""Decoders from Hugging Face's directories compute here what they compute there."""

import dataclasses
import json
import shutil
from pathlib import Path

import foreign
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from conftest import make_mesh
from safetensors.numpy import load_file, save_file

from retro_jax.config import EncoderConfig, ModelConfig, ReadingConfig
from retro_jax.corpus.tokenizer import BOS, EOS, PAD
from retro_jax.corpus.tokenizer_json import FIRST
from retro_jax.errors import UserError
from retro_jax.model import functional
from retro_jax.store.workdir import WorkDir
from retro_jax.weights.base import model_like
from retro_jax.weights.directory import open_directory
from retro_jax.weights.placement import place
from retro_jax.weights.pretrained import where

FIXTURES = Path(__file__).parent.parent / "fixtures" / "hf"
apply = jax.jit(functional.apply, static_argnums=0)
# Tokens whose row is at FIRST + i: those that are not BOS or EOS.
PLAIN = [i for i in range(foreign.VOCAB) if i not in (foreign.BOS, foreign.EOS)]


@pytest.fixture(scope="module", params=foreign.MODELS)
def theirs(request, tmp_path_factory):
    """A model, and the directory that it was saved into, in several files."""
    model, directory = foreign.make(request.param), tmp_path_factory.mktemp("theirs")
    model.save_pretrained(directory, max_shard_size="20KB")
    assert len(list(directory.glob("*.safetensors"))) > 3
    return model, directory


def read(directory, mesh=None):
    """Its config and its weights on a mesh."""
    given = open_directory(directory)
    mesh = mesh or make_mesh(1, 1, 1)
    with jax.set_mesh(mesh):
        return given, place(given, given.model, False, mesh)


def ours(given, params, ids, mask=None, mesh=None):
    """Logits [B, L, VOCAB] of their tokens, BOS's and EOS's left out (NaN)."""
    tokens = ids + FIRST
    if mask is not None:
        tokens = np.where(mask, tokens, PAD)
    with jax.set_mesh(mesh or make_mesh(1, 1, 1)):
        found = np.asarray(apply(given.model, params, tokens.astype(np.int32)))
    return found[..., FIRST : FIRST + foreign.VOCAB]


def some_ids(length=24, rows=2):
    return np.random.default_rng(0).choice(PLAIN, (rows, length))


def test_logits_are_those_of_transformers_on_any_mesh(theirs):
    model, directory = theirs
    ids = some_ids()
    want = foreign.logits(model, ids)
    for mesh in (make_mesh(1, 1, 1), make_mesh(1, 2, 2)):
        given, params = read(directory, mesh)
        got = ours(given, params, ids, mesh=mesh)
        np.testing.assert_allclose(got[..., PLAIN], want[..., PLAIN], atol=1e-4)


def test_padding_changes_nothing(theirs):
    model, directory = theirs
    given, params = read(directory)
    ids, lengths = some_ids(rows=3), np.array([24, 17, 5])
    right = np.arange(24) < lengths[:, None]
    want = foreign.logits(model, ids, right.astype(np.int64))
    got = ours(given, params, ids, right)
    np.testing.assert_allclose(got[right][:, PLAIN], want[right][:, PLAIN], atol=1e-4)
    if given.model.decoder.positions == "rotary":  # learned ones count from the first column there
        left = right[:, ::-1]
        want = foreign.logits(model, ids, left.astype(np.int64))
        got = ours(given, params, ids, left)
        np.testing.assert_allclose(got[left][:, PLAIN], want[left][:, PLAIN], atol=1e-4)


def test_bos_and_eos_are_the_files_and_nothing_else_is_predicted(theirs):
    model, directory = theirs
    given, params = read(directory)
    bos, eos = model.config.bos_token_id, model.config.eos_token_id
    ids = some_ids()
    ids[:, 0] = bos
    want = torch.log_softmax(torch.tensor(foreign.logits(model, ids)), -1).numpy()
    tokens = ids + FIRST
    tokens[:, 0] = BOS
    with jax.set_mesh(make_mesh(1, 1, 1)):
        found = jax.nn.log_softmax(apply(given.model, params, tokens.astype(np.int32)))
    found = np.asarray(found)
    # A file without a BOS of its own begins texts with its EOS, which then counts twice.
    error = 1e-4 if bos != eos else np.log1p(np.exp(want[..., eos])).max() + 1e-4
    kept = [i for i in range(foreign.VOCAB) if i not in (bos, eos)]
    np.testing.assert_allclose(found[..., FIRST + np.array(kept)], want[..., kept], atol=error)
    np.testing.assert_allclose(found[..., EOS], want[..., eos], atol=error)
    known = {EOS, BOS, *(FIRST + i for i in kept)}
    rest = [i for i in range(given.vocab) if i not in known]
    assert np.exp(found[..., rest]).max() == 0


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_the_fixtures_logits_are_met(name, tmp_path):
    """Made with another version, on another machine."""
    directory = tmp_path / name
    shutil.copytree(FIXTURES / name, directory)
    config = json.loads((directory / "config.json").read_text())
    config |= {"bos_token_id": foreign.BOS, "eos_token_id": foreign.EOS}  # GPT-2's was past its end
    (directory / "config.json").write_text(json.dumps(config))
    io = np.load(directory / "io.npz")
    given, params = read(directory)
    # The network's input rows of BOS and EOS are elsewhere; see `vocabulary`.
    moved = {foreign.BOS: BOS, foreign.EOS: EOS}
    tokens = np.vectorize(lambda i: moved.get(i, FIRST + i))(io["ids"]).astype(np.int32)
    mask = io["attention_mask"].astype(bool)
    with jax.set_mesh(make_mesh(1, 1, 1)):
        plain = [i for i in PLAIN if i < 97]
        whole = np.asarray(apply(given.model, params, tokens))[..., FIRST:][..., plain]
        padded = apply(given.model, params, np.where(mask, tokens, PAD))
        padded = np.asarray(padded)[..., FIRST:][..., plain]
    np.testing.assert_allclose(whole, io["logits"][..., plain], atol=1e-5)
    want = io["logits_right_padded"][..., plain]
    np.testing.assert_allclose(padded[mask], want[mask], atol=1e-5)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_half_precision_is_read_as_it_is(kind, tmp_path):
    """Kept in bfloat16, or widened without loss; computed in float32."""
    model = foreign.make("llama").to(kind)
    model.save_pretrained(tmp_path)
    given, params = read(tmp_path)
    kept = jnp.bfloat16 if kind == torch.bfloat16 else jnp.float32
    assert {p.dtype for n, p in params.items() if n != "readout_bias"} == {jnp.dtype(kept)}
    ids = some_ids()
    # (Cast back, the model would keep angles that were rounded.)
    exact = foreign.hf.LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    want = foreign.logits(exact, ids)
    np.testing.assert_allclose(ours(given, params, ids)[..., PLAIN], want[..., PLAIN], atol=1e-4)


def test_files_of_the_hub_are_read_too(tmp_path):
    """GPT-2's there lack a prefix and hold masks; older configs write rotary positions in another way."""
    model = foreign.make("gpt2")
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    held = {n.removeprefix("transformer."): v for n, v in load_file(file).items()}
    held |= {f"h.{i}.attn.bias": np.ones((1, 1, 40, 40), np.float32) for i in range(3)}
    save_file(held, file)
    given, params = read(tmp_path)
    ids = some_ids()
    want = foreign.logits(model, ids)
    np.testing.assert_allclose(ours(given, params, ids)[..., PLAIN], want[..., PLAIN], atol=1e-4)


def test_older_configs_mean_the_same(theirs, tmp_path):
    """transformers 4 had rope_theta, rotary_pct and rope_scaling at the top, and torch_dtype."""
    _, directory = theirs
    shutil.copytree(directory, tmp_path / "old")
    config = json.loads((directory / "config.json").read_text())
    config["torch_dtype"] = config.pop("dtype")
    if rope := config.pop("rope_parameters", None):
        share = rope.pop("partial_rotary_factor", None)
        config |= {"rotary_emb_base" if share else "rope_theta": rope.pop("rope_theta")}
        config |= {"rotary_pct": share} if share else {}
        if rope["rope_type"] != "default":
            config["rope_scaling"] = rope
    (tmp_path / "old" / "config.json").write_text(json.dumps(config))
    assert open_directory(tmp_path / "old").model == open_directory(directory).model


def test_retrieval_is_added_to_any_of_them_and_off_is_the_base(theirs):
    """OFF is the base, and with cca_zero so is ON; but for the rounding of different programs. (The bits
    of one program: test_retrofit.py.)"""
    _, directory = theirs
    given = open_directory(directory)
    small = ModelConfig(
        encoder=EncoderConfig(d=16, layers=1, heads=2, head_size=8),
        reading=ReadingConfig(cca_layers=(1, 3), chunk=8, retrieved=16, cca_zero=True),
    )
    config = model_like(given.model, False, small)
    tokens = (some_ids() + FIRST).astype(np.int32)
    near = np.random.default_rng(1).integers(FIRST, 90, (2, 3, 2, 16)).astype(np.int32)
    mesh = make_mesh(1, 1, 1)
    with jax.set_mesh(mesh):
        base = place(given, config, False, mesh)
        fresh = functional.init(config, given.vocab, 0, but=frozenset(base))
        off = apply(config, base | fresh, tokens, None)
        np.testing.assert_allclose(off, apply(config, base, tokens, None), atol=5e-6)
        np.testing.assert_allclose(off, apply(config, base | fresh, tokens, near), atol=5e-6)
        draw = np.random.default_rng(2).normal
        read_ = {n: p + 0.3 * draw(size=p.shape) for n, p in fresh.items()}
        assert np.abs(off - apply(config, base | read_, tokens, near)).max() > 1e-3


REFUSED = {
    "llama": [
        ({"model_type": "mamba"}, "model_type = 'mamba' is not supported; known: gpt2"),
        ({"model_type": None}, "model_type = None is not supported"),
        ({"model_type": ["llama"]}, "is not supported"),
        ({"hidden_act": "xielu"}, "hidden_act = 'xielu': this activation is not supported"),
        ({"mlp_bias": True}, "mlp_bias = True: a feed-forward with biases and a gate"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rotary positions of type 'yarn'"),
        ({"rope_parameters": {"rope_type": "llama3"}}, "rope_parameters: factor = None"),
        ({"rope_parameters": 3}, "rope_parameters = 3: must be an object"),
        ({"num_key_value_heads": 3}, "num_key_value_heads = 3: must divide"),
        ({"hidden_size": 10**9}, "hidden_size = 1000000000: must be a number from 1 to"),
        ({"num_hidden_layers": 10**6}, "num_hidden_layers = 1000000: must be a number from 1 to"),
        ({"hidden_size": "32"}, "hidden_size = '32': must be a number"),
        ({"rms_norm_eps": -1}, "rms_norm_eps = -1: must be a positive number"),
        ({"vocab_size": 98}, r"embed_tokens.weight is \[263, 32\], but the config implies \[98, 32\]"),
        ({"intermediate_size": 63}, r"but the config implies \[63, 32\]"),
        ({"num_hidden_layers": 4}, "the files hold no model.layers.3.input_layernorm.weight"),
        ({"num_hidden_layers": 2}, "holds model.layers.2.* which a model of this kind does not have"),
        ({"attention_bias": True}, "the files hold no model.layers.0.self_attn.q_proj.bias"),
        ({"quantization_config": {"bits": 4}}, "quantised weights are not supported"),
        ({"eos_token_id": None}, "eos_token_id = None: must be a token"),
        ({"dtype": "int8"}, "dtype = 'int8': must be float32"),
    ],
    "gpt2": [
        ({"scale_attn_by_inverse_layer_idx": True}, "attention scaled by layer is not supported"),
        ({"scale_attn_weights": False}, "attention that is not scaled is not supported"),
        ({"add_cross_attention": True}, "cross-attention is not supported"),
        ({"n_head": 3}, "n_embd = 32: must be a multiple of n_head = 3"),
    ],
    "mistral": [({"layer_types": ["chunked"]}, "layer_types = .'chunked'.: only full_attention")],
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_supported_is_refused_by_its_name(name, tmp_path):
    foreign.make(name).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    for change, message in REFUSED[name]:
        file.write_text(json.dumps(config | change))
        with pytest.raises(UserError, match=message):
            open_directory(tmp_path)


def test_a_working_directory_is_refused_by_what_makes_a_base_of_it(small, tmp_path):
    WorkDir(tmp_path, small).save()
    with pytest.raises(UserError, match="is a working directory of this project; `retro export"):
        open_directory(tmp_path)


def test_a_window_bounds_sequences(tmp_path):
    """Up to the window's length a Mistral attends all that there is; longer sequences are refused."""
    foreign.make("mistral").save_pretrained(tmp_path)
    given, params = read(tmp_path)
    assert given.model.decoder.max_length == 32
    with pytest.raises(ValueError, match=r"33 tokens, but model\.decoder\.max_length = 32"):
        ours(given, params, some_ids(33))


def test_a_large_directory_is_read_without_holding_it(tmp_path):
    """Each device gets its part from the mapped file: what a process allocates stays far below the weights."""
    model = foreign.hf.LlamaForCausalLM(
        foreign.hf.LlamaConfig(
            vocab_size=1000, hidden_size=512, intermediate_size=2048, num_hidden_layers=16,
            num_attention_heads=8, bos_token_id=1, eos_token_id=2,
        )
    ).to(torch.bfloat16)  # fmt: skip
    model.save_pretrained(tmp_path)
    given = open_directory(tmp_path)
    pieces = []

    def watched(name):
        value = given.read(name)
        if name != "readout_bias" and not name.startswith(("embedding", "readout")):
            pieces.append(isinstance(value, np.memmap) or _mapped(value))
        return value

    mesh = make_mesh(1, 4, 2)
    with jax.set_mesh(mesh):
        params = place(dataclasses.replace(given, read=watched), given.model, False, mesh)
    assert len(pieces) > 100
    assert all(pieces)  # views of files, not copies
    weight = params["stacks.0.0.feed_forward.up"]
    assert weight.addressable_shards[0].data.nbytes * 8 == weight.nbytes
    own = np.asarray(weight[-1] if len(weight) > 1 else weight[0])
    assert own.shape == (512, 2048)
    assert own.any()


def test_layers_of_several_types_get_that_of_the_first(tmp_path, mesh):
    config = foreign.hf.LlamaConfig(
        vocab_size=100, hidden_size=16, intermediate_size=32, num_hidden_layers=12,
        num_attention_heads=2, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = foreign.hf.LlamaForCausalLM(config)
    for layer in model.model.layers[6:]:
        layer.to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    given = open_directory(tmp_path)
    placed = place(given, given.model, False, mesh)
    at, kinds = where(given.model, placed), {}
    for own, (name, index) in at.items():
        if index is not None:
            weight = given.read(own)
            kinds.setdefault(name, set()).add(weight.dtype.name)
            np.testing.assert_array_equal(placed[name][index], weight.astype(placed[name].dtype))
    assert {"float32", "bfloat16"} in kinds.values()


def _mapped(value: np.ndarray) -> bool:
    while value is not None and not isinstance(value, np.memmap):
        value = value.base
    return value is not None
