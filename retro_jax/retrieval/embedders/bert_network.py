"""Frozen encoders of BERT's family: BERT (MiniLM and others are it too), RoBERTa, DistilBERT, MPNet.

All are post-norm Transformers with learned positions. They differ in where positions begin, in token types, and
MPNet adds to the logits a bias by distance, the same in every layer.

    S texts, T tokens, D width, N heads, H head size
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from retro_jax.errors import UserError
from retro_jax.model import layers
from retro_jax.weights import families, pretrained
from retro_jax.weights.families import Fields
from retro_jax.weights.tensors import Tensors

_ACTIVATIONS = {
    name: layers.ACTIVATIONS[families.ACTIVATIONS[name]]
    for name in ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu")
}
_FURTHEST = 128  # tokens, from which on MPNet tells distances no longer apart


@dataclass(frozen=True)
class Config:
    """An encoder.

    Attributes:
      begin: the position of a text's first token. types: rows of token types, 0 for none.
      buckets: of distances, MPNet's; 0 for none.
    """

    kind: str
    width: int
    heads: int
    layers: int
    ff: int
    vocab: int
    positions: int
    eps: float
    activation: str
    begin: int = 0
    types: int = 0
    buckets: int = 0

    @property
    def length(self) -> int:
        """Tokens that a text can have."""
        return self.positions - self.begin


def read_config(file: Path, values: dict) -> Config:
    """What a config.json says.

    Raises:
      UserError: of another architecture, or with what is not supported.
    """
    f, kind = Fields(file, values), values.get("model_type")
    if not isinstance(kind, str) or kind not in _NAMES:
        f.refuse("model_type", f"no encoder of BERT's family; known: {', '.join(_NAMES)}")
    own = kind == "distilbert"  # it has names of its own
    f.must("position_embedding_type", "absolute", "this")
    f.must("is_decoder", False, "a decoder")
    f.must("embedding_size", None, "an embedding of another width")
    activation = "activation" if own else "hidden_act"
    if values.get(activation) not in list(_ACTIVATIONS):
        f.refuse(activation, f"is not supported; known: {', '.join(_ACTIVATIONS)}")
    width, heads = (
        f.count("dim" if own else "hidden_size"),
        f.count("n_heads" if own else "num_attention_heads"),
    )
    if width % heads:
        f.refuse("dim" if own else "hidden_size", f"must be a multiple of the {heads} heads")
    pad = values.get("pad_token_id", 1)
    late = kind in ("roberta", "xlm-roberta", "mpnet")
    made = Config(
        kind, width, heads, f.layers("n_layers" if own else "num_hidden_layers"),
        f.count("hidden_dim" if own else "intermediate_size"), f.count("vocab_size"),
        f.count("max_position_embeddings"), 1e-12 if own else f.number("layer_norm_eps", 1e-12),
        values[activation], begin=pad + 1 if late and type(pad) is int else 0,
        types=f.count("type_vocab_size") if _TYPES in _NAMES[kind].top else 0,
        buckets=f.count("relative_attention_num_buckets", 32) if kind == "mpnet" else 0,
    )  # fmt: skip
    if not 0 <= made.begin < made.positions:
        f.refuse("pad_token_id", f"must be less than the {made.positions} positions")
    if made.buckets and not 4 <= made.buckets < 4 * _FURTHEST:
        f.refuse("relative_attention_num_buckets", f"must lie between 4 and {4 * _FURTHEST - 1}")
    return made


class _Norm(nnx.Module):
    def __init__(self, width: int, eps: float):
        self.weight = nnx.Param(jnp.ones(width))
        self.bias = nnx.Param(jnp.zeros(width))
        self.eps = eps

    def __call__(self, x):
        kind, x = x.dtype, x.astype(jnp.float32)
        x = x - x.mean(-1, keepdims=True)
        x = x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + self.eps)
        return (x * self.weight[...] + self.bias[...]).astype(kind)


class _Linear(nnx.Module):
    """y = x W + b, W [in, out]: PyTorch's turned, which is the faster way round for a CPU."""

    def __init__(self, width_in: int, width_out: int):
        self.weight = nnx.Param(jnp.zeros((width_in, width_out)))
        self.bias = nnx.Param(jnp.zeros(width_out))

    def __call__(self, x):
        # Summed in float32, which a CPU does twice as fast of bfloat16 numbers as summing in bfloat16.
        y = jnp.matmul(x, self.weight[...], preferred_element_type=jnp.float32)
        return (y + self.bias[...]).astype(x.dtype)


