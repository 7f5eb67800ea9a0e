"""A frozen BERT in Flax: weights from a safetensors directory, mean of the last layer over time.

The paper's key is "BERT(N) averaged over time" (section 2.3). Every token of the text counts in the
mean, [CLS] and [SEP] included, as they do in the output of the model; padding does not.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from safetensors import SafetensorError
from safetensors.numpy import load_file

from retro_jax.errors import UserError

_STEP = 4  # tokens, between the lengths of batches

# S texts, T tokens, D width, N heads, H head size


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
    def __init__(self, width: int, heads: int, ff: int, eps: float):
        self.read = _Linear(width, 3 * width)  # queries, keys and values at once
        self.output = _Linear(width, width)
        self.attention_norm, self.output_norm = _Norm(width, eps), _Norm(width, eps)
        self.up, self.down = _Linear(width, ff), _Linear(ff, width)
        self.heads = heads

    def __call__(self, x, mask):
        split = self.read(x).reshape(*x.shape[:2], 3, self.heads, -1)
        q, k, v = jnp.moveaxis(split, (2, 3), (0, 2))  # each [S, N, T, H]
        logits = jnp.einsum("snth,snuh->sntu", q, k, preferred_element_type=jnp.float32)
        logits = jnp.where(mask[:, None, None, :], logits * q.shape[-1] ** -0.5, -1e30)
        weights = jnp.exp(logits - logits.max(-1, keepdims=True))
        weights, total = weights.astype(v.dtype), weights.sum(-1, keepdims=True)
        a = jnp.einsum("sntu,snuh->snth", weights, v, preferred_element_type=jnp.float32)
        a = (a / total).astype(x.dtype)
        x = self.attention_norm(x + self.output(jnp.moveaxis(a, 1, 2).reshape(x.shape)))
        return self.output_norm(x + self.down(jax.nn.gelu(self.up(x), approximate=False)))


class Bert(nnx.Module):
    """BERT's encoder, post-norm, learned positions."""

    def __init__(self, config: dict):
        width, eps = config["hidden_size"], config["layer_norm_eps"]
        self.words = nnx.Param(jnp.zeros((config["vocab_size"], width)))
        self.positions = nnx.Param(jnp.zeros((config["max_position_embeddings"], width)))
        self.types = nnx.Param(jnp.zeros((config["type_vocab_size"], width)))
        self.norm = _Norm(width, eps)
        self.layers = nnx.List(
            [
                _Layer(width, config["num_attention_heads"], config["intermediate_size"], eps)
                for _ in range(config["num_hidden_layers"])
            ]
        )

    def __call__(self, ids, mask):
        """ids [S, T], mask [S, T] bool -> last hidden state [S, T, D]."""
        x = self.words[...][ids] + self.positions[...][: ids.shape[1]] + self.types[...][0]
        x = self.norm(x)
        for layer in self.layers:
            x = layer(x, mask)
        return x

    def mean(self, ids, mask):
        """The mean of the last hidden state over the tokens of the mask: [S, D]."""
        weights = mask[..., None].astype(jnp.float32)
        last = self(ids, mask).astype(jnp.float32)
        return (last * weights).sum(1) / jnp.maximum(weights.sum(1), 1)


_LAYER_NAMES = {
    "read": ("attention.self.query", "attention.self.key", "attention.self.value"),
    "output": ("attention.output.dense",),
    "attention_norm": ("attention.output.LayerNorm",),
    "up": ("intermediate.dense",),
    "down": ("output.dense",),
    "output_norm": ("output.LayerNorm",),
}


def check(directory: Path):
    """Raises UserError if a file that BertEmbedder needs is not in the directory."""
    for pattern in ("config.json", "*.safetensors", "tokenizer.json"):
        if not any(directory.glob(pattern)):
            raise UserError(
                f"config field retrieval.embedder = 'bert:{directory}': no {pattern} there; save model "
                "and tokenizer into one folder, for example with save_pretrained of Hugging Face"
            )


