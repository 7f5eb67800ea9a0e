"""Directories with pre-trained weights, and GGUF files: each kind is read by a file of its own."""

from pathlib import Path

from retro_jax.config import ModelConfig
from retro_jax.corpus.gguf import is_one as is_gguf
from retro_jax.errors import UserError
from retro_jax.weights import exported, gguf, huggingface, instructretro, megatron
from retro_jax.weights.pretrained import Pretrained, read_config
from retro_jax.weights.tensors import Tensors

TOKENIZERS = ("tokenizer.json", "tokenizer.model")


def open_directory(path: Path) -> Pretrained:
    """What a directory or a GGUF file holds, without reading a weight.

    Raises:
      UserError: no such directory, or it is damaged, or something in it is not supported.
    """
    path = Path(path)
    if is_gguf(path):
        return gguf.read(path)
    if not path.is_dir():
        raise UserError(f"{path}: no such directory of a pre-trained model")
    if megatron.is_one(path):
        return instructretro.read(path)
    config = read_config(path)
    if exported.is_one(config):
        return exported.read(path, config)
    return huggingface.read(path, config, Tensors(path))


def model_of(path: Path) -> tuple[ModelConfig, bool]:
    """What the config of a directory says of its network, and whether it is a whole RETRO's; no weights need
    to be there.

    Raises:
      UserError: as `open_directory`.
    """
    if is_gguf(path):
        return huggingface.model_of(path, gguf.config_of(path)), False
    if megatron.is_one(path):
        given = instructretro.read(path)
        return given.model, given.retrieval
    config, file = read_config(path), path / "config.json"
    if exported.is_one(config):
        model, _, retrieval = exported.model_of(file, config)
        return model, retrieval
    return huggingface.model_of(file, config), False


def has_weights(path: Path) -> bool:
    """Whether a directory holds weights, and not its config and tokenizer alone."""
    return is_gguf(path) or megatron.is_one(path) or any(path.glob("*.safetensors"))


def vocab_of(path: Path) -> int:
    """How many tokens a directory's model has here; as with `model_of`, no weights need to be there."""
    if is_gguf(path):
        return huggingface.vocabulary(path, gguf.config_of(path))[0]
    if megatron.is_one(path):
        return instructretro.read(path).vocab
    config = read_config(path)
    if exported.is_one(config):
        return exported.model_of(path / "config.json", config)[1]
    return huggingface.vocabulary(path, config)[0]


def length_of(path: Path) -> int:
    """How many tokens the sequences had that a base was trained on, as its config says; 0 if it does not."""
    if is_gguf(path):
        said = gguf.config_of(path)["max_position_embeddings"]
    elif (path / "config.json").exists():
        said = read_config(path).get("max_position_embeddings")
    else:
        said = 0
    return said if type(said) is int and said > 0 else 0


def tokenizer_of(path: Path) -> Path | None:
    """The file that holds a base's tokenizer; None if there is none."""
    path = Path(path)
    if is_gguf(path):
        return path
    found = (path / name for name in TOKENIZERS)
    return next(filter(Path.is_file, found), None)
