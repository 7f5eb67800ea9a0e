"""Directories with pre-trained weights, of whatever kind: each kind is read by a file of its own."""

from pathlib import Path

from retro_jax.config import ModelConfig
from retro_jax.errors import UserError
from retro_jax.weights import exported, huggingface, instructretro, megatron
from retro_jax.weights.pretrained import Pretrained, read_config


def open_directory(path: Path) -> Pretrained:
    """What a directory holds, without reading a weight.

    Raises:
      UserError: no such directory, or it is damaged, or something in it is not supported.
    """
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"{path}: no such directory of a pre-trained model")
    if megatron.is_one(path):
        return instructretro.read(path)
    config = read_config(path)
    return (
        exported.read(path, config) if exported.is_one(config) else huggingface.read(path, config)
    )


def model_of(path: Path) -> tuple[ModelConfig, bool]:
    """What the config of a directory says of its network, and whether it is a whole RETRO's; no weights need
    to be there.

    Raises:
      UserError: as `open_directory`.
    """
    if megatron.is_one(path):
        given = instructretro.read(path)
        return given.model, given.retrieval
    config, file = read_config(path), path / "config.json"
    if exported.is_one(config):
        model, _, retrieval = exported.model_of(file, config)
        return model, retrieval
    return huggingface.model_of(file, config), False


def vocab_of(path: Path) -> int:
    """How many tokens a directory's model has here; as with `model_of`, no weights need to be there."""
    if megatron.is_one(path):
        return instructretro.read(path).vocab
    config = read_config(path)
    if exported.is_one(config):
        return exported.model_of(path / "config.json", config)[1]
    return huggingface.vocabulary(path, config)[0]
