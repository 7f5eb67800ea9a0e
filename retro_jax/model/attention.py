"""Attention, for every attention of RETRO and of the decoders that it can be fitted to.

One function, `attend`, serves the decoder's self-attention, the encoder's self-attention, the
encoder's cross-attention and cross-attention to what was retrieved: they differ in what is a query,
what is a memory, and in the distance between query 0 and key 0.

    B batch, G groups that attend each to its own memories, K memories of a group, I queries,
    J keys of a memory, S distances (I + J of them, or 1 + J), D width,
    N heads of keys and values, A heads of queries for each of them, H head size

Positions follow Dai et al. 2019 (arXiv 1901.02860, section 3.3) as the paper's appendix B.1.2 says:

    logit(i, j) = ((q_i + u) . k_j + (q_i + w) . (sinusoid(distance(i, j)) W_r)) / sqrt(H)
    distance(i, j) = i - j + offset          (query minus key, signed)

What they cost, in FLOPs a head and group: content 2 I K J H; position 2 I S H, for the logits by
distance serve all K memories and are moved to their keys by `shift`, without a gather and without
any [I, J, D] tensor. Causal, S = J + 1: as much as the content. In chunked cross-attention with k = 2
S = I + J = 192 for K J = 256 keys: less. Inside the encoder, where distances go both ways, S is 2 J
(self) and 3 J (cross), twice and three times the content; that is 3 % of the encoder's FLOPs at the
paper's sizes. In bytes: I S + I K J float32 logits a head and group, none of them kept for the
gradient.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec as P

from retro_jax.config import ModelConfig
from retro_jax.model.layers import constant, gather, weight
from retro_jax.model.positions import distances, rotate, shift, sinusoid, unshift
from retro_jax.model.product import gradient

# A blockwise attention reads, for a block of queries, the keys up to the end of the block's segment,
# an eighth of the sequence: at most 1/16 of the keys are read in vain, and 8 bodies are compiled.
_SEGMENTS = 8
SAVED = "attention"  # name of what an attention's gradient needs, for policies of `jax.checkpoint`


def attend(q, k, v, mask, relative=None, causal_from=None, statistics=False):
    """Multi-head attention over all memories of a group under one softmax.

    Args:
      q: queries [B, G, I, N, A, H].
      k, v: keys and values [B, G, K, J, N, H].
      mask: True where a key may be attended [B, G, K, J].
      relative: (table [S, N, A, H], u [N, A, H], w [N, A, H]): projected positions in the order of
        `distances`, the same for each memory, content bias and position bias; or None.
      causal_from: query i attends keys up to i + causal_from; None attends all.
      statistics: also say where the attention went.

    Returns:
      [B, G, I, N, A, H], exactly 0 where the mask allows no key (logits and softmax are float32),
      and None or, with `statistics`, the attention mass [B, G, I, K, 2] on the first and the second
      half of each memory's keys: mean over heads, sums to 1, or to 0 where there is no key.
    """
    mask = mask[:, :, None, None]  # [B, G, 1, 1, K, J]
    if causal_from is not None:
        past = jnp.arange(k.shape[3]) <= jnp.arange(q.shape[2])[:, None] + causal_from
        mask = mask & past[:, None, None]  # [B, G, I, 1, K, J]
    y = jnp.moveaxis(_softmax_read(q, k, v, relative, mask), 0, 3)
    if not statistics:
        return y, None
    mass = jax.nn.softmax(_logits(*_queries(q, relative), k, relative, mask), axis=(-2, -1)) * mask
    halves = [m.sum(-1) for m in jnp.split(mass, [k.shape[3] // 2], axis=-1)]
    return y, jnp.stack(halves, axis=-1).mean((0, 4))


def _queries(q, relative):
    """Queries of the content and of the position logits (or None), scaled: [B, G, I, N, A, H]."""
    scale = q.shape[-1] ** -0.5
    if relative is None:
        return q * scale, None
    _, u, w = relative
    return (q + u) * scale, (q + w) * scale


def _logits(content, position, k, relative, mask):
    """float32 [N, B, G, I, A, K, J], the masked ones -1e30; content and position from `_queries`.

    Heads first, in the order in which a matrix product gives its results: to transpose logits takes
    as long as to compute them.
    """
    f32 = {"preferred_element_type": jnp.float32}
    logits = jnp.einsum("bginah,bgkjnh->nbgiakj", content, k, **f32)
    if relative is not None:
        by_distance = jnp.einsum("bginah,snah->nabgis", position, relative[0], **f32)
        by_key = jnp.moveaxis(shift(by_distance, k.shape[3]), 1, 4)  # [N, B, G, I, A, J]
        logits = logits + by_key[..., None, :]
    return jnp.where(mask, logits, -1e30)


@jax.custom_vjp
def _softmax_read(q, k, v, relative, mask):
    """softmax(logits) v -> [N, B, G, I, A, H]; 0 where every key is masked.

    The gradient computes the logits again (Dao et al. 2022, arXiv 2205.14135, section 3.1): no
    [I, J] array is kept.
    """
    return _read(q, k, v, relative, mask)[0]


def _read(q, k, v, relative, mask):
    logits = _logits(*_queries(q, relative), k, relative, mask)
    # Bounded, so that where no key is allowed every weight is exp(-1e30 + 1e29) = 0.
    top = jnp.maximum(logits.max((-2, -1), keepdims=True), -1e29)
    weights = jnp.exp(logits - top)
    total = weights.sum((-2, -1))  # [N, B, G, I, A]
    y = jnp.einsum(
        "nbgiakj,bgkjnh->nbgiah", weights.astype(v.dtype), v, preferred_element_type=jnp.float32
    )
    y = (y / jnp.maximum(total, 1e-30)[..., None]).astype(v.dtype)
    # Any finite number for a row without keys: its weights are exp(-1e30 - 0) = 0.
    normaliser = jnp.where(total > 0, top[..., 0, 0] + jnp.log(jnp.maximum(total, 1e-30)), 0)
    y, normaliser = checkpoint_name(y, SAVED), checkpoint_name(normaliser, SAVED)
    return y, (q, k, v, relative, mask, y, normaliser)


def _read_gradient(saved, dy):
    q, k, v, relative, mask, y, normaliser = saved
    (content, position), back = jax.vjp(_queries, q, relative)
    logits = _logits(content, position, k, relative, mask)
    weights = jnp.exp(logits - normaliser[..., None, None])
    f32 = {"preferred_element_type": jnp.float32}
    dweights = jnp.einsum("nbgiah,bgkjnh->nbgiakj", dy, v, **f32)
    along = jnp.sum(dy.astype(jnp.float32) * y.astype(jnp.float32), axis=-1)[..., None, None]
    dlogits = weights * (dweights - along)
    low, dlow = weights.astype(v.dtype), dlogits.astype(v.dtype)
    dv = gradient(v, "bgkjnh", (low, "nbgiakj"), (dy, "nbgiah"))
    dk = gradient(k, "bgkjnh", (dlow, "nbgiakj"), (content, "bginah"))
    dcontent = gradient(content, "bginah", (dlow, "nbgiakj"), (k, "bgkjnh"))
    if relative is None:
        return back((dcontent, None))[0], dk, dv, None, None
    table = relative[0]
    by_key = jnp.moveaxis(dlogits.sum(-2), 4, 1)  # every memory has the same positions
    by_distance = unshift(by_key, table.shape[0]).astype(v.dtype)
    dposition = gradient(position, "bginah", (by_distance, "nabgis"), (table, "snah"))
    dtable = gradient(table, "snah", (by_distance, "nabgis"), (position, "bginah"))
    dq, (_, du, dw) = back((dcontent, dposition))
    return dq, dk, dv, (dtable, du, dw), None


_softmax_read.defvjp(_read, _read_gradient)


def attend_causal(q, k, v, mask, relative, block: int):
    """`attend` of a sequence to itself: query i to keys 0 .. i, shapes as there, K = 1, I = J = L.

    A sequence longer than `block` is attended a block of queries at a time: memory grows with
    block x L instead of L x L, and the keys after a block's segment are not read at all (of the
    logits, 9/16 are computed at 8 blocks or more). relative: as in `attend`, by `self_distances`.
    """
    length = q.shape[2]
    if length <= block:
        return attend(q, k, v, mask, relative, causal_from=0)[0]
    blocks = -(-length // block)
    fill = blocks * block - length
    q = jnp.pad(q, ((0, 0), (0, 0), (0, fill)) + ((0, 0),) * 3)
    k, v = (jnp.pad(x, ((0, 0),) * 3 + ((0, fill),) + ((0, 0),) * 2) for x in (k, v))
    mask = jnp.pad(mask, ((0, 0),) * 3 + ((0, fill),))
    outputs = []
    for first, count in _segments(blocks):
        end = (first + count) * block  # keys that the segment's last query can see

        def one(n, end=end):
            start = n * block
            rows = jax.lax.dynamic_slice_in_dim(q, start, block, axis=2)
            near = relative
            if relative is not None:
                table, u, w = relative
                # The table begins at the padded length; the block's begins at start + block.
                begin = (blocks - 1 - n) * block
                near = jax.lax.dynamic_slice_in_dim(table, begin, end + 1, axis=0), u, w
            parts = k[:, :, :, :end], v[:, :, :, :end], mask[..., :end]
            return attend(rows, *parts, near, causal_from=start)[0]

        keep = jax.checkpoint_policies.save_only_these_names(SAVED)
        y = jax.lax.map(jax.checkpoint(one, policy=keep), jnp.arange(first, first + count))
        outputs.append(jnp.moveaxis(y, 0, 2))  # [B, G, blocks, block, N, A, H]
    y = jnp.concatenate(outputs, axis=2)
    return y.reshape(*y.shape[:2], blocks * block, *y.shape[4:])[:, :, :length]


def _segments(blocks: int) -> list[tuple[int, int]]:
    """(first block, how many) of each of at most _SEGMENTS segments."""
    size = -(-blocks // _SEGMENTS)
    return [(first, min(size, blocks - first)) for first in range(0, blocks, size)]


def self_distances(length: int, block: int) -> np.ndarray:
    """The distances of `attend_causal`, farthest first."""
    if length <= block:
        return distances(length, length, 0, causal=True)
    blocks = -(-length // block)
    # A segment's first block reads keys that its last block needs: distances below 0, all masked.
    below = (_segments(blocks)[0][1] - 1) * block
    return blocks * block - np.arange(blocks * block + below + 1)


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


class Attention(nnx.Module):
    """Projections around `attend`.

    W_q, W_k, W_v, W_o and, with relative positions, W_r (from the query stream's width, section 2.2
    of the counts), u and v; biases only where the config asks for them.

    The paper states no initialisation. This one lets an attention carry a token's content from
    where it is found to where it is needed from the first step on, after the mimetic initialisation
    of Trockman and Kolter (2023, arXiv 2305.09828): W_o starts as the transpose of W_v and, in a
    cross-attention, W_k as W_q, so that a query finds the tokens that resemble it and receives
    them. That needs a memory of the query's own width; with another, all are drawn independently.
    The position bias starts random, so that every head prefers distances of its own. With W_o and
    W_k drawn independently instead, a small RETRO did not begin to read its neighbours in the steps
    in which it otherwise learned to (README).
    """

    def __init__(self, config: ModelConfig, heads: Heads, kind: type, out_scale: float):
        self.config, self.heads = config, heads
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
        if config.qkv_bias:
            self.query_bias = constant(kind, (n, a, size), spec)
            self.key_bias = constant(kind, (n, size), P("model", None))
            self.value_bias = constant(kind, (n, size), P("model", None))
        if config.out_bias:
            self.out_bias = constant(kind, (d,), P(None))

    def __call__(self, x, memory, mask, offset: int = 0, causal: bool = False, statistics=False):
        """Attends x [B, G, I, D] to memory [B, G, K, J, memory] where mask [B, G, K, J] allows.

        Memories may be fewer than groups, G / n of them: then each serves n groups in a row, and its
        keys and values are computed once. `offset` is the distance of query 0 and key 0, for relative
        positions. Returns [B, G, I, D] and the attention mass of `attend`, or None.
        """
        dtype = x.dtype
        q = jnp.einsum("bgid,dnah->bginah", x, gather(self.query, dtype))
        k = jnp.einsum("bgkjd,dnh->bgkjnh", memory, gather(self.key, dtype))
        v = jnp.einsum("bgkjd,dnh->bgkjnh", memory, gather(self.value, dtype))
        if self.config.qkv_bias:
            q = q + self.query_bias[...].astype(dtype)
            k = k + self.key_bias[...].astype(dtype)
            v = v + self.value_bias[...].astype(dtype)
        each = x.shape[1] // memory.shape[1]
        k, v, mask = (jnp.repeat(t, each, axis=1) if each > 1 else t for t in (k, v, mask))
        relative, block = None, self.config.attention_block
        if self.heads.positions == "rotary":
            turn = self.config.rotary_share, self.config.rotary_base
            q, k = rotate(q, 2, *turn), rotate(k, 3, *turn)
        elif self.heads.positions == "relative":
            steps = distances(x.shape[2], memory.shape[3], offset, causal=False)
            if causal:
                steps = self_distances(x.shape[2], block)
            table = sinusoid(steps, x.shape[-1]).astype(dtype)
            table = jnp.einsum("sd,dnah->snah", table, gather(self.position, dtype))
            biases = (self.content_bias[...], self.position_bias[...])
            relative = (table, *(b.astype(dtype) for b in biases))
        if causal:
            y, mass = attend_causal(q, k, v, mask, relative, block), None
        else:
            y, mass = attend(q, k, v, mask, relative, statistics=statistics)
        out = gather(self.out, dtype)
        y = jnp.einsum("bginah,nahd->bgid", y, out, out_sharding=P("data"))
        if self.config.out_bias:
            # Not where there is no key: an attention to nothing is exactly 0.
            any_key = mask.any((-2, -1))[:, :, None, None]
            y = y + jnp.where(any_key, self.out_bias[...].astype(dtype), 0)
        return y, mass
