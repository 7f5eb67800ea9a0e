"""Rows that a language model is given, made of texts and what stands before them."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from retro_jax.model import cache
from retro_jax.model.layers import ROWS
from retro_jax.model.retro import PAD


def rows(texts, tokens, count, end, width: int, window: int | None = None):
    """What language models are given.

    Args:
      texts: [..., T], PAD where there is none. tokens: [..., L] the text. count: [...] how many of the tokens there
        are. end: [...] where the chunk ends whose tokens come last. width: of a row. window: tokens that the whole
        may have when the chunk is complete; `width` without it.

    Returns:
      rows [..., W], PAD at their ends, and for each of the L tokens how many of a row are up to it, itself included
      [..., L].
    """
    before = (texts != PAD).sum(axis=-1)
    at = jnp.arange(tokens.shape[-1])
    kept = (at < count[..., None]) & (at >= (end - (window or width) + before)[..., None])
    whole = jnp.concatenate([texts, jnp.where(kept, tokens, PAD)], axis=-1)
    real = whole != PAD
    order = jnp.argsort(~real, axis=-1, stable=True)
    rows = jnp.take_along_axis(whole, order, axis=-1)[..., :width]
    return rows, jnp.cumsum(real, axis=-1)[..., texts.shape[-1] :]


def each_chunk(function: Callable, given: tuple, tokens, asked, m: int):
    """What a function makes of the chunks of M tokens that hold a token that is asked for, zeros for the others: arrays
    [B, M, ...] of B chunks, [B, L, ...] of all.

    Args:
      function: from `given` of B chunks, each [B, ...], and their tokens [B, M]. given: trees of arrays [B, C, ...].
      tokens: [B, L], at most C M. asked: [B, L] bool; None: all that are not PAD.
    """
    (b, length), chunks = tokens.shape, given[0].shape[1]

    def split(x):  # [B, L] -> [B, C, M]
        x = jnp.pad(x, ((0, 0), (0, chunks * m - length)))
        return jnp.reshape(x, (b, chunks, m), out_sharding=ROWS)

    def joined(x):  # [B, C, M, ...] -> [B, L, ...]
        return jnp.reshape(x, (b, chunks * m, *x.shape[3:]), out_sharding=ROWS)[:, :length]

    wanted = split(tokens != PAD if asked is None else asked).any(axis=-1)
    return jax.tree.map(joined, where_asked(function, wanted, (*given, split(tokens))))


def where_asked(function: Callable, asked, given: tuple):
    """What a function makes of B items at a time, made of those of B x C that are asked for; zeros for the others. It
    takes as long as there are such: those to be read of a window are few where windows overlap and texts are short.

    Args:
      function: from `given`, each [B, ...], to a tree of arrays [B, ...]. asked: [B, C]. given: trees of arrays
        [B, C, ...].

    Returns:
      A tree of arrays [B, C, ...].
    """
    b, c = asked.shape
    given = jax.tree.map(lambda x: flat(x, 2), given)
    asked = jax.sharding.reshard(asked.reshape(-1), P())
    order = jnp.argsort(~asked, stable=True)

    def of(at):
        return function(*jax.tree.map(lambda x: x.at[at].get(out_sharding=ROWS), given))

    def put(i, out):
        at = jax.lax.dynamic_slice(order, (i * b,), (b,))
        return jax.tree.map(
            lambda o, x: o.at[at].set(x, out_sharding=jax.typeof(o).sharding), out, of(at)
        )

    like = jax.eval_shape(of, order[:b])
    out = jax.tree.map(lambda x: jnp.zeros((b * c, *x.shape[1:]), x.dtype, out_sharding=ROWS), like)
    out = jax.lax.fori_loop(0, -(-asked.sum() // b), put, out)

    def whole(x):  # the last round may have had more than were asked for
        x = jnp.where(asked.reshape(-1, *[1] * (x.ndim - 1)), x, jnp.zeros((), x.dtype))
        return jnp.reshape(x, (b, c, *x.shape[1:]), out_sharding=ROWS)

    return jax.tree.map(whole, out)


def flat(x, axes: int):
    """Its first axes as one."""
    size = int(np.prod(x.shape[:axes]))
    return jnp.reshape(x, (size, *x.shape[axes:]), out_sharding=ROWS)


def spread(rows, streams: int):
    """The numbers of the streams of rows: [b] -> [b S]."""
    return (rows[:, None] * streams + jnp.arange(streams)).reshape(-1)


def split(logits, streams: int):
    """[B S, V] -> [B, S, V]."""
    return jnp.reshape(
        logits, (len(logits) // streams, streams, logits.shape[-1]), out_sharding=cache.over_rows(3)
    )


def mixed(logits, weights):
    """log of the mixture of the streams' probabilities: logits [B, S, ..., V] and log weights [B, S, ...]; those of
    one stream as they are."""
    if logits.shape[1] == 1:
        return logits[:, 0]
    return jax.nn.logsumexp(jax.nn.log_softmax(logits) + weights[..., None], axis=1)
