"""NVIDIA's InstructRetro computes here what it computes in Megatron-LM, and can be used."""

import jax
import megatron_files
import numpy as np
import pytest
import torch
from conftest import make_mesh

from retro_jax.corpus.tokenizer import BOS, EOS, PAD
from retro_jax.corpus.tokenizer_json import FIRST
from retro_jax.errors import UserError
from retro_jax.model import functional
from retro_jax.weights.directory import model_of, open_directory
from retro_jax.weights.placement import place
from retro_jax.weights.pretrained import identity

FIXTURE = np.load(megatron_files.FIXTURE)
SIZE = 64
apply = jax.jit(functional.apply, static_argnums=0)


def write(directory, ranks=1, **options):
    megatron_files.write(torch, directory / "release", ranks, retro_gpt_chunk_length=8, **options)


@pytest.fixture(params=[1, 4])
def directory(request, tmp_path):
    write(tmp_path, request.param)
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
    assert (given.kind, given.retrieval) == ("instructretro", True)
    assert given.model.reading.cca_layers == (6, 9)
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
    assert model.encoder.share_embedding
    assert len(identity(directory)) == 16


def test_another_network_of_megatrons_is_refused_by_its_argument(tmp_path):
    for name, value in (
        ("add_bias_linear", True), ("apply_layernorm_1p", False), ("group_query_attention", True),
        ("normalization", "RMSNorm"), ("untie_embeddings_and_output_weights", False),
    ):  # fmt: skip
        write(tmp_path / name, **{name: value})
        with pytest.raises(UserError, match=f"{name} = .*is not supported"):
            open_directory(tmp_path / name)

    def plain(tensors):
        return {n: v for n, v in tensors.items() if not ("inter_att" in n or "retriever" in n)}

    write(tmp_path / "plain", change=plain)
    with pytest.raises(UserError, match="holds no cross-attention"):
        open_directory(tmp_path / "plain")
    last = "language_model.encoder.layers.8.mlp.dense_4h_to_h.weight"
    write(
        tmp_path / "short", change=lambda tensors: tensors | {last: tensors[last][:, :32].clone()}
    )
    with pytest.raises(UserError, match=r"but the config implies \[32, 64\]"):
        open_directory(tmp_path / "short")
