"""The weights of an attention, and how they are used."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec as P

from retro_jax.config import ModelConfig
from retro_jax.model import cudnn, kernel
from retro_jax.model.attend import attend, attend_causal, self_distances, softmax_read
from retro_jax.model.cudnn import cudnn_causal, cudnn_read
from retro_jax.model.einsum import project
from retro_jax.model.flash import flash, flash_distances
from retro_jax.model.flash_chunks import flash_read
from retro_jax.model.layers import ROWS, Norm, constant, gather, weight
from retro_jax.model.positions import distances, rotate, rotations, sinusoid

_NULL_BIAS = 3.0


class Computed(NamedTuple):
    """How attentions are computed.

    Attributes:
      check: of a ModelConfig and Heads: raises UserError where it cannot be done.
      read: of a group to its memories, as `softmax_read`. beside_nothing: whether that can have a null key beside it;
        otherwise the reference reads there.
      causal: of a sequence to itself, as `attend_causal`. distances: of length and block, those that its table is of.
    """

    check: Callable
    read: Callable
    causal: Callable
    distances: Callable
    beside_nothing: bool = True


COMPUTED = {  # `model.attention`
    "reference": Computed(lambda config, heads: None, softmax_read, attend_causal, self_distances),
    "flash": Computed(
        lambda config, heads: kernel.check_chip(jax.devices()[0].device_kind),
        flash_read,
        lambda q, k, v, mask, relative, block: flash(q, k, v, mask, relative),
        lambda length, block: flash_distances(length),
    ),
    "cudnn": Computed(
        lambda config, heads: cudnn.check_chip(jax.devices()[0], config.dtype, heads.size),
        cudnn_read,
        lambda q, k, v, mask, relative, block: cudnn_causal(q, k, v, mask, relative),
        lambda length, block: self_distances(length, length),
        beside_nothing=False,  # of the log sum exp, which that needs, it gives no gradient
    ),
}


@dataclasses.dataclass(frozen=True)
class Heads:
    """What an attention is made of: a query stream of width `d`, a memory of width `memory`."""

    d: int
    memory: int
    heads: int
    kv_heads: int
    size: int
    positions: str  # relative | rotary | none
    cross: bool
    qk_norm: bool = False


class Attention(nnx.Module):
    """Projections around `attend`.

    W_q, W_k, W_v, W_o and, with relative positions, W_r (from the query stream's width: the paper's
    parameter counts fit no other), u and v; biases only where the config asks for them.

    The paper states no initialisation. This one lets an attention carry a token's content from
    where it is found to where it is needed from the first step on, after the mimetic initialisation
    of Trockman and Kolter (2023, arXiv 2305.09828): W_o starts as the transpose of W_v and, in a
    cross-attention, W_k as W_q, so that a query finds the tokens that resemble it and receives
    them. That needs a memory of the query's own width; with another, all are drawn independently.
    The position bias starts random, so that every head prefers distances of its own. With W_o and
    W_k drawn independently instead, a small RETRO did not begin to read its neighbours in the steps
    in which it otherwise learned to (docs/quickstart.md).

    With `reading.null_key` a cross-attention's softmax has one more key, whose value is 0: its logit is
    q . null_key + null_bias, of which the first starts at 0 and the second at 3, so that a head
    whose 256 keys all have logit 0 starts by giving them 93 % of its attention.
    """

    def __init__(self, config: ModelConfig, heads: Heads, kind: type, out_scale: float):
        self.config, self.heads, self.block = config.decoder, heads, config.attention_block
        self.by = config.attention
        COMPUTED[self.by].check(config, heads)
        d, memory, n, size = heads.d, heads.memory, heads.kv_heads, heads.size
        a, inner, own = heads.heads // n, heads.heads * size, memory == d
        to_queries, to_keys = P("data", "model", None, None), P("data", "model", None)
        self.query = weight(kind, (d, n, a, size), d, to_queries)
        like = "query" if own and heads.cross and a == 1 else ""
        self.key = weight(kind, (memory, n, size), memory, to_keys, like=like)
        self.value = weight(kind, (memory, n, size), memory, to_keys)
        shape, spec = (n, a, size, d), P("model", None, None, "data")
        if own:
            scale = out_scale * float(np.sqrt(d / inner))
            self.out = weight(kind, shape, inner, spec, scale, like="value")
        else:
            self.out = weight(kind, shape, inner, spec, out_scale)
        spec = P("model", None, None)
        if heads.positions == "relative":
            self.position = weight(kind, (d, n, a, size), d, to_queries)
            self.content_bias = constant(kind, (n, a, size), spec)
            self.position_bias = weight(kind, (n, a, size), 1, spec, 1.5)
        if self.config.qkv_bias:
            self.query_bias = constant(kind, (n, a, size), spec)
            self.key_bias = constant(kind, (n, size), P("model", None))
            self.value_bias = constant(kind, (n, size), P("model", None))
        if self.config.out_bias:
            self.out_bias = constant(kind, (d,), P(None))
        self.may_ignore = heads.cross and config.reading.null_key
        if self.may_ignore:
            self.null_key = constant(kind, (n, a, size), spec)
            self.null_bias = constant(kind, (n, a), P("model", None), _NULL_BIAS)
        if heads.qk_norm:
            self.query_norm = Norm(self.config, size, kind)
            self.key_norm = Norm(self.config, size, kind)

    def __call__(self, x, memory, mask, offset: int = 0, causal: bool = False, statistics=False):
        """Attends x [B, G, I, D] to memory [B, G, K, J, memory] where mask [B, G, K, J] allows.

        Memories may be fewer than groups, G / n of them: then each serves n groups in a row, and its
        keys and values are computed once. `offset` is the distance of query 0 and key 0, for relative
        positions. Returns [B, G, I, D] and the attention mass of `attend`, or None.
        """
        dtype = x.dtype
        q, (k, v) = self.queries(x), self.keys_values(memory)
        each = x.shape[1] // memory.shape[1]
        k, v, mask = (jnp.repeat(t, each, axis=1) if each > 1 else t for t in (k, v, mask))
        relative, by = None, COMPUTED[self.by]
        if self.heads.positions == "rotary":
            sin, cos = rotations(self.config, np.arange(x.shape[2]))
            q = rotate(q, sin[:, None, None], cos[:, None, None])
            k = rotate(k, sin[:, None], cos[:, None])
        elif self.heads.positions == "relative":
            steps = distances(x.shape[2], memory.shape[3], offset, causal=False)
            if causal:
                steps = by.distances(x.shape[2], self.block)
            relative = self.relative(steps, dtype)
        if causal:
            y, mass = by.causal(q, k, v, mask, relative, self.block), None
        else:
            nothing = self.nothing(q)
            read = by.read if nothing is None or by.beside_nothing else softmax_read
            y, mass = attend(q, k, v, mask, relative, None, statistics, nothing, read)
        return self.output(y, mask.any((-2, -1))[:, :, None]), mass

    def queries(self, x):
        """x [..., D] -> [..., N, A, H], positions aside."""
        q = project(x, gather(self.query, x.dtype))
        if self.config.qkv_bias:
            q = q + self.query_bias[...].astype(x.dtype)
        return self.query_norm(q) if self.heads.qk_norm else q

    def keys_values(self, memory):
        """memory [..., memory] -> keys and values [..., N, H], positions aside."""
        dtype = memory.dtype
        k, v = (project(memory, gather(w, dtype)) for w in (self.key, self.value))
        if self.config.qkv_bias:
            k = k + self.key_bias[...].astype(dtype)
            v = v + self.value_bias[...].astype(dtype)
        return self.key_norm(k) if self.heads.qk_norm else k, v

    def nothing(self, q):
        """The logit of attending to nothing: q [..., N, A, H] -> [..., N, A] float32; None without a null key."""
        if not self.may_ignore:
            return None
        return (q.astype(jnp.float32) * self.null_key[...]).sum(-1) + self.null_bias[...]

    def output(self, y, any_key):
        """y [..., N, A, H] -> [..., D]; any_key [...]: whether there was a key to attend."""
        out = project(y, gather(self.out, y.dtype), over=3, out_sharding=ROWS)
        if self.config.out_bias:
            # Not where there is no key: an attention to nothing is exactly 0.
            out = out + jnp.where(any_key[..., None], self.out_bias[...].astype(y.dtype), 0)
        return out

    def biases(self, dtype):
        """Content bias and position bias [N, A, H] of relative positions."""
        return self.content_bias[...].astype(dtype), self.position_bias[...].astype(dtype)

    def relative(self, steps: np.ndarray, dtype):
        """What `attend` takes for relative positions: the table of distances [S] through W_r in float32,
        content bias and position bias, all in `dtype`."""
        table = project(sinusoid(steps, self.heads.d), gather(self.position, jnp.float32))
        return table.astype(dtype), *self.biases(dtype)
