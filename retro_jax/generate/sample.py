"""How the next token is drawn from logits, on the device: each row of a batch in its own way.

In this order: repetition penalty, temperature, top-k, top-p, min-p, a draw. B rows, V vocabulary.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

TOP = 5  # most probable tokens that are reported, at most


class Sampling(NamedTuple):
    """How each row is drawn, [B] each."""

    temperature: jax.Array  # 0: the most probable token
    top_k: jax.Array  # int32; of so many most probable ones. 0: of all
    top_p: jax.Array  # of the fewest most probable ones that have so much probability. 1: of all
    min_p: jax.Array  # of those at least so probable, relative to the most probable one. 0: of all
    penalty: jax.Array  # of tokens that it holds already (Keskar et al. 2019, section 4.1)
    seed: jax.Array  # uint32


def sample(logits, how: Sampling, seen, place, silent):
    """Draws a token for each row.

    What is drawn depends on a row's own logits, settings and place alone, not on the rows beside it.

    Args:
      logits: [B, V]. seen: the tokens that a row holds already [B, V] bool.
      place: which of a row's tokens is drawn [B]; each has a random number of its own. silent: tokens that
      are never drawn [V] bool.

    Returns:
      [B] int32; of equally probable tokens the first.
    """
    logits = jnp.where(silent, -jnp.inf, logits)
    penalty = how.penalty[:, None]
    logits = jnp.where(seen, jnp.where(logits > 0, logits / penalty, logits * penalty), logits)
    greedy = _largest(logits)

    def draw():
        # Less the largest, which then is 0 however low the temperature.
        x = logits - logits.max(axis=-1, keepdims=True)
        x = x / jnp.where(how.temperature > 0, how.temperature, 1)[:, None]
        x = jnp.where(_among(x, how), x, -jnp.inf)
        keys = jax.vmap(lambda s, p: jax.random.fold_in(jax.random.key(s), p))(how.seed, place)
        noise = jax.vmap(lambda key: jax.random.gumbel(key, x.shape[1:]))(keys)
        return jnp.where(how.temperature > 0, _largest(x + noise), greedy)

    return jax.lax.cond((how.temperature > 0).any(), draw, lambda: greedy)


def _largest(x):
    """The first of the largest [B]; on a CPU argmax takes twice as long, as it goes one by one."""
    at = jnp.where(x == x.max(axis=-1, keepdims=True), jnp.arange(x.shape[1]), x.shape[1] - 1)
    return at.min(axis=-1).astype(jnp.int32)


def _among(x, how: Sampling):
    """Which tokens a row is drawn from [B, V]; x: logits after the temperature. Equally probable tokens
    are in or out together."""

    def narrowed():
        bits, ones = _ordered(x), jnp.ones_like(x)
        kept = (how.top_k[:, None] <= 0) | (bits >= _least(bits, ones, how.top_k))
        p = jax.nn.softmax(jnp.where(kept, x, -jnp.inf), axis=-1)
        kept &= (how.top_p[:, None] >= 1) | (bits >= _least(bits, p, how.top_p))
        kept &= p >= how.min_p[:, None] * p.max(axis=-1, keepdims=True)
        return kept | (x == x.max(axis=-1, keepdims=True))  # whatever rounding says of tiny numbers

    narrow = (how.top_k > 0) | (how.top_p < 1) | (how.min_p > 0)
    return jax.lax.cond(narrow.any(), narrowed, lambda: jnp.ones(x.shape, bool))


def _ordered(x):
    """Numbers in the order of float32 x, as uint32."""
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
    negative = bits >> 31 == 1
    return jnp.where(negative, ~bits, bits | jnp.uint32(1 << 31))


def _least(bits, weight, enough):
    """The largest bound [B, 1] such that what is not below it weighs at least `enough` [B]: found bit by
    bit, where sorting a vocabulary takes longer."""

    def set_bit(i, bound):
        tried = bound | (jnp.uint32(1 << 31) >> i.astype(jnp.uint32))
        weighs = jnp.where(bits >= tried[:, None], weight, 0).sum(axis=-1)
        return jnp.where(weighs >= enough, tried, bound)

    none = jnp.zeros(bits.shape[0], jnp.uint32)
    return jax.lax.fori_loop(0, 32, set_bit, none)[:, None]


def logprob_of(logits, tokens):
    """log p of tokens [B], nats, as the model gives it, before anything is done to its logits [B, V]."""
    chosen = jnp.take_along_axis(logits, tokens[:, None], axis=-1)[:, 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)


def most_probable(logits):
    """The TOP most probable tokens [B, TOP] and their log p."""
    values, ids = jax.lax.top_k(logits, TOP)
    return ids, values - jax.nn.logsumexp(logits, axis=-1, keepdims=True)
