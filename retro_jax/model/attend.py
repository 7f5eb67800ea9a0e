"""The arithmetic of attention, for every attention of RETRO and of the decoders it can be fitted to.

One function, `attend`, serves the decoder's self-attention, the encoder's self-attention, the
encoder's cross-attention and cross-attention to what was retrieved: they differ in what is a query,
what is a memory, and in the distance between query 0 and key 0.

    B batch, G groups that attend each to its own memories, K memories of a group, I queries,
    J keys of a memory, S distances (I + J of them, or 1 + J), D width,
    N heads of keys and values, A heads of queries for each of them, H head size

Positions follow Dai et al. 2019 (arXiv 1901.02860, section 3.3) as the paper's appendix B.1.2 says:

    logit(i, j) = ((q_i + u) . k_j + (q_i + w) . (sinusoid(distance(i, j)) W_r)) / sqrt(H)
    distance(i, j) = i - j + offset          (query minus key, signed)

What they cost, in FLOPs a head and group: content 2 I K J H; position 2 I W H, for the logits by
distance serve all K memories and are moved to their keys by `shift`, without a gather and without
any [I, J, D] tensor. W is J + 1 where attention is causal, J + 8 elsewhere (`windows`), so this is 1.00
times the content in a sequence, 0.53 times in chunked cross-attention with k = 2, and in the encoder
1.06 (within a neighbour) and 1.13 (from neighbour to chunk). To it comes the table, 2 S D H a head, once
for the whole batch. In bytes: I W + I K J float32 logits a head and group, none of them kept for the
gradient.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec as P

from retro_jax.model.einsum import gradient
from retro_jax.model.positions import distances, shift, unshift, windows

# A blockwise attention reads, for a block of queries, the keys up to the end of the block's segment,
# an eighth of the sequence: about 1/16 of the keys are read in vain, and 8 bodies are compiled.
_SEGMENTS = 8
SAVED = "attention"  # name of what an attention's gradient needs, for policies of `jax.checkpoint`


# Programs of their own, so that layers of the same shapes are traced once: half of the time that a step's tracing took.
@functools.partial(jax.jit, static_argnames=("statistics", "read"))
def attend(
    q, k, v, mask, relative=None, causal_from=None, statistics=False, nothing=None, read=None
):
    """Multi-head attention over all memories of a group under one softmax.

    Args:
      q: queries [B, G, I, N, A, H].
      k, v: keys and values [B, G, K, J, N, H].
      mask: True where a key may be attended [B, G, K, J].
      relative: (table [S, N, A, H], u [N, A, H], w [N, A, H]): projected positions in the order of
        `distances`, the same for each memory, content bias and position bias; or None.
      causal_from: query i attends keys up to i + causal_from; None attends all.
      statistics: also say where the attention went: "attention", or "values", which is that times the norms of
        the values.
      nothing: the logit of one more key, whose value is 0 [B, G, I, N, A], float32; or None.
      read: what computes it, by default `softmax_read`.

    Returns:
      [B, G, I, N, A, H], exactly 0 where the mask allows no key (logits and softmax are float32),
      and None or, with `statistics`, the attention mass [B, G, I, K, 2] on the first and the second
      half of each memory's keys: mean over heads; sums to 1, or to 0 where there is no key, or with
      `nothing` to what it leaves.
    """
    mask = mask[:, :, None, None]  # [B, G, 1, 1, K, J]
    if causal_from is not None:
        past = jnp.arange(k.shape[3]) <= jnp.arange(q.shape[2])[:, None] + causal_from
        mask = mask & past[:, None, None]  # [B, G, I, 1, K, J]
    y, normaliser = (read or softmax_read)(q, k, v, relative, mask)
    left = 1.0
    if nothing is not None:
        left = beside(nothing, jnp.moveaxis(normaliser, 0, 3))
        y = (y * left[..., None]).astype(y.dtype)
        left = jnp.moveaxis(left, 3, 0)[..., None, None]  # [N, B, G, I, A, 1, 1]
    if not statistics:
        return y, None
    mass = (
        jax.nn.softmax(_logits(*scaled(q, relative, k.shape[3]), k, mask), axis=(-2, -1)) * mask
    ) * left
    if statistics == "values":
        norms = jnp.linalg.norm(v.astype(jnp.float32), axis=-1)  # [B, G, K, J, N]
        mass = mass * jnp.moveaxis(norms, 4, 0)[:, :, :, None, None]
    halves = [m.sum(-1) for m in jnp.split(mass, [k.shape[3] // 2], axis=-1)]
    return y, jnp.stack(halves, axis=-1).mean((0, 4))


def beside(nothing, normaliser):
    """The share of a softmax that its keys keep beside one more, of the logit `nothing`; `normaliser` is
    their log sum exp: exp(s) / (exp(s) + exp(n)) = sigmoid(s - n)."""
    return jax.nn.sigmoid(normaliser - nothing)


def scaled(q, relative, keys: int):
    """What the logits are made of, scaled: queries of the content [B, G, I, N, A, H], and for the
    positions (or None) queries in X windows [B, G, X, I / X, N, A, H] and the table of each window
    [X, W, N, A, H]."""
    scale = q.shape[-1] ** -0.5
    if relative is None:
        return q * scale, None
    table, u, w = relative
    near = windows(table, q.shape[2], keys)
    return (q + u) * scale, (_split((q + w) * scale, 2, len(near)), near)


def added(position, keys: int, dtype):
    """What positions add to the logits, the same for each memory: [N, B, G, I, A, J]; position from `scaled`."""
    by_distance = jnp.einsum("bgxinah,xsnah->nxabgis", *position, preferred_element_type=dtype)
    by_key = jnp.moveaxis(shift(by_distance, keys), (1, 2), (3, 5))
    n, b, g, x, i, a, _ = by_key.shape
    return by_key.reshape(n, b, g, x * i, a, keys)


def _split(x, axis: int, parts: int):
    """An axis that is not sharded, in `parts`: [..., I, ...] -> [..., X, I / X, ...]."""
    shape, spec = list(x.shape), [*jax.typeof(x).sharding.spec]
    shape[axis : axis + 1] = parts, shape[axis] // parts
    return jnp.reshape(x, shape, out_sharding=P(*spec[:axis], None, *spec[axis:]))


def _logits(content, position, k, mask):
    """float32 [N, B, G, I, A, K, J], the masked ones -1e30; content and position from `scaled`.

    Heads first, in the order in which a matrix product gives its results: to transpose logits takes
    as long as to compute them.
    """
    f32 = {"preferred_element_type": jnp.float32}
    logits = jnp.einsum("bginah,bgkjnh->nbgiakj", content, k, **f32)
    if position is not None:
        logits = logits + added(position, k.shape[3], jnp.float32)[..., None, :]
    return jnp.where(mask, logits, -1e30)


@jax.custom_vjp
def softmax_read(q, k, v, relative, mask):
    """softmax(logits) v -> [B, G, I, N, A, H], and the logits' log sum exp [N, B, G, I, A]; both 0 where
    every key is masked.

    The gradient computes the logits again (Dao et al. 2022, arXiv 2205.14135, section 3.1): no
    [I, J] array is kept.
    """
    return _read(q, k, v, relative, mask)[0]


def _read(q, k, v, relative, mask):
    logits = _logits(*scaled(q, relative, k.shape[3]), k, mask)
    # Bounded, so that where no key is allowed every weight is exp(-1e30 + 1e29) = 0.
    top = jnp.maximum(logits.max((-2, -1), keepdims=True), -1e29)
    weights = jnp.exp(logits - top)
    total = weights.sum((-2, -1))  # [N, B, G, I, A]
    y = jnp.einsum(
        "nbgiakj,bgkjnh->nbgiah", weights.astype(v.dtype), v, preferred_element_type=jnp.float32
    )
    y = jnp.moveaxis((y / jnp.maximum(total, 1e-30)[..., None]).astype(v.dtype), 0, 3)
    # Any finite number for a row without keys: its weights are exp(-1e30 - 0) = 0.
    normaliser = jnp.where(total > 0, top[..., 0, 0] + jnp.log(jnp.maximum(total, 1e-30)), 0)
    y, normaliser = checkpoint_name(y, SAVED), checkpoint_name(normaliser, SAVED)
    return (y, normaliser), (q, k, v, relative, mask, y, normaliser)


def _read_gradient(saved, given):
    # The barrier holds the logits back until the gradient has arrived: they need nothing of it, and a
    # scheduler that may compute every layer's first keeps them all.
    saved, (dy, dnormaliser) = jax.lax.optimization_barrier((saved, given))
    q, k, v, relative, mask, y, normaliser = saved
    (content, position), back = jax.vjp(lambda q, r: scaled(q, r, k.shape[3]), q, relative)
    weights = jnp.exp(_logits(content, position, k, mask) - normaliser[..., None, None])
    f32 = {"preferred_element_type": jnp.float32}
    dweights = jnp.einsum("bginah,bgkjnh->nbgiakj", dy, v, **f32)
    # A sum over H as a product: XLA's CPU sums take five times as long.
    along = dy.astype(jnp.float32) * y.astype(jnp.float32)
    along = jnp.einsum("bginah,h->nbgia", along, jnp.ones(y.shape[-1]))
    dlogits = weights * (dweights + (dnormaliser - along)[..., None, None])
    low, dlow = weights.astype(v.dtype), dlogits.astype(v.dtype)
    dv = gradient(v, "bgkjnh", (low, "nbgiakj"), (dy, "bginah"))
    dk = gradient(k, "bgkjnh", (dlow, "nbgiakj"), (content, "bginah"))
    dcontent = gradient(content, "bginah", (dlow, "nbgiakj"), (k, "bgkjnh"))
    if relative is None:
        return *back((dcontent, None))[:1], dk, dv, None, None
    queries, near = position
    by_key = _split(dlogits.sum(-2), 3, len(near))  # every memory has the same positions
    by_distance = unshift(jnp.moveaxis(by_key, (3, 5), (1, 2)), near.shape[1]).astype(v.dtype)
    dqueries = gradient(queries, "bgxinah", (by_distance, "nxabgis"), (near, "xsnah"))
    dnear = gradient(near, "xsnah", (by_distance, "nxabgis"), (queries, "bgxinah"))
    dq, drelative = back((dcontent, (dqueries, dnear)))
    return dq, dk, dv, drelative, None


softmax_read.defvjp(_read, _read_gradient)


@functools.partial(jax.jit, static_argnames="block")
def attend_causal(q, k, v, mask, relative, block: int):
    """`attend` of a sequence to itself: query i to keys 0 .. i, shapes as there, K = 1, I = J = L.

    A sequence longer than `block` is attended a block of queries at a time: memory grows with
    block x L instead of L x L, and the keys after a block's segment are not read at all (of the
    logits, about 9/16 are computed at 8 blocks or more). relative: as in `attend`, by `self_distances`.
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
    for first, count in segments(blocks):
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


def segments(blocks: int) -> list[tuple[int, int]]:
    """(first block, how many) of each of at most _SEGMENTS segments."""
    size = -(-blocks // _SEGMENTS)
    return [(first, min(size, blocks - first)) for first in range(0, blocks, size)]


def self_distances(length: int, block: int) -> np.ndarray:
    """The distances of `attend_causal`, farthest first."""
    if length <= block:
        return distances(length, length, 0, causal=True)
    blocks = -(-length // block)
    # A segment's first block reads keys that its last block needs: distances below 0, all masked.
    below = (segments(blocks)[0][1] - 1) * block
    return blocks * block - np.arange(blocks * block + below + 1)
