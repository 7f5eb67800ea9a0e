"""How much of a text stands in what was retrieved for it: common contiguous runs of tokens.

P pairs, I tokens of a text, J tokens of what is compared with it
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from retro_jax.corpus.tokenizer import PAD

_BLOCK = 1024  # pairs at a time


def runs(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of each token of `a` the longest run that ends with it and stands in `b`: [P, I], [P, J] -> [P, I] int.

    PAD never matches. Dynamic programming over the tokens of `a`, all pairs at once: the run that ends at
    token i of `a` and j of `b` is one longer than that at i - 1 and j - 1.
    """
    kind = (
        np.int8 if a.shape[1] <= np.iinfo(np.int8).max else np.int16
    )  # the fewer bits, the faster
    a, b = (np.asarray(x, np.uint16 if max(x.max(initial=0) for x in (a, b)) < 2**16 else np.int32)
            for x in (a, b))  # fmt: skip
    out = np.zeros(a.shape, kind)
    for start in range(0, len(a), _BLOCK):
        x, y = a[start : start + _BLOCK], b[start : start + _BLOCK]
        count = len(x)
        if count < len(a):  # one shape for all blocks
            x, y = (np.pad(v, ((0, _BLOCK - count), (0, 0))) for v in (x, y))
        out[start : start + count] = np.asarray(_runs(x, y, kind))[:count]
    return out


def is_little(longest: np.ndarray, share: float, m: int) -> np.ndarray:
    """Whether chunks of M tokens have little in common with what they retrieved or read, of which `longest` is the
    longest run: less than a share of their tokens. A share of 1 is no limit."""
    return longest < (share * m if share < 1 else np.inf)


@functools.partial(jax.jit, static_argnums=2)
def _runs(a, b, kind):
    def token(ending, x):
        same = (x[:, None] == b) & (b != PAD)
        ending = jnp.where(same, jnp.pad(ending[:, :-1], ((0, 0), (1, 0))) + 1, 0).astype(kind)
        return ending, ending.max(axis=1)

    return jax.lax.scan(token, jnp.zeros(b.shape, kind), a.T)[1].T
