"""Checkpoints as Megatron-LM writes them: shards of tensor parallelism, each a pickle of torch's."""

from argparse import Namespace
from pathlib import Path

import numpy as np
import torch


def write(directory: Path, weights: dict[str, np.ndarray], args: dict, ranks: int):
    """Writes weights, by names as `language_model.encoder.layers.0.input_norm.weight`, in `ranks` shards."""
    for rank in range(ranks):
        model = {"embedding": {"word_embeddings": {}}, "encoder": {}, "output_layer": {}}
        for name, value in weights.items():
            held = torch.tensor(np.ascontiguousarray(part(name, value, rank, ranks)))
            short = name.removeprefix("language_model.")
            if short.startswith("encoder."):
                model["encoder"][short.removeprefix("encoder.")] = held
                if short.endswith(("query.weight", "dense.weight")):
                    model["encoder"][short[:-11].removeprefix("encoder.") + "._extra_state"] = None
            elif "embeddings" in short:
                model["embedding"]["word_embeddings"]["weight"] = held
            else:
                model["output_layer"]["weight"] = held
        own = args | {"tensor_model_parallel_size": ranks, "params_dtype": torch.float32}
        folder = Path(directory) / "release" / f"mp_rank_{rank:02d}"
        folder.mkdir(parents=True)
        saved = {
            "args": Namespace(**own),
            "checkpoint_version": 3.0,
            "model": {"language_model": model},
        }
        torch.save(saved, folder / "model_optim_rng.pt")


def part(name: str, value: np.ndarray, rank: int, ranks: int) -> np.ndarray:
    """A rank's part of a weight: rows, columns, rows of either half, or all of it."""
    if "norm" in name:
        return value
    if "dense_h_to_4h" in name:
        return np.concatenate([np.split(half, ranks)[rank] for half in np.split(value, 2)])
    columns = "attention.dense" in name or "dense_4h_to_h" in name
    return np.split(value, ranks, axis=1 if columns else 0)[rank]
