"""This project's own directories: config.json, *.safetensors, the tokenizer, a model card (`retro export`)."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from retro_jax.config import ModelConfig
from retro_jax.config import experiment as configs
from retro_jax.errors import UserError
from retro_jax.weights import pretrained
from retro_jax.weights.families import MOST
from retro_jax.weights.pretrained import Pretrained
from retro_jax.weights.tensors import Tensors

KIND = "retro_jax"


def is_one(config: dict) -> bool:
    """Whether a config.json is of this kind."""
    return config.get("model_type") == KIND


def describe(model: ModelConfig, vocab: int, retrieval: bool, dtype: str) -> dict:
    """The config.json of a model."""
    return {
        "model_type": KIND,
        "vocab": vocab,
        "retrieval": retrieval,
        "dtype": dtype,
        "model": dataclasses.asdict(model),
    }


def read(path: Path, config: dict) -> Pretrained:
    """The model of a directory that `retro export` wrote.

    Raises:
      UserError: it is damaged, or of another version.
    """
    file = path / "config.json"
    model, vocab, retrieval = model_of(file, config)
    wanted = pretrained.shapes(model, vocab, retrieval)
    tensors = Tensors(path)
    if odd := sorted(set(wanted) ^ set(tensors)):
        which = "lack" if odd[0] in wanted else "hold"
        raise UserError(f"{path}: the files {which} {odd[0]}, against config.json; export it again")
    for name, shape in wanted.items():
        if tensors.shape(name) != shape:
            raise UserError(
                f"{path}: {name} is {list(tensors.shape(name))}, but config.json implies {list(shape)}"
            )
    dtype = pretrained.dtype_of(config, file)
    return Pretrained(path, KIND, model, vocab, retrieval, dtype, tensors.__getitem__)


def model_of(file: Path, config: dict) -> tuple[ModelConfig, int, bool]:
    """Network, vocabulary, and whether it has what retrieval adds, from a config.json.

    Raises:
      UserError: as `read`.
    """
    vocab, retrieval, fields = (config.get(name) for name in ("vocab", "retrieval", "model"))
    if type(vocab) is not int or not 0 < vocab <= MOST or type(retrieval) is not bool:
        raise UserError(f"{file}: must say vocab, a number, and retrieval, true or false")
    if not isinstance(fields, dict):
        raise UserError(f"{file}: model must be the fields of a ModelConfig")
    for name, value in _flat(fields):
        if type(value) is int and value > (10_000 if name.endswith("layers") else MOST):
            raise UserError(f"{file}: model.{name} = {value}: no network is so large")
    try:
        model = configs.from_config_dict({"model": fields} | _shortest(fields)).model
    except (UserError, OverflowError) as error:
        raise UserError(f"{file}: {error}") from error
    return model, vocab, retrieval


def _flat(fields: dict) -> Iterator[tuple[str, object]]:
    """Names and values of the fields, "decoder.d" being that of a part."""
    for name, value in fields.items():
        if isinstance(value, dict):
            yield from ((f"{name}.{own}", inner) for own, inner in value.items())
        else:
            yield name, value


def _shortest(fields: dict) -> dict:
    """The other fields of an experiment that a model's are checked against: sequences of two chunks."""
    reading = fields.get("reading")
    chunk = reading.get("chunk") if isinstance(reading, dict) else None
    chunk = chunk if type(chunk) is int and chunk > 1 else 64
    return {"train": {"length": 2 * chunk}, "evaluate": {"stride": chunk}}