def load_bert(directory: Path) -> Bert:
    """A Bert with the weights of `directory` (config.json, model.safetensors).

    Raises:
      UserError: a missing file, another architecture, or a missing or misshapen weight.
    """
    try:
        config = json.loads((directory / "config.json").read_text())
        weights = {}
        for file in sorted(directory.glob("*.safetensors")):
            weights |= load_file(file)
    except (OSError, json.JSONDecodeError, SafetensorError) as error:
        raise UserError(f"{directory}: no BERT can be read from here ({error})") from error
    if config.get("model_type") != "bert":
        raise UserError(f"{directory}/config.json: model_type is not bert")
    model = Bert(config)

    def find(name: str) -> np.ndarray:
        # Files of the hub differ: a `bert.` prefix, and gamma/beta for weight/bias.
        old = name.replace("LayerNorm.weight", "LayerNorm.gamma")
        old = old.replace("LayerNorm.bias", "LayerNorm.beta")
        for candidate in (name, f"bert.{name}", old, f"bert.{old}"):
            if candidate in weights:
                return weights[candidate].astype(np.float32)
        raise UserError(f"{directory}: the weights hold no {name}")

    def put(param: nnx.Param, *names: str):
        found = [find(name) for name in names]
        # Matrices, but for the embeddings, are [out, in] in the files.
        turned = found[0].ndim == 2 and not names[0].startswith("embeddings")
        value = np.concatenate([x.T if turned else x for x in found], axis=-1)
        if value.shape != param.shape:
            raise UserError(
                f"{directory}: {' and '.join(names)}: {list(value.shape)}, but config.json "
                f"implies {list(param.shape)}"
            )
        param[...] = jnp.asarray(value)

    for param, name in (
        (model.words, "word_embeddings"),
        (model.positions, "position_embeddings"),
        (model.types, "token_type_embeddings"),
    ):
        put(param, f"embeddings.{name}.weight")
    put(model.norm.weight, "embeddings.LayerNorm.weight")
    put(model.norm.bias, "embeddings.LayerNorm.bias")
    for i, layer in enumerate(model.layers):
        for ours, theirs in _LAYER_NAMES.items():
            for part in ("weight", "bias"):
                names = (f"encoder.layer.{i}.{name}.{part}" for name in theirs)
                put(getattr(getattr(layer, ours), part), *names)
    return model


class BertEmbedder:
    """Texts to the mean of a frozen BERT's last layer, with the directory's own tokenizer.

    Texts of like length are embedded together, a batch over all devices.

    Args:
      directory: config.json, *.safetensors, tokenizer.json.
      compute: float32 or bfloat16, of the network; norms, softmax and the mean are float32.
      batch: texts that are embedded at a time; by default 64 a device, or 16 on a CPU, in whose cache
        their activations stay.
    """

    dtype = np.dtype("<f4")

    def __init__(self, directory: Path, compute: str = "float32", batch: int = 0):
        from tokenizers import Tokenizer  # only who embeds with BERT needs it

        check(directory)
        self._tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        # The file may ask for padding to a fixed length, which would count as text below.
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        # Its own mesh, whatever mesh the caller trains on.
        devices = jax.local_devices()
        self._mesh = jax.make_mesh((len(devices),), ("data",), (AxisType.Auto,), devices=devices)
        with jax.set_mesh(self._mesh):
            graph, params = nnx.split(load_bert(directory))
            params = jax.tree.map(lambda x: x.astype(compute), params)
            self._params = jax.device_put(params, NamedSharding(self._mesh, P()))
        self._positions = params["positions"].shape[0]
        self.width = params["words"].shape[1]
        if not batch:
            batch = 16 if devices[0].platform == "cpu" else 64 * len(devices)
        self._batch = -(-batch // len(devices)) * len(devices)
        self._mean = jax.jit(lambda p, ids, mask: nnx.merge(graph, p).mean(ids, mask))

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Texts -> [n, E] float32. Tokens past the model's last position are cut off."""
        encoded = [e.ids[: self._positions] for e in self._tokenizer.encode_batch(list(texts))]
        out = np.empty((len(texts), self.width), np.float32)
        order = np.argsort([len(ids) for ids in encoded], kind="stable")
        rows_of, spread = NamedSharding(self._mesh, P("data")), self._mesh.size
        pending = []
        for start in range(0, len(order), self._batch):
            rows = order[start : start + self._batch]
            # Few shapes, so few compilations: lengths in steps of _STEP, and the last batch a power of 2.
            longest = max(1, len(encoded[rows[-1]]))
            length = min(self._positions, -(-longest // _STEP) * _STEP)
            size = min(self._batch, -(-(1 << (len(rows) - 1).bit_length()) // spread) * spread)
            ids = np.zeros((size, length), np.int32)
            mask = np.zeros((size, length), bool)
            for i, row in enumerate(rows):
                ids[i, : len(encoded[row])] = encoded[row]
                mask[i, : len(encoded[row])] = True
            with jax.set_mesh(self._mesh):
                given = jax.device_put((ids, mask), rows_of)
                pending.append((rows, self._mean(self._params, *given)))
        for rows, means in pending:  # read back only now: devices do not wait for the host
            out[rows] = np.asarray(means)[: len(rows)]
        return out
