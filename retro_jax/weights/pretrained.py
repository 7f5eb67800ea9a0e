"""Directories and files with pre-trained weights: what they hold, in this project's names and layout.

A layer's weights are named by its number, "layers.5.cca.attention.query", whatever the stacks are in which
the network keeps them (model/retro.py); everything else has the network's own names.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from retro_jax.config import ModelConfig
from retro_jax.config.fields import binding
from retro_jax.corpus.gguf import is_one as is_gguf
from retro_jax.errors import UserError
from retro_jax.model import functional
from retro_jax.model.retro import layer_names

_FIELDS = 2**16  # bytes of a GGUF file
NEVER = -1e30  # the readout's bias of a token that nothing is to predict


@dataclass(frozen=True)
class Pretrained:
    """A decoder, or a whole RETRO, that lies in a directory.

    Attributes:
      path: of the directory or file. kind: gpt2, gpt_neox, llama, mistral, qwen2, qwen3, retro_jax or
        instructretro.
      model: what of the network the weights decide; the rest has its defaults.
      vocab: tokens, this project's own four and padding included.
      retrieval: whether it is a whole RETRO.
      dtype: of the weights, as its config says.
      read: a weight by its name, [..] in the network's layout without the stacks' axis; a view of a file
        where it can be. Raises UserError for one that is missing, misshapen or damaged.
    """

    path: Path
    kind: str
    model: ModelConfig
    vocab: int
    retrieval: bool
    dtype: np.dtype
    read: Callable[[str], np.ndarray]

    def names(self) -> list[str]:
        """All weights."""
        return list(shapes(self.model, self.vocab, self.retrieval))


def read_config(path: Path) -> dict:
    """A directory's config.json."""
    if not path.is_dir():
        raise UserError(
            f"{path}: no such directory of a pre-trained model; nothing is downloaded here: fetch a "
            "model of the hub into a directory first (docs/retrofit.md)"
        )
    if not (path / "config.json").exists() and (files := sorted(path.glob("*.gguf"))):
        raise UserError(f"{path}: holds a GGUF file; name the file, {files[0]}")
    found = read_object(
        path / "config.json", "; a model's directory has a config.json and *.safetensors"
    )
    if "retro_jax" in found and isinstance(found.get("config"), dict):  # store/workdir.py
        raise UserError(
            f"{path}: is a working directory of this project; `retro export {path} --to=MODEL` makes a directory that "
            "can be a base"
        )
    return found


def read_json(file: Path, remedy: str = ""):
    """What a JSON file from outside holds.

    Raises:
      UserError: it cannot be read.
    """
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file}: cannot be read ({error}){remedy}") from error


def read_object(file: Path, remedy: str = "") -> dict:
    """The one object that a JSON file from outside holds; see `read_json`."""
    values = read_json(file, remedy)
    if not isinstance(values, dict):
        raise UserError(f"{file}: must hold one JSON object")
    return values


def identity(path: Path) -> str:
    """A hash that tells a directory from any other by all but the numbers in it: its config.json, the names
    and sizes of its files."""
    if is_gguf(path) and path.is_file():
        with path.open("rb") as file:  # its fields stand first
            about = [path.stat().st_size, hashlib.sha256(file.read(_FIELDS)).hexdigest()]
        return hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]
    files = sorted(f for f in path.rglob("*") if f.suffix in (".json", ".safetensors", ".pt"))
    if not files:
        raise UserError(f"{path}: no such directory of a pre-trained model (train.base)")
    about = [[str(f.relative_to(path)), f.stat().st_size] for f in files]
    config = path / "config.json"
    text = json.dumps(about).encode() + (config.read_bytes() if config.is_file() else b"")
    return hashlib.sha256(text).hexdigest()[:16]


def decided(model: ModelConfig, retrieval: bool) -> dict:
    """{"model.decoder.d": value, ...} of all fields that weights decide: the decoder's and, of a whole RETRO, the
    encoder's and how it is read."""
    parts = ("decoder", "encoder", "reading") if retrieval else ("decoder",)
    fields = {}
    for part in parts:
        fields |= binding(getattr(model, part), f"model.{part}.")
    return fields


def where(config: ModelConfig, names) -> dict[str, tuple[str, int | None]]:
    """Of each weight by its layer's number, the network's name and the place in the stack, or None.

    names: those of `functional.shapes`.
    """
    layers, found = layer_names(config), {}
    for name in names:
        if not name.startswith("stacks."):
            found[name] = (name, None)
            continue
        prefix = ".".join(name.split(".")[:3])
        for number, (at, index) in enumerate(layers):
            if at == prefix:
                found[f"layers.{number}{name[len(prefix) :]}"] = (name, index)
    return found


def shapes(config: ModelConfig, vocab: int, retrieval: bool) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every weight, by its layer's number."""
    stacked = functional.shapes(config, vocab, retrieval)
    return {
        name: stacked[at] if index is None else stacked[at][1:]
        for name, (at, index) in where(config, stacked).items()
    }


def dtype_of(config: dict, file) -> np.dtype:
    """What a config says of its weights, `dtype` or, of old, `torch_dtype`; float32 if nothing."""
    name = config.get("dtype") or config.get("torch_dtype") or "float32"
    if name not in ("float32", "float16", "bfloat16"):
        raise UserError(f"{file}: dtype = {name!r}: must be float32, float16 or bfloat16")
    return np.dtype(jnp.bfloat16 if name == "bfloat16" else name)
