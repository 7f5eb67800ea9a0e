"""What every part of the network is made of: weights, norms, the feed-forward, the embedding."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec as P
from jax.sharding import reshard

from retro_jax.config import DecoderConfig, ModelConfig
from retro_jax.model import on_cpu
from retro_jax.model.attend import SAVED
from retro_jax.model.einsum import project

# Axes of the mesh. `replica` and `data` split the rows of a batch; `data` splits, at rest, every matrix;
# `model` splits heads, feed-forward width and vocabulary.
AXES = ("replica", "data", "model")
ROWS = P(("replica", "data"))


def by_rows(x):
    """Over the mesh by its first axis alone."""
    return reshard(x, P(ROWS[0], *(None,) * (x.ndim - 1)))


class RetroParam(nnx.Param):
    """A weight that retrieval adds to a language model: encoder and chunked cross-attention."""


def gather(param: nnx.Param, dtype) -> jax.Array:
    """A weight at its use: in the dtype of the computation, gathered over the `data` axis."""
    value = param[...].astype(dtype)
    spec = jax.typeof(value).sharding.spec
    return reshard(value, P(*(None if axis == "data" else axis for axis in spec)))


def weight(kind: type, shape: tuple, fan_in: int, spec: P, scale: float = 1.0, like: str = ""):
    """A matrix that `init` draws, of standard deviation scale / sqrt(fan_in).

    like: the sibling whose values it starts with instead, times `scale` (see `init.start_like`).
    """
    zeros = jnp.zeros(shape, jnp.float32, out_sharding=spec)
    return kind(zeros, std=scale / float(np.sqrt(fan_in)), fill=0.0, like=like, scale=scale)


def constant(kind: type, shape: tuple, spec: P, fill: float = 0.0):
    """A bias or a norm's scale, which starts as `fill`."""
    zeros = jnp.zeros(shape, jnp.float32, out_sharding=spec)
    return kind(zeros, std=0.0, fill=fill, like="", scale=1.0)


class Norm(nnx.Module):
    """x / rms(x) * scale; with norm = layer, x is centred first. In float32, over the last axis."""

    def __init__(self, config: DecoderConfig, width: int, kind: type):
        self.config = config
        self.scale = constant(kind, (width,), P(None), 1.0 - config.norm_unit_offset)
        if config.norm_bias:
            self.shift_bias = constant(kind, (width,), P(None))

    def __call__(self, x):
        shift_bias = self.shift_bias[...] if self.config.norm_bias else None
        return _normalise(self.config, x, self.scale[...], shift_bias)


# Norms and activations are cheap to compute again, and dear to keep: each would leave several arrays
# of the layer's width for the gradient. (What is after them in `_down` is not computed again: the
# gradient of a product needs its operands only.)
@functools.partial(jax.checkpoint, static_argnums=0)
def _normalise(config: DecoderConfig, x, scale, shift_bias):
    y = x.astype(jnp.float32)
    if config.norm == "layer":
        y = y - y.mean(axis=-1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + config.norm_eps)
    y = y * (scale + config.norm_unit_offset)
    return (y if shift_bias is None else y + shift_bias).astype(x.dtype)


ACTIVATIONS = {
    "gelu": jax.nn.gelu,  # by tanh, as in GPT-2
    "gelu_exact": lambda x: jax.nn.gelu(x, approximate=False),
    "silu": jax.nn.silu,
    "relu": jax.nn.relu,
}


class FeedForward(nnx.Module):
    """d -> inner -> d; gated, a second matrix into `inner` multiplies (SwiGLU, GEGLU)."""

    def __init__(self, config: DecoderConfig, d: int, inner: int, kind: type, out_scale: float):
        self.config = config
        self.up = weight(kind, (d, inner), d, P("data", "model"))
        self.down = weight(kind, (inner, d), inner, P("model", "data"), out_scale)
        if config.gated:
            self.gate = weight(kind, (d, inner), d, P("data", "model"))
        if config.ffw_bias:
            self.up_bias = constant(kind, (inner,), P("model"))
            self.down_bias = constant(kind, (d,), P(None))

    def __call__(self, x):
        """x [..., D] -> [..., D]."""
        up = project(x, gather(self.up, x.dtype))
        if self.config.ffw_bias:
            up = up + self.up_bias[...].astype(x.dtype)
        gate = project(x, gather(self.gate, x.dtype)) if self.config.gated else None
        y = self._down(up, gate, gather(self.down, x.dtype))
        return y + self.down_bias[...].astype(x.dtype) if self.config.ffw_bias else y

    @functools.partial(jax.checkpoint, static_argnums=0)
    def _down(self, up, gate, down):
        act = ACTIVATIONS[self.config.activation]
        y = act(up) if gate is None else up * act(gate)
        return project(y, down, out_sharding=ROWS)


def embedding(kind: type, vocab: int, d: int):
    """A table [V, D] of standard deviation 1 / sqrt(D), so that a tied readout starts near 1."""
    return weight(kind, (vocab, d), d, P("model", "data"))


def look_up(table: jax.Array, ids: jax.Array) -> jax.Array:
    """Rows of a table [V, D] (as `gather` gives it): ids [...] -> [..., D]."""
    if on_cpu.is_slow(table):
        return on_cpu.look_up(table, ids, ROWS)
    return table.at[ids].get(out_sharding=ROWS)


def remat(config: ModelConfig, function):
    """`function`, with what the gradient keeps of it as the config says."""
    keep = jax.checkpoint_policies
    dots = keep.save_from_both_policies(
        keep.dots_with_no_batch_dims_saveable, keep.save_only_these_names(SAVED)
    )
    if config.remat == "none":
        return function
    policy = {"full": None, "dots": dots}[config.remat]
    return jax.checkpoint(function, policy=policy, prevent_cse=False)