class _Layer(nnx.Module):
    def __init__(self, c: Config):
        self.read = _Linear(c.width, 3 * c.width)  # queries, keys and values at once
        self.output = _Linear(c.width, c.width)
        self.attention_norm, self.output_norm = _Norm(c.width, c.eps), _Norm(c.width, c.eps)
        self.up, self.down = _Linear(c.width, c.ff), _Linear(c.ff, c.width)
        self.heads, self.activation = c.heads, c.activation

    def __call__(self, x, mask, bias):
        split = self.read(x).reshape(*x.shape[:2], 3, self.heads, -1)
        q, k, v = jnp.moveaxis(split, (2, 3), (0, 2))  # each [S, N, T, H]
        logits = jnp.einsum("snth,snuh->sntu", q, k, preferred_element_type=jnp.float32)
        logits = logits * q.shape[-1] ** -0.5 + bias
        logits = jnp.where(mask[:, None, None, :], logits, -1e30)
        weights = jnp.exp(logits - logits.max(-1, keepdims=True))
        weights, total = weights.astype(v.dtype), weights.sum(-1, keepdims=True)
        a = jnp.einsum("sntu,snuh->snth", weights, v, preferred_element_type=jnp.float32)
        a = (a / total).astype(x.dtype)
        x = self.attention_norm(x + self.output(jnp.moveaxis(a, 1, 2).reshape(x.shape)))
        return self.output_norm(x + self.down(_ACTIVATIONS[self.activation](self.up(x))))


class Bert(nnx.Module):
    """The encoder of a `Config`."""

    def __init__(self, c: Config):
        self.config = c
        self.words = nnx.Param(jnp.zeros((c.vocab, c.width)))
        self.positions = nnx.Param(jnp.zeros((c.positions, c.width)))
        if c.types:
            self.types = nnx.Param(jnp.zeros((c.types, c.width)))
        if c.buckets:
            self.distances = nnx.Param(jnp.zeros((c.buckets, c.heads)))
        self.norm = _Norm(c.width, c.eps)
        self.layers = nnx.List([_Layer(c) for _ in range(c.layers)])

    def __call__(self, ids, mask):
        """ids [S, T], mask [S, T] bool, padding after a text -> last hidden state [S, T, D]."""
        c, length = self.config, ids.shape[1]
        x = self.words[...][ids] + self.positions[...][c.begin : c.begin + length]
        if c.types:
            x = x + self.types[...][0]
        bias = jnp.zeros((), jnp.float32)
        if c.buckets:
            bias = self.distances[...].astype(jnp.float32)[_buckets(length, c.buckets)]
            bias = jnp.moveaxis(bias, 2, 0)  # [N, T, T]
        x = self.norm(x)
        for layer in self.layers:
            x = layer(x, mask, bias)
        return x


def _buckets(length: int, buckets: int) -> np.ndarray:
    """MPNet's bucket of each query's distance to each key [T, T]: half of them for keys after the query; of
    each half, half for single distances, the others for ever longer ranges (as in T5, arXiv 1910.10683)."""
    distance = np.arange(length)[:, None] - np.arange(length)  # query minus key
    half, single = buckets // 2, buckets // 4
    far = np.maximum(np.abs(distance), 1) / single
    far = single + (np.log(far) / np.log(_FURTHEST / single) * (half - single)).astype(int)
    near = np.where(np.abs(distance) < single, np.abs(distance), np.minimum(far, half - 1))
    return near + half * (distance < 0)


@dataclass(frozen=True)
class _Names:
    """How a kind's files name the weights: {ours: theirs}."""

    prefix: str  # which files may leave out
    top: dict[str, str]
    layer: str  # {} is the number
    layers: dict[str, tuple[str, ...]]


