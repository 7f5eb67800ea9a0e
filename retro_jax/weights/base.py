"""The weights that training begins with: those of `train.base`."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp

from retro_jax.config import Experiment, ModelConfig
from retro_jax.corpus import tokenizer
from retro_jax.errors import UserError
from retro_jax.model import functional
from retro_jax.weights import directory, pretrained
from retro_jax.weights.placement import place
from retro_jax.weights.pretrained import Pretrained


def open_base(e: Experiment, tokenizer: Path) -> Pretrained | None:
    """What `train.base` holds, which fits the experiment; None without one.

    tokenizer: the folder of the prepared corpus's.

    Raises:
      UserError: the directory cannot be read, or its model or its tokenizer is not the experiment's.
    """
    if not e.train.base:
        return None
    given = directory.open_directory(Path(e.train.base))
    _check_model(given.path, given.model, given.retrieval, e.model)
    _check_tokenizer(given, tokenizer)
    return given


def base_weights(
    given: Pretrained | None, model: ModelConfig, retrieval: bool, mesh
) -> dict[str, jax.Array]:
    """The weights of what `open_base` gave by name, on the mesh in context; none of None.

    retrieval: whether a whole RETRO's encoder and cross-attention are wanted too.
    """
    return place(given, model, retrieval and given.retrieval, mesh) if given else {}


def base_shapes(e: Experiment, vocab: int, retrieval: bool) -> dict[str, jax.ShapeDtypeStruct]:
    """What `base_weights` gives of `train.base`, as shapes; a config.json is enough for it. On the mesh in context."""
    if not e.train.base:
        return {}
    path = Path(e.train.base)
    whole, file = retrieval and directory.model_of(path)[1], path / "config.json"
    if file.exists():
        dtype = pretrained.dtype_of(pretrained.read_config(path), file)
    else:
        dtype = directory.open_directory(path).dtype
    made = jax.eval_shape(lambda: functional.init(e.model, vocab, 0, whole))
    kept = jnp.bfloat16 if dtype == jnp.bfloat16 else jnp.float32
    return {
        name: jax.ShapeDtypeStruct(x.shape, kept, sharding=x.sharding) for name, x in made.items()
    }


def model_like(given: ModelConfig, retrieval: bool, model: ModelConfig) -> ModelConfig:
    """`model` with what the weights of a base decide; of a decoder, `model` says how it reads."""
    model = dataclasses.replace(model, decoder=given.decoder)
    if not retrieval:
        return model
    return dataclasses.replace(model, encoder=given.encoder, reading=given.reading)


def check_model(e: Experiment):
    """Raises UserError unless the experiment's model is one that the weights of `train.base` fit, as its
    config says; weights need not be there."""
    if e.train.base:
        path = Path(e.train.base)
        _check_model(path, *directory.model_of(path), e.model)


def _check_model(path: Path, given: ModelConfig, whole: bool, model: ModelConfig):
    wanted = pretrained.decided(given, whole)
    for name, value in pretrained.decided(model, whole).items():
        if wanted[name] != value:
            raise UserError(
                f"config field {name} = {value!r}: the weights of train.base = {path} have "
                f"{wanted[name]!r}; let experiments/retrofit.py read them from there"
            )


def _check_tokenizer(given: Pretrained, prepared: Path):
    theirs = directory.tokenizer_of(given.path)
    if not theirs:
        names = " or ".join(directory.TOKENIZERS)
        raise UserError(f"{given.path}: no {names} there; put that of the model beside its weights")
    name, data = tokenizer.file_of(theirs)
    own = prepared / name
    if not (own.is_file() and own.read_bytes() == data):
        raise UserError(
            f"{prepared}: the corpus was prepared with another tokenizer than {theirs}; prepare it "
            f"with --config.corpus.tokenizer={theirs} (in another --workdir)"
        )
