"""NVIDIA's InstructRetro computes here what it computes in Megatron-LM, and can be used."""

from pathlib import Path

import jax
import megatron_files
import numpy as np
import pytest
from conftest import make_mesh

from retro_jax.corpus.pretrained import FIRST
from retro_jax.corpus.tokenizer import BOS, EOS, PAD
from retro_jax.errors import UserError
from retro_jax.interop.place import place
from retro_jax.interop.pretrained import identity, model_of, open_directory
from retro_jax.model import functional

FIXTURE = np.load(Path(__file__).parent.parent / "fixtures" / "megatron" / "instructretro.npz")
ARGS = {
    "num_layers": 9, "hidden_size": 32, "num_attention_heads": 4, "kv_channels": 8,
    "rotary_percent": 0.5, "layernorm_epsilon": 1e-5, "swiglu": True, "add_bias_linear": False,
    "apply_layernorm_1p": True, "untie_embeddings_and_output_weights": True,
    "use_rotary_position_embeddings": True, "retro_gpt_chunk_length": 8,
}  # fmt: skip
WEIGHTS = {n.removeprefix("sd/"): FIXTURE[n] for n in FIXTURE.files if n.startswith("sd/")}
SIZE = 64
apply = jax.jit(functional.apply, static_argnums=0)


@pytest.fixture(params=[1, 4])
def directory(request, tmp_path):
    megatron_files.write(tmp_path, WEIGHTS, ARGS, request.param)
    return tmp_path


def ours(ids: np.ndarray) -> np.ndarray:
    """Their ids as ours."""
    tokens = ids.astype(np.int32) + FIRST
    return np.where(ids == 1, BOS, np.where(ids == 2, EOS, tokens))


PLAIN = [i for i in range(SIZE) if i not in (1, 2)]


@pytest.mark.parametrize("case", ["a", "b"])
def test_logits_are_megatrons_with_the_gate_on_and_off(directory, case):
    """Also of a length that is no multiple of the chunk: there the first chunk is the short one."""
    given, mesh = open_directory(directory), make_mesh(1, 2, 2)
    assert (given.kind, given.retrieval, given.model.cca_layers) == ("instructretro", True, (6, 9))
    ids, near = ours(FIXTURE[f"{case}/ids"]), ours(FIXTURE[f"{case}/neighbours"])
    before = -ids.shape[1] % 8
    tokens = np.pad(ids, ((0, 0), (before, 0)), constant_values=PAD)
    with jax.set_mesh(mesh):
        params = place(given, given.model, True, mesh)
        on, off = (np.asarray(apply(given.model, params, tokens, n)) for n in (near, None))
    for got, want in ((on, "logits"), (off, "logits_gate0")):
        got = got[:, before:, FIRST : FIRST + SIZE]
        np.testing.assert_allclose(
            got[..., PLAIN], FIXTURE[f"{case}/{want}"][..., PLAIN], atol=5e-5
        )
    assert np.abs(on - off)[:, before + 8 :].max() > 0.1


def test_an_experiment_can_name_it(directory):
    model, retrieval = model_of(directory)
    assert retrieval
    assert model.share_embedding
    assert len(identity(directory)) == 16


def test_another_network_of_megatrons_is_refused_by_its_argument(tmp_path):
    for name, value in (
        ("swiglu", False), ("add_bias_linear", True), ("apply_layernorm_1p", False),
        ("group_query_attention", True), ("normalization", "RMSNorm"),
    ):  # fmt: skip
        where = tmp_path / name
        megatron_files.write(where, WEIGHTS, ARGS | {name: value}, 1)
        with pytest.raises(UserError, match=f"{name} = .*is not supported"):
            open_directory(where)
    plain = {
        n: v for n, v in WEIGHTS.items() if "inter_attention" not in n and "retriever" not in n
    }
    megatron_files.write(tmp_path / "plain", plain, ARGS, 1)
    with pytest.raises(UserError, match="holds no cross-attention"):
        open_directory(tmp_path / "plain")
    wrong = WEIGHTS | {
        "language_model.encoder.final_norm.weight": np.zeros(31, np.float32),
    }
    megatron_files.write(tmp_path / "wrong", wrong, ARGS, 1)
    with pytest.raises(UserError):
        open_directory(tmp_path / "wrong")
