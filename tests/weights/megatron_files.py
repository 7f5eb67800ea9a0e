"""Checkpoints as Megatron-LM's InstructRetro writes them, of the fixture's weights; needs torch."""

import argparse
import enum
import random
import sys
import types
from pathlib import Path
from unittest import mock

import numpy as np

FIXTURE = Path(__file__).parents[1] / "fixtures" / "megatron" / "instructretro.npz"
ARGS = {
    "num_layers": 9, "hidden_size": 32, "ffn_hidden_size": 64, "num_attention_heads": 4,
    "kv_channels": 8, "seq_length": 32, "padded_vocab_size": 64, "make_vocab_size_divisible_by": 8,
    "layernorm_epsilon": 1e-5, "rotary_percent": 0.5, "swiglu": True, "iteration": 0,
    "pipeline_model_parallel_size": 1, "data_path": ["a", 0.5], "lr": None,
}  # fmt: skip
_FIRST_AXIS = ("query_key_value", "query", "key_value", "word_embeddings", "output_layer")


def weights() -> dict[str, np.ndarray]:
    """Megatron's names, from language_model on -> arrays."""
    with np.load(FIXTURE) as file:
        return {n.removeprefix("sd/"): file[n] for n in file.files if n.startswith("sd/")}


def shard(name: str, whole: np.ndarray, rank: int, ranks: int) -> np.ndarray:
    """What a rank of Megatron holds of a weight."""
    part = name.split(".")[-2]
    if "norm" in part:
        return whole
    if part == "dense_h_to_4h":  # a column-parallel layer for gate and up each
        return np.concatenate([np.split(half, ranks)[rank] for half in np.split(whole, 2)])
    return np.split(whole, ranks, axis=0 if part in _FIRST_AXIS else 1)[rank]


def nested(flat: dict) -> dict:
    """{"language_model": {"embedding": {...}, "encoder": {flat names}, "output_layer": {...}}}."""

    def pick(prefix):
        return {
            name.removeprefix(prefix): value
            for name, value in flat.items()
            if name.startswith(prefix)
        }

    embedding = {"word_embeddings": pick("language_model.embedding.word_embeddings.")}
    output = pick("language_model.output_layer.") | {"_extra_state": None}
    encoder = pick("language_model.encoder.")
    encoder |= {n.replace("weight", "_extra_state"): None for n in encoder if "dense" in n}
    parts = {"embedding": embedding, "encoder": encoder, "output_layer": output}
    return {"language_model": parts}


def _modules() -> dict[str, types.ModuleType]:
    """Megatron-LM's modules with the enums that its args hold."""
    names = (
        "megatron",
        "megatron.model",
        "megatron.core",
        "megatron.core.transformer",
        "megatron.model.enums",
        "megatron.core.transformer.enums",
    )
    modules = {name: types.ModuleType(name) for name in names}
    for module, name, member in (
        ("megatron.model.enums", "ModelType", "encoder_or_decoder"),
        ("megatron.core.transformer.enums", "AttnBackend", "flash"),
    ):
        setattr(modules[module], name, enum.Enum(name, {member: 1}, module=module))
    return modules


_MODULES = _modules()


def state(
    torch, rank: int, ranks: int, dtype: str = "float32", change=lambda tensors: tensors, **args
):
    """What a rank saves. change: of its flat tensors; args: over ARGS."""
    flat = {
        name: torch.from_numpy(shard(name, whole, rank, ranks).copy()).to(getattr(torch, dtype))
        for name, whole in weights().items()
    }
    fields = ARGS | {
        "tensor_model_parallel_size": ranks,
        "rank": rank,
        "params_dtype": getattr(torch, dtype),
        "model_type": _MODULES["megatron.model.enums"].ModelType.encoder_or_decoder,
        "attention_backend": _MODULES["megatron.core.transformer.enums"].AttnBackend.flash,
    }
    states = [random.getstate(), np.random.RandomState(0).get_state(), torch.get_rng_state()]
    return {
        "args": argparse.Namespace(**fields | args),
        "checkpoint_version": 3.0,
        "iteration": 0,
        "model": nested(change(flat)),
        "rng_state": [dict(zip(("random_rng_state", "np_rng_state", "torch_rng_state"), states))],
    }


def write(torch, folder: Path, ranks: int, **options):
    """folder/mp_rank_00 and so on."""
    for rank in range(ranks):
        save(torch, state(torch, rank, ranks, **options), folder, rank)


def save(torch, value, folder: Path, rank: int = 0) -> Path:
    """A rank's file."""
    path = folder / f"mp_rank_{rank:02d}" / "model_optim_rng.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    with mock.patch.dict(sys.modules, _MODULES):  # pickle looks the enums up
        torch.save(value, path)
    return path
