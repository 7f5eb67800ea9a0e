"""Attention by cuDNN's kernels, for NVIDIA GPUs: neither logits nor their exponentials are written.

The reference is `attend.softmax_read`: the same arguments, results and gradients. cuDNN takes what is added to the
logits, for positions and for the mask, as an array [I, K J] of each head (`jax.nn.dot_product_attention`), and gives
its gradient. Both are as large as the logits, but of the computation's type; the first is made again for the gradient
instead of being kept.

    B batch, G groups, K memories of a group, I queries, J keys of a memory, N heads of keys and values, A heads of
    queries for each, H head size

Elsewhere than on a GPU XLA computes the same, from all logits: for tests.
"""

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from retro_jax.errors import UserError
from retro_jax.model import kernel
from retro_jax.model.attend import SAVED, added, attend, scaled


def not_for(kind: str) -> UserError:
    """What is said of a chip, by its `device_kind`, that these kernels are not for."""
    return UserError(
        f"config field model.attention = 'cudnn' is by kernels for NVIDIA GPUs from A100 on, and not for {kind}; "
        "set it to flash (TPUs) or reference"
    )


def check_chip(device, dtype: str, head_size: int):
    """Raises UserError for what cuDNN has no kernels for; device: one of `jax.devices()`."""
    kind = device.device_kind
    if kind == "cpu":
        return
    if device.platform != "gpu" or float(getattr(device, "compute_capability", 0)) < 8:
        raise not_for(kind)
    if dtype != "bfloat16":
        raise UserError(
            f"config field model.dtype = {dtype!r}: cuDNN's attention computes in bfloat16; set it to that, or "
            "model.attention to reference"
        )
    if head_size % 8 or head_size > 128:
        raise UserError(
            f"config field model.attention = 'cudnn' takes heads of a multiple of 8 numbers, at most 128, and not of "
            f"{head_size}; set it to reference"
        )


def cudnn_read(q, k, v, relative, mask, causal: bool = False, how: str = ""):
    """softmax(logits) v.

    Args:
      q: queries [B, G, I, N, A, H].
      k, v: keys and values [B, G, K, J, N, H].
      relative: (table [S, N, A, H] in the order of `distances`, u [N, A, H], w [N, A, H]), or None.
      mask: True where a key may be attended [B, G, I or 1, 1, K, J].
      causal: the mask allows no key after a query, so that what comes after need not be computed.
      how: "cudnn" or "xla"; by default as the mesh in context has GPUs or not.

    Returns:
      [B, G, I, N, A, H], exactly 0 where the mask allows no key, and None: the logits' log sum exp is not told.
    """
    how = how or ("cudnn" if kernel.platform() == "gpu" else "xla")
    read = functools.partial(_read, causal=causal, how=how)
    # What is added to the logits is not kept for the gradient: of all layers together it would be more than all else.
    y = jax.checkpoint(read, policy=_is_kernel)(q, k, v, relative, mask)
    return checkpoint_name(y, SAVED), None


def _is_kernel(primitive, *_, **params) -> bool:
    """Whether something is cuDNN's forward kernel, which need not run again for the gradient."""
    return "dot_product_attention_fwd" in primitive.name


_causal = functools.partial(cudnn_read, causal=True)


def cudnn_causal(q, k, v, mask, relative):
    """`attend` of a sequence to itself: query i to keys 0 .. i."""
    return attend(q, k, v, mask, relative, causal_from=0, read=_causal)[0]


def _read(q, k, v, relative, mask, causal: bool, how: str):
    content, position = scaled(q, relative, k.shape[3])
    bias = None
    if position is not None:
        bias = added(position, k.shape[3], q.dtype)  # [N, B, G, I, A, J]
    mask = jax.sharding.reshard(mask, jax.P(kernel.spec(q)[0]))  # as the rows are
    given = (content, k, v, mask) if bias is None else (content, k, v, mask, bias)
    local = functools.partial(_of_a_chip, causal=causal, how=how)
    return kernel.sharded(local, kernel.spec(q), *given)


def _of_a_chip(q, k, v, mask, bias=None, *, causal: bool, how: str):
    """Of the rows and heads of one chip; groups are rows of a batch for cuDNN."""
    b, g, i, n, a, h = q.shape
    memories, keys = k.shape[2:4]
    allowed = jnp.broadcast_to(mask, (b, g, i, 1, memories, keys))
    allowed = allowed.reshape(b * g, 1, i, memories * keys)
    # For the gradient of what is added cuDNN wants an even number of queries and of keys.
    tall, wide = (0, i % 2), (0, memories * keys % 2)
    if bias is not None:
        bias = jnp.moveaxis(bias, (0, 4), (2, 3)).reshape(b * g, n * a, i, keys)
        bias = jnp.pad(jnp.tile(bias, (1, 1, 1, memories)), ((0, 0), (0, 0), tall, wide))
    k, v = (x.reshape(b * g, memories * keys, n, h) for x in (k, v))
    k, v = (jnp.pad(x, ((0, 0), wide, (0, 0), (0, 0))) for x in (k, v))
    y = jax.nn.dot_product_attention(
        jnp.pad(q.reshape(b * g, i, n * a, h), ((0, 0), tall, (0, 0), (0, 0))), k, v, bias,
        jnp.pad(allowed, ((0, 0), (0, 0), tall, wide)),
        scale=1.0, is_causal=causal, implementation=how,
    )  # fmt: skip
    any_key = allowed.any(-1)[:, 0, :, None, None]
    return jnp.where(any_key, y[:, :i], 0).reshape(q.shape)