_TYPES = "types"
_TOP = {
    "words": "embeddings.word_embeddings.weight",
    "positions": "embeddings.position_embeddings.weight",
    "norm": "embeddings.LayerNorm",
}
_FEED_FORWARD = {
    "up": ("intermediate.dense",), "down": ("output.dense",), "output_norm": ("output.LayerNorm",),
}  # fmt: skip


def _bert(prefix: str) -> _Names:
    self_ = tuple(f"attention.self.{name}" for name in ("query", "key", "value"))
    attention = {
        "read": self_,
        "output": ("attention.output.dense",),
        "attention_norm": ("attention.output.LayerNorm",),
    }
    top = _TOP | {_TYPES: "embeddings.token_type_embeddings.weight"}
    return _Names(prefix, top, "encoder.layer.{}.", attention | _FEED_FORWARD)


_NAMES = {
    "bert": _bert("bert."),
    "roberta": _bert("roberta."),
    "xlm-roberta": _bert("roberta."),
    "distilbert": _Names(
        "distilbert.", _TOP, "transformer.layer.{}.",
        {
            "read": ("attention.q_lin", "attention.k_lin", "attention.v_lin"),
            "output": ("attention.out_lin",), "attention_norm": ("sa_layer_norm",),
            "up": ("ffn.lin1",), "down": ("ffn.lin2",), "output_norm": ("output_layer_norm",),
        },
    ),
    "mpnet": _Names(
        "mpnet.", _TOP | {"distances": "encoder.relative_attention_bias.weight"},
        "encoder.layer.{}.",
        {
            "read": ("attention.attn.q", "attention.attn.k", "attention.attn.v"),
            "output": ("attention.attn.o",), "attention_norm": ("attention.LayerNorm",),
            **_FEED_FORWARD,
        },
    ),
}  # fmt: skip


def load_bert(directory: Path) -> Bert:
    """A Bert with the weights of a directory (config.json, *.safetensors).

    Raises:
      UserError: another architecture, or a missing, misshapen or damaged weight.
    """
    config = read_config(directory / "config.json", pretrained.read_config(directory))
    names, tensors = _NAMES[config.kind], Tensors(directory)
    find = _finder(directory, tensors, names.prefix)
    model = nnx.eval_shape(lambda: Bert(config))  # sizes are checked before memory is taken
    graph, state = nnx.split(model)

    def value(path: tuple, shape: tuple[int, ...]) -> jax.Array:
        *path, last = path
        if path[:1] == ["layers"]:
            _, number, part = path
            theirs = [f"{names.layer.format(number)}{each}.{last}" for each in names.layers[part]]
        else:
            theirs = [f"{names.top['norm']}.{last}" if path else names.top[last]]
        parts = [find(each) for each in theirs]
        # Matrices, but for tables, are [out, in] in the files.
        turned = bool(path) and parts[0].ndim == 2
        if len({x.shape for x in parts}) > 1 or not parts[0].ndim:
            raise UserError(f"{directory}: {' and '.join(theirs)} have not the shapes of one layer")
        made = np.concatenate([x.T if turned else x for x in parts], axis=-1)
        if made.shape != shape:
            raise UserError(
                f"{directory}: {' and '.join(theirs)}: {list(made.shape)}, but config.json implies "
                f"{list(shape)}"
            )
        return jnp.asarray(made)

    found = {path: leaf.replace(value(path, leaf.shape)) for path, leaf in nnx.to_flat_state(state)}
    return nnx.merge(graph, nnx.from_flat_state(found))


def _finder(directory: Path, tensors: Tensors, prefix: str) -> Callable[[str], np.ndarray]:
    def find(name: str) -> np.ndarray:
        # Files of the hub differ: a prefix, and gamma/beta for weight/bias.
        old = name.replace("LayerNorm.weight", "LayerNorm.gamma")
        old = old.replace("LayerNorm.bias", "LayerNorm.beta")
        for candidate in (name, prefix + name, old, prefix + old):
            if candidate in tensors:
                return np.asarray(tensors[candidate], np.float32)
        raise UserError(f"{directory}: the files hold no {name}, which config.json implies")

    return find
