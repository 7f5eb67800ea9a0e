"""Sentence encoders from directories: texts to vectors as the directory says, with its own tokenizer.

A directory of sentence-transformers says in modules.json how the last layer becomes a vector. One without is a BERT
as it is, and its vector the mean over every token, [CLS] and [SEP] included: the paper's key, "BERT(N) averaged
over time" (section 2.3). Padding is never counted. Nothing of a directory is run.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from retro_jax.config.fields import require_one_of, setting
from retro_jax.errors import UserError
from retro_jax.model.sizes import dot_flops
from retro_jax.retrieval.embedder import Embedder
from retro_jax.retrieval.embedders import bert_network
from retro_jax.weights import pretrained
from retro_jax.weights.families import Fields

_STEP = 4  # tokens, between the lengths of batches
_POOLINGS = ("cls", "max", "mean", "mean_sqrt_len")  # in the order in which several are joined
_OLD = {  # how 1_Pooling/config.json said it before pooling_mode
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
}


@dataclass(frozen=True)
class Directory:
    """How a directory makes vectors.

    Attributes:
      transformer: the folder of network and tokenizer. poolings: of the last layer, one after the other.
      unit: whether vectors have length 1. length: tokens of a text at most, 0 being the network's own.
      prompt: what is put before every text, of the database and of queries alike, so that a chunk stays its
        own nearest neighbour: the default one, where there is one.
    """

    transformer: Path
    poolings: tuple[str, ...] = ("mean",)
    unit: bool = False
    length: int = 0
    lower: bool = False
    prompt: str = ""


def check(directory: Path) -> Directory:
    """The settings of a directory whose files are there, and say nothing that is not supported; else raises
    UserError."""
    settings = read_directory(directory)
    for pattern in ("config.json", "*.safetensors", "tokenizer.json"):
        if not any(settings.transformer.glob(pattern)):
            where = "there" if settings.transformer == directory else f"in {settings.transformer}"
            raise UserError(
                f"config field retrieval.settings.bert.directory = {str(directory)!r}: no {pattern} {where}; save "
                "model "
                "and tokenizer into one folder, for example with save_pretrained of Hugging Face"
            )
    config = pretrained.read_config(settings.transformer)
    bert_network.read_config(settings.transformer / "config.json", config)
    return settings


def read_directory(directory: Path) -> Directory:
    """The settings of a directory.

    Raises:
      UserError: a file that cannot be read, a module or a pooling that is not supported, a path that leaves
        the directory.
    """
    file = directory / "modules.json"
    if not file.is_file():
        return Directory(directory)
    modules = pretrained.read_json(file)
    if not isinstance(modules, list):
        raise UserError(f"{file}: must hold a list of modules")
    kinds = [m.get("type") if isinstance(m, dict) else None for m in modules]
    names = [kind.rpartition(".")[2] if isinstance(kind, str) else kind for kind in kinds]
    if names not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise UserError(
            f"{file}: modules {names}: supported are Transformer, Pooling and, last, Normalize"
        )
    folders = [_inside(directory, file, m.get("path")) for m in modules]
    poolings = _poolings(folders[1] / "config.json")
    length, lower = 0, False
    if (file := folders[0] / "sentence_bert_config.json").is_file():
        fields = Fields(file, pretrained.read_object(file))
        length = 0 if fields.get("max_seq_length") is None else fields.count("max_seq_length")
        lower = fields.flag("do_lower_case", False)
    prompt = ""
    if (file := directory / "config_sentence_transformers.json").is_file():
        values = pretrained.read_object(file)
        name, prompts = values.get("default_prompt_name"), values.get("prompts") or {}
        if name is not None:
            prompt = prompts.get(name) if isinstance(prompts, dict) else None
            if not isinstance(prompt, str):
                Fields(file, values).refuse("default_prompt_name", "is no text among prompts")
    return Directory(folders[0], poolings, len(names) == 3, length, lower, prompt)


def _poolings(file: Path) -> tuple[str, ...]:
    values = pretrained.read_object(file)
    fields = Fields(file, values)
    fields.must("include_prompt", True, "a pooling without the prompt")
    chosen = values.get("pooling_mode")
    if chosen is None:
        old = [
            name for name, value in values.items() if name.startswith("pooling_") and value is True
        ]
        unknown = [name for name in old if name not in _OLD]
        if unknown:
            fields.refuse(unknown[0], "this pooling is not supported")
        found = {_OLD[name] for name in old}
    else:
        chosen = chosen if isinstance(chosen, list) else [chosen]
        found = [str(name).removesuffix("_tokens").removesuffix("_token") for name in chosen]
        if not set(found) <= set(_POOLINGS):
            fields.refuse("pooling_mode", f"known: {', '.join(_POOLINGS)}")
    if not found:
        raise UserError(f"{file}: names no pooling; known: {', '.join(_POOLINGS)}")
    return tuple(name for name in _POOLINGS if name in found)


def _inside(directory: Path, file: Path, path) -> Path:
    if not isinstance(path, str) or not (directory / path).resolve().is_relative_to(
        directory.resolve()
    ):
        raise UserError(f"{file}: path {path!r} is no folder of this directory")
    return directory / path


def pool(last, mask, poolings: tuple[str, ...]):
    """The last layer [S, T, D] of texts whose tokens are where mask [S, T] is True -> [S, poolings D]."""
    last, weights = last.astype(jnp.float32), mask[..., None].astype(jnp.float32)
    count, made = jnp.maximum(weights.sum(1), 1), []
    for name in poolings:
        if name == "cls":
            made.append(last[:, 0])
        elif name == "max":
            made.append(jnp.where(mask[..., None], last, -jnp.inf).max(1))
        else:
            made.append((last * weights).sum(1) / (count if name == "mean" else jnp.sqrt(count)))
    return jnp.concatenate(made, axis=-1)


@dataclass(frozen=True)
class Settings:
    """The fields `retrieval.settings.bert.*`."""

    directory: str = setting("bert", "a sentence encoder of BERT's family (docs/pipeline.md)")
    dtype: str = setting("float32", "float32 | bfloat16, of the network's computation")

    def __post_init__(self):
        require_one_of("retrieval.settings.bert.dtype", self.dtype, ("float32", "bfloat16"))


class Bert(Embedder):
    """Texts to vectors with a frozen encoder of BERT's family (bert_network.py) and its own tokenizer.

    Texts of like length are embedded together, a batch over all devices.

    Args:
      directory: config.json, *.safetensors, tokenizer.json; or as sentence-transformers writes it.
      compute: float32 or bfloat16, of the network; norms, softmax and pooling are float32.
      batch: texts that are embedded at a time; by default 64 a device, or 16 on a CPU, in whose cache
        their activations stay.
      chunk: tokens of a chunk, for `operations` alone.
    """

    Settings = Settings

    @classmethod
    def check(cls, settings: Settings):
        """Raises UserError if a file of the directory is missing or is not supported."""
        check(Path(settings.directory))

    @classmethod
    def open(cls, settings: Settings, directory: Path, chunk: int) -> "Bert":
        """The encoder of the settings' directory; nothing of it was learned here."""
        return cls(Path(settings.directory), settings.dtype, chunk=chunk)

    @property
    def operations(self) -> float:
        """See `Embedder`: of a text with as many tokens as a chunk has."""
        row = (1, min(self._chunk, self._length))
        given = (jax.ShapeDtypeStruct(row, kind) for kind in (np.int32, bool))
        with jax.set_mesh(self._mesh):
            return float(dot_flops(jax.make_jaxpr(self._vectors)(self._params, *given).jaxpr))

    def __init__(self, directory: Path, compute: str = "float32", batch: int = 0, chunk: int = 64):
        from tokenizers import Tokenizer  # only who embeds with BERT needs it

        settings, self._chunk = check(directory), chunk
        try:
            self._tokenizer = Tokenizer.from_file(str(settings.transformer / "tokenizer.json"))
        except Exception as error:  # the library raises Exception itself
            raise UserError(
                f"{settings.transformer}/tokenizer.json: no tokenizer ({error})"
            ) from error
        # The file may ask for padding to a fixed length, which would count as text below.
        self._tokenizer.no_padding()
        self._lower, self._prompt = settings.lower, settings.prompt
        # Its own mesh, whatever mesh the caller trains on.
        devices = jax.local_devices()
        self._mesh = jax.make_mesh((len(devices),), ("data",), (AxisType.Auto,), devices=devices)
        with jax.set_mesh(self._mesh):
            model = bert_network.load_bert(settings.transformer)
            graph, params = nnx.split(model)
            params = jax.tree.map(lambda x: x.astype(compute), params)
            self._params = jax.device_put(params, NamedSharding(self._mesh, P()))
        self._length = min(settings.length or model.config.length, model.config.length)
        if self._length <= self._tokenizer.num_special_tokens_to_add(False):
            raise UserError(f"{directory}: texts of {self._length} tokens have room for no text")
        self._tokenizer.enable_truncation(self._length)  # which keeps [SEP]
        self._words = model.config.vocab
        self.width = model.config.width * len(settings.poolings)
        if not batch:
            batch = 16 if devices[0].platform == "cpu" else 64 * len(devices)
        self._batch = -(-batch // len(devices)) * len(devices)

        @jax.jit
        def vectors(params, ids, mask):
            made = pool(nnx.merge(graph, params)(ids, mask), mask, settings.poolings)
            if settings.unit:
                made = made / jnp.maximum(jnp.linalg.norm(made, axis=-1, keepdims=True), 1e-12)
            return made

        self._vectors = vectors

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Texts -> [n, E] float32. Texts with more tokens than the encoder takes are cut off.

        Raises:
          UserError: the tokenizer makes tokens that the network does not know.
        """
        texts = [self._prompt + text for text in texts]
        texts = [text.lower() for text in texts] if self._lower else texts
        encoded = [e.ids for e in self._tokenizer.encode_batch(texts)]
        if max((max(ids, default=0) for ids in encoded), default=0) >= self._words:
            raise UserError(
                f"the tokenizer of retrieval.embedder makes tokens past the {self._words} of its network"
            )
        out = np.empty((len(texts), self.width), np.float32)
        order = np.argsort([len(ids) for ids in encoded], kind="stable")
        rows_of, spread = NamedSharding(self._mesh, P("data")), self._mesh.size
        pending = []
        for start in range(0, len(order), self._batch):
            rows = order[start : start + self._batch]
            # Few shapes, so few compilations: lengths in steps of _STEP, and the last batch a power of 2.
            longest = max(1, len(encoded[rows[-1]]))
            length = min(self._length, -(-longest // _STEP) * _STEP)
            size = min(self._batch, -(-(1 << (len(rows) - 1).bit_length()) // spread) * spread)
            ids = np.zeros((size, length), np.int32)
            mask = np.zeros((size, length), bool)
            for i, row in enumerate(rows):
                ids[i, : len(encoded[row])] = encoded[row]
                mask[i, : len(encoded[row])] = True
            with jax.set_mesh(self._mesh):
                given = jax.device_put((ids, mask), rows_of)
                pending.append((rows, self._vectors(self._params, *given)))
        for rows, means in pending:  # read back only now: devices do not wait for the host
            out[rows] = np.asarray(means)[: len(rows)]
        return out
