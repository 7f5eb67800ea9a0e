"""Shards of Megatron-LM put together: what was split comes back, and what does not belong is refused."""

import json
import random
from argparse import Namespace

import megatron_files
import ml_dtypes
import numpy as np
import pytest

from retro_jax.errors import UserError
from retro_jax.weights import megatron

torch = pytest.importorskip("torch")  # writes the files


def short(name: str) -> str:
    return name.removeprefix("language_model.").removeprefix("encoder.")


WHOLE = {short(name): value for name, value in megatron_files.weights().items()}


def refused(folder, match: str):
    """In one line that begins with a path."""
    with pytest.raises(UserError, match=match) as caught:
        dict(megatron.read(folder)[1])
    assert str(caught.value).startswith(f"{folder}")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_what_was_split_comes_back(tmp_path, ranks, dtype):
    megatron_files.write(torch, tmp_path / "release", ranks, dtype=dtype)
    args, tensors = megatron.read(tmp_path)
    assert tensors.keys() == WHOLE.keys()
    assert len(tensors) == 107
    for name, whole in WHOLE.items():
        merged = tensors[name]
        np.testing.assert_array_equal(merged, whole.astype(merged.dtype), strict=True)
        assert merged.dtype.name == dtype
        assert tensors.shape(name) == whole.shape
    assert args["tensor_model_parallel_size"] == ranks
    assert args["padded_vocab_size"] == 64


def test_args_are_plain_values(tmp_path):
    cycle = []
    cycle.append(cycle)
    for odd in ({}, {"retro_gate": None, "betas": (0.9, {"a": {1, 2}}), "t": torch.ones(2, 3)}):
        megatron_files.write(torch, tmp_path, 2, dtype="bfloat16", **odd)
        args, _ = megatron.read(tmp_path)
        assert json.loads(json.dumps(args)) == args
    assert args["params_dtype"] == "torch.bfloat16"
    assert args["model_type"] == "megatron.model.enums.ModelType(1)"
    assert args["attention_backend"] == "megatron.core.transformer.enums.AttnBackend(1)"
    assert args["betas"] == [0.9, {"a": [1, 2]}]
    assert args["t"] == "float32 [2, 3]"
    assert args["data_path"] == ["a", 0.5]
    megatron_files.write(torch, tmp_path, 2, cycle=cycle)
    refused(tmp_path, "args are nested too deep")
    laughs = "ha"
    for _ in range(18):
        laughs = [laughs, laughs]
    megatron_files.write(torch, tmp_path, 2, laughs=laughs)
    refused(tmp_path, "args are nested too deep or too many")


def test_the_folder_is_found_where_megatron_puts_it(tmp_path):
    megatron_files.write(torch, tmp_path / "iter_0000100", 1, iteration=100)
    megatron_files.write(torch, tmp_path / "release", 1)
    tracker = tmp_path / "latest_checkpointed_iteration.txt"
    for text, iteration in ((None, 0), ("100\n", 100), ("release", 0)):
        if text:
            tracker.write_text(text)
        assert megatron.read(tmp_path)[0]["iteration"] == iteration
    assert megatron.read(tmp_path / "iter_0000100")[0]["iteration"] == 100
    assert megatron.read(str(tmp_path / "release"))[0]["iteration"] == 0
    tracker.write_text("7")
    refused(tmp_path, r"no Megatron-LM checkpoint \(.*iter_0000007/mp_rank_00/model_optim_rng.pt")
    for text in ("../release", "latest", "", "9" * 5000):
        tracker.write_text(text)
        refused(tmp_path, "is no iteration")
    refused(tmp_path / "nowhere", "give the folder that has release/ in it")


def test_older_names_are_read_as_the_newer(tmp_path):
    def older(flat):
        return {n.replace("norm", "layernorm"): v for n, v in flat.items()}

    megatron_files.write(torch, tmp_path, 2, change=older)
    tensors = megatron.read(tmp_path)[1]
    assert tensors.keys() == WHOLE.keys()
    np.testing.assert_array_equal(tensors["final_norm.bias"], WHOLE["final_norm.bias"])

    def twice(flat):
        return flat | older(flat)

    megatron_files.write(torch, tmp_path, 2, change=twice)
    refused(tmp_path, "there twice .*final_norm.bias")


def test_without_a_gate_the_mlp_is_not_split_in_halves(tmp_path):
    megatron_files.write(torch, tmp_path, 2, swiglu=False)
    name, (first, second) = "layers.0.mlp.dense_h_to_4h.weight", ([], [])
    for rank, part in ((0, first), (1, second)):
        whole = WHOLE[name]
        part.append(megatron_files.shard(f"x.{name}", whole, rank, 2))
    merged = megatron.read(tmp_path)[1][name]
    np.testing.assert_array_equal(merged, np.concatenate([first[0], second[0]]))


