"""Attention with Transformer-XL relative positions, for every attention of RETRO.

One function, `attend`, serves the decoder's self-attention, the encoder's self-attention, the
encoder's cross-attention and chunked cross-attention: they differ in what is a query, what is a
memory, and in the distance between query 0 and key 0.

    B batch, G groups that attend each to its own memories, K memories of a group, I queries,
    J keys of a memory, S distances (I + J of them, or 1 + J), D width, N heads, H head size

Positions follow Dai et al. 2019 (arXiv 1901.02860, section 3.3) as the paper's appendix B.1.2 says:

    logit(i, j) = ((q_i + u) . k_j + (q_i + v) . (sinusoid(distance(i, j)) W_r)) / sqrt(H)
    distance(i, j) = i - j + offset          (query minus key, signed)
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec as P
from jax.sharding import reshard


class RetroParam(nnx.Param):
    """A weight that retrieval adds to a language model: encoder and chunked cross-attention."""


def gather(param: nnx.Param, dtype) -> jax.Array:
    """A weight at its use: in the dtype of the computation, gathered over the `data` axis."""
    value = param[...].astype(dtype)
    spec = jax.typeof(value).sharding.spec
    return reshard(value, P(*(None if axis == "data" else axis for axis in spec)))


def weight(kind: type, key: jax.Array, shape: tuple, fan_in: int, spec: P, scale: float = 1.0):
    """A matrix drawn from a truncated normal of standard deviation scale / sqrt(fan_in)."""
    # 0.8796 is the standard deviation of a standard normal cut at +-2.
    draw = jax.random.truncated_normal(key, -2.0, 2.0, shape, jnp.float32, out_sharding=spec)
    return kind(draw * (scale / (0.87962566 * np.sqrt(fan_in))))


def sinusoid(distances: np.ndarray, width: int) -> jax.Array:
    """Sine and cosine of signed distances: [S] -> [S, width], float32.

    Half of the columns are sines, half cosines, of the frequencies 10000^(-2 i / width). Computed in
    float64 on the host: a distance is a static number, and bfloat16 cannot hold 2047.
    """
    angles = distances[:, None] * 10000.0 ** (-np.arange(0, width, 2) / width)
    return jnp.asarray(np.concatenate([np.sin(angles), np.cos(angles)], axis=-1), jnp.float32)


def distances(queries: int, keys: int, offset: int, causal: bool) -> np.ndarray:
    """The distances that `shift` expects, in its order: from farthest past to farthest future.

    Entry 1 + s is the distance of query i and key j = s - (queries - 1 - i); entry 0 is of no pair,
    and gives `shift` the column that it needs to turn rows into diagonals. A causal attention needs
    no negative distance, so its table ends at the query's own position.
    """
    count = keys if causal else queries + keys - 1
    return offset + queries - np.arange(count + 1)


def shift(x: jax.Array, keys: int) -> jax.Array:
    """Logits by distance to logits by key: [..., I, S] -> [..., I, J], out[i, j] = x[i, j + I - i].

    Two reshapes and a slice instead of a gather (Dai et al. 2019, appendix B). Where j + I - i >= S
    (the future, in a causal attention) the result means nothing; mask it.
    """
    *batch, queries, count = x.shape
    x = x.reshape(*batch, queries * count)[..., queries:]
    return x.reshape(*batch, queries, count - 1)[..., :keys]


def attend(q, k, v, table, u, w, mask) -> jax.Array:
    """Multi-head attention over all memories of a group under one softmax.

    Args:
      q: queries [B, G, I, N, H].
      k, v: keys and values [B, G, K, J, N, H].
      table: projected positions [S, N, H], in the order of `distances`; the same for each memory.
      u, w: content bias and position bias [N, H].
      mask: True where a key may be attended, broadcastable to [B, G, I, K, J].

    Returns:
      [B, G, I, N, H]; exactly 0 where the mask allows no key. Logits and softmax are float32.
    """
    scale = q.shape[-1] ** -0.5
    f32 = {"preferred_element_type": jnp.float32}
    content = jnp.einsum("bginh,bgkjnh->bgnikj", q + u, k, **f32)
    position = shift(jnp.einsum("bginh,snh->bgnis", q + w, table, **f32), k.shape[3])
    mask = mask[:, :, None]  # [B, G, 1, I, K, J]
    logits = jnp.where(mask, (content + position[:, :, :, :, None]) * scale, -1e30)
    weights = jax.nn.softmax(logits, axis=(-2, -1)).astype(v.dtype)
    y = jnp.einsum("bgnikj,bgkjnh->bginh", weights, v)
    return jnp.where(mask.any((-2, -1))[:, :, 0, :, None, None], y, 0)


class RmsNorm(nnx.Module):
    """x / rms(x) * scale, in float32."""

    def __init__(self, width: int, kind: type):
        self.scale = kind(jnp.ones(width, jnp.float32))

    def __call__(self, x):
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + 1e-6)
        return (y * self.scale[...]).astype(x.dtype)


class Attention(nnx.Module):
    """Projections around `attend`. Query stream of width D, memory of width `memory`.

    W_q, W_k, W_v, W_o and W_r (from the query stream's width, section 2.2 of the counts); no biases
    but Transformer-XL's u and v.

    The paper states no initialisation. This one lets an attention carry a token's content from
    where it is found to where it is needed from the first step on, after the mimetic initialisation
    of Trockman and Kolter (2023, arXiv 2305.09828): W_o starts as the transpose of W_v and, in a
    cross-attention, W_k as W_q, so that a query finds the tokens that resemble it and receives
    them. That needs a memory of the query's own width; with another, all are drawn independently.
    The position bias starts random, so that every head prefers distances of its own. With W_o and
    W_k drawn independently instead, a small RETRO did not begin to read its neighbours in the steps
    in which it otherwise learned to (README).
    """

    def __init__(self, d, memory, heads, head_size, key, kind: type, out_scale: float, cross: bool):
        keys = jax.random.split(key, 6)
        into, inner = P("data", "model", None), heads * head_size
        self.query = weight(kind, keys[0], (d, heads, head_size), d, into)
        self.key = weight(kind, keys[1], (memory, heads, head_size), memory, into)
        self.value = weight(kind, keys[2], (memory, heads, head_size), memory, into)
        self.position = weight(kind, keys[3], (d, heads, head_size), d, into)
        shape, spec = (heads, head_size, d), P("model", None, "data")
        self.out = weight(kind, keys[4], shape, inner, spec, out_scale)
        if memory == d:
            transposed = jnp.transpose(self.value[...], (1, 2, 0))
            self.out = kind(transposed * (out_scale * np.sqrt(d / inner)))
            if cross:
                self.key = kind(self.query[...])
        shape, spec = (heads, head_size), P("model", None)
        self.content_bias = kind(jnp.zeros(shape, jnp.float32, out_sharding=spec))
        self.position_bias = kind(1.5 * jax.random.normal(keys[5], shape, out_sharding=spec))

    def __call__(self, x, memory, mask, offset: int, causal: bool = False):
        """x [B, G, I, D], memory [B, G, K, J, memory], mask [B, G, I, K, J] -> [B, G, I, D]."""
        dtype = x.dtype
        q = jnp.einsum("bgid,dnh->bginh", x, gather(self.query, dtype))
        k = jnp.einsum("bgkjd,dnh->bgkjnh", memory, gather(self.key, dtype))
        v = jnp.einsum("bgkjd,dnh->bgkjnh", memory, gather(self.value, dtype))
        steps = distances(x.shape[2], memory.shape[3], offset, causal)
        table = sinusoid(steps, x.shape[-1]).astype(dtype)
        table = jnp.einsum("sd,dnh->snh", table, gather(self.position, dtype))
        u, w = gather(self.content_bias, dtype), gather(self.position_bias, dtype)
        y = attend(q, k, v, table, u, w, mask)
        return jnp.einsum("bginh,nhd->bgid", y, gather(self.out, dtype), out_sharding=P("data"))
