"""Positions: Transformer-XL's relative ones, and the rotary ones of pre-trained decoders.

I queries, J keys, S distances (I + J of them, or 1 + J), D width, H head size
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from retro_jax.config import DecoderConfig

_ROWS, _WINDOWS = 8, 64  # queries that share a window of distances; windows at most


def sinusoid(distances: np.ndarray, width: int) -> jax.Array:
    """Sine and cosine of signed distances: [S] -> [S, width], float32.

    Half of the columns are sines, half cosines, of the frequencies 10000^(-2 i / width). Computed in
    float64 on the host: a distance is a static number, and bfloat16 cannot hold 2047.
    """
    return jnp.asarray(_sinusoid(tuple(distances.tolist()), width))


@functools.lru_cache(8)  # every layer that is traced asks for one of a few
def _sinusoid(distances: tuple, width: int) -> np.ndarray:
    angles = np.array(distances)[:, None] * 10000.0 ** (-np.arange(0, width, 2) / width)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1).astype(np.float32)


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


def windows(table: jax.Array, queries: int, keys: int) -> jax.Array:
    """The distances that a few queries need: [S, ...] -> [X, W, ...], one window for I / X queries.

    I queries and J keys are I + J distances apart, but one query is only J apart from them: with a
    window of its own for every 8 queries, W = J + 8 logits by distance are computed for a query
    instead of I + J. More than 512 queries share windows of 16 and more, so that all windows together
    stay small beside the queries. A causal table, which has no more than J + 1, is its own single
    window, and so is that of queries whose number a window does not divide.
    """
    rows = _ROWS * -(-queries // (_ROWS * _WINDOWS))
    if table.shape[0] != queries + keys or queries % rows:
        return table[None]
    starts = range(queries - rows, -1, -rows)
    return jnp.stack([table[start : start + rows + keys] for start in starts])


def unshift(g: jax.Array, count: int) -> jax.Array:
    """The transpose of `shift`: gradients by key [..., I, J] to gradients by distance [..., I, S]."""
    *batch, queries, keys = g.shape
    # A row of zeros above, and zeros to the right: one pad, and the rows become diagonals.
    g = jnp.pad(g, (*((0, 0),) * len(batch), (1, 0), (0, count - 1 - keys)))
    g = g.reshape(*batch, (queries + 1) * (count - 1))[..., count - 1 - queries :]
    return g.reshape(*batch, queries, count)


def rotations(config: DecoderConfig, positions: np.ndarray):
    """Sine and cosine [n, half], float32, by which a head's numbers turn at n positions, for `rotate`. The
    first `rotary_share` of the numbers turn, in pairs.
    """
    half = int(config.head_size * config.rotary_share) // 2
    angles = positions[:, None] * speeds(half, config.rotary_base, config.rotary_scaling)
    return np.sin(angles).astype(np.float32), np.cos(angles).astype(np.float32)


def speeds(half: int, base: float, scaling: tuple[float, ...] = ()) -> np.ndarray:
    """By what angle each pair of a head's numbers turns from one token to the next [half].

    With `scaling` = (factor,) all turn slower by that factor (Chen et al. 2023, arXiv 2306.15595).
    With (factor, low, high, length), what turns less than `low` times within `length` tokens does; what
    turns more than `high` times stays; between them, the share is linear in the turns (Llama 3.1).
    """
    speed = base ** (-np.arange(half) / half)
    if len(scaling) == 1:
        return speed / scaling[0]
    if scaling:
        factor, low, high, length = scaling
        kept = np.clip((length * speed / (2 * np.pi) - low) / (high - low), 0, 1)
        return kept * speed + (1 - kept) * speed / factor
    return speed


def rotate(x: jax.Array, sin, cos) -> jax.Array:
    """Rotary positions (Su et al. 2021, arXiv 2104.09864): x [..., H]; sin and cos [..., half] as from
    `rotations`, with an axis of length 1 for each of x's that is not a token's place.

    Number i and number i + half are a pair, as in GPT-NeoX and Llama. Computed in float32.
    """
    turned = 2 * sin.shape[-1]
    a, b = jnp.split(x[..., :turned].astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
    return jnp.concatenate([rotated.astype(x.dtype), x[..., turned:]], axis=-1)