def test_a_tensor_is_put_together_when_it_is_asked_for(tmp_path, monkeypatch):
    megatron_files.write(torch, tmp_path, 2)
    joined = []
    real = np.concatenate
    monkeypatch.setattr(np, "concatenate", lambda *a, **k: joined.append(1) or real(*a, **k))
    _, tensors = megatron.read(tmp_path)
    assert "output_layer.weight" in tensors
    assert all(tensors.shape(name) for name in tensors)
    assert not joined
    tensors["output_layer.weight"]
    assert len(joined) == 1
    with pytest.raises(KeyError):
        tensors["output_layer"]


def changed(ranks: int, which: int, folder, **options):
    """Shards of which one is made otherwise."""
    megatron_files.write(torch, folder, ranks)
    megatron_files.save(torch, megatron_files.state(torch, which, ranks, **options), folder, which)


def without(flat: dict) -> dict:
    return {name: value for name, value in flat.items() if not name.endswith("final_norm.bias")}


def smaller(flat: dict) -> dict:
    return {name: value[: len(value) // 2] for name, value in flat.items()}


def moved(flat: dict) -> dict:
    return {name: value + 0.5 if "norm" in name else value for name, value in flat.items()}


@pytest.mark.parametrize(("options", "why"), [
    ({"tensor_model_parallel_size": 2}, "tensor_model_parallel_size is 2, but there are 4 folders"),
    ({"pipeline_model_parallel_size": 2}, "pipeline_model_parallel_size is 2, and 1 is read"),
    ({"iteration": 5}, "args.iteration is 5, but 0 in"),
    ({"hidden_size": 31}, "args.hidden_size is 31, but 32 in"),
    ({"swiglu": False}, "args.swiglu is False, but True in"),
    ({"dtype": "bfloat16"}, r"embedding.* is bfloat16 \[16, 32\], but in .*mp_rank_00.* float32"),
    ({"change": without}, "final_norm.bias is missing, but in .*mp_rank_00.* float32"),
    ({"change": smaller}, r"embedding.* is float32 \[8, 32\], but in .*mp_rank_00.* \[16, 32\]"),
    ({"change": moved}, "final_norm.* differs between shards|norm.weight differs"),
])  # fmt: skip
def test_shards_that_do_not_belong_together_are_refused(tmp_path, options, why):
    changed(4, 2, tmp_path, **options)
    refused(tmp_path, why)


def test_norms_may_differ_by_rounding(tmp_path):
    def near(f):
        return {n: v + 1e-3 if "norm" in n else v for n, v in f.items()}

    changed(2, 1, tmp_path, change=near)
    name = "final_norm.weight"
    np.testing.assert_array_equal(megatron.read(tmp_path)[1][name], WHOLE[name])


def test_shards_that_are_missing_are_named(tmp_path):
    megatron_files.write(torch, tmp_path, 4)
    (tmp_path / "mp_rank_02" / megatron.FILE).rename(tmp_path / "aside")
    refused(tmp_path, r"mp_rank_02/model_optim_rng\.pt: missing, of 4 shards")
    (tmp_path / "mp_rank_02").rmdir()
    refused(tmp_path, r"mp_rank_02/model_optim_rng\.pt: missing, of 3 shards")
    (tmp_path / "mp_rank_03" / megatron.FILE).unlink()
    (tmp_path / "mp_rank_03").rmdir()
    refused(tmp_path, "tensor_model_parallel_size is 4, but there are 2 folders")


def test_pipeline_parallelism_is_refused_by_name(tmp_path):
    megatron_files.write(torch, tmp_path / "release", 1)
    (tmp_path / "release" / "mp_rank_00_001").mkdir()
    refused(tmp_path, "mp_rank_00_001: a shard of pipeline parallelism")


def added(**tensors):
    more = {f"language_model.encoder.{k.replace('__', '.')}": v for k, v in tensors.items()}
    return lambda flat: flat | more


@pytest.mark.parametrize("name", [
    "layers.0.self_attention.query_key_value.bias", "layers.0.mlp.dense_h_to_4h.bias",
    "layers.x.input_norm.weight", "layers.00.input_norm.weight", "layers.0.lora.weight",
    "layers.0.retriever.layers.0.retriever.layers.0.input_norm.weight", "final_norm", "",
    "layers.0.final_norm.weight", "layers.0.embedding.word_embeddings.weight", "a\x1b[2J\nb",
])  # fmt: skip
def test_unknown_tensors_are_refused_by_name(tmp_path, name):
    megatron_files.write(torch, tmp_path, 1, change=added(**{name: torch.ones(2)}))
    with pytest.raises(UserError, match="1 that are not") as caught:
        megatron.read(tmp_path)
    assert ascii(name)[1:-1] in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(("value", "why"), [
    (None, "final_norm.bias is NoneType, no tensor"), ("x", "final_norm.bias is str"),
    (torch.ones(32).to_sparse(), "final_norm.bias is sparse, .* no plain tensor"),
    (torch.ones(32, dtype=torch.complex64).conj().imag, "final_norm.bias is .* to be negated"),
    (torch.ones(32, dtype=torch.int64), r"final_norm.bias is int64 \[32\], no tensor"),
    (torch.ones(1).expand(32), "final_norm.bias shows the same numbers more than once"),
    (torch.ones(32, device="meta"), "final_norm.bias is .* without memory"),
    (torch.ones(32, 1), r"final_norm.bias has the shape \[32, 1\]"),
    (torch.ones(()), r"final_norm.bias has the shape \[\]"),
])  # fmt: skip
def test_what_is_no_weight_is_refused_by_name(tmp_path, value, why):
    megatron_files.write(torch, tmp_path, 1, change=added(final_norm__bias=value))
    refused(tmp_path, why)


def test_an_odd_mlp_is_refused(tmp_path):
    name = "layers__0__mlp__dense_h_to_4h__weight"
    megatron_files.write(torch, tmp_path, 2, change=added(**{name: torch.ones(3, 32)}))
    refused(tmp_path, r"dense_h_to_4h.weight has the shape \[3, 32\]")


def test_other_checkpoints_are_refused(tmp_path):
    state = megatron_files.state(torch, 0, 1)
    core = {"decoder.layers.0.mlp.linear_fc1.weight": torch.ones(2)}
    cycle = {}
    cycle["a"] = cycle
    wide = {"a": {str(i): 0 for i in range(1000)}}
    for _ in range(3):
        wide = {str(i): wide for i in range(1000)}
    for changes, why in (
        ({"checkpoint_version": 1.0}, "checkpoint_version is 1.0, and 2 and 3 are read"),
        ({"checkpoint_version": None}, "checkpoint_version is NoneType"),
        ({"checkpoint_version": torch.ones(3)}, "checkpoint_version is Tensor"),
        ({"args": {"a": 1}}, "no args of Megatron-LM"),
        ({"args": torch.float16}, "no args of Megatron-LM"),
        ({"model": core}, "no model.language_model in it; .* not Megatron-Core's"),
        ({"model": None}, "no model.language_model"),
        ({"model": {"language_model": {}}}, "0 tensors that are known, 0 that are not"),
        ({"model": {"language_model": 3}}, "0 tensors that are known, 1 that are not"),
        (
            {"model": state["model"] | {"word_embeddings_for_head": {"weight": 1}}},
            "for_head.weight",
        ),
        ({"model": {"language_model": cycle}}, "too many or too long names"),
        ({"model": {"language_model": wide}}, "too many or too long names"),
        ({"model": {"language_model": {5: {}}}}, "too many or too long names"),
        ({"model": {"language_model": {"a" * 5000: {}}}}, "too many or too long names"),
    ):
        megatron_files.save(torch, state | changes, tmp_path)
        refused(tmp_path, why)
    for other in ([], torch.ones(2), {"state_dict": {}}):
        megatron_files.save(torch, other, tmp_path)
        refused(tmp_path, "no args of Megatron-LM")
    for empty, why in ((Namespace(), "args are empty"), (Namespace, "no args of Megatron-LM")):
        megatron_files.save(torch, state | {"args": empty}, tmp_path)
        refused(tmp_path, why)


def test_damaged_shards_are_read_or_refused(tmp_path):
    path = megatron_files.save(torch, megatron_files.state(torch, 1, 2), tmp_path, 1)
    megatron_files.save(torch, megatron_files.state(torch, 0, 2), tmp_path, 0)
    rng, whole, read = random.Random(0), path.read_bytes(), 0
    begin, end = whole.index(b"\x80\x02"), whole.index(b"PK\7\x08")
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(rng.choice((1, 2, 5))):
            at = rng.randrange(begin, end)
            if rng.random() < 0.5:
                data[at] ^= 1 << rng.randrange(8)
            else:  # much of a state dict is like the rest of it
                other = rng.randrange(begin, end - 20)
                data[at : at + 20] = data[other : other + 20]
        path.write_bytes(data)
        try:
            args, tensors = megatron.read(tmp_path)
            json.dumps(args)
            assert all(tensors[name].shape == tensors.shape(name) for name in tensors)
            read += 1
        except UserError:
            pass
    assert 10 < read < 290


def test_bfloat16_is_of_ml_dtypes(tmp_path):
    megatron_files.write(torch, tmp_path, 1, dtype="bfloat16")
    tensor = megatron.read(tmp_path)[1]["output_layer.weight"]
    assert tensor.dtype == ml_dtypes.bfloat16
    assert not tensor.flags.writeable
