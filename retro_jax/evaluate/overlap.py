"""Longest common contiguous token run: how much of a text its neighbours already hold."""

import numpy as np

from retro_jax.corpus.tokenizer import PAD

_BLOCK = 4096  # pairs at a time


def longest_common_run(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Longest run of tokens that stands in both: a [P, I], b [P, J] -> [P] int. PAD never matches.

    Dynamic programming over the tokens of `a`, all pairs at once.
    """
    longest = np.zeros(len(a), np.int32)
    for start in range(0, len(a), _BLOCK):
        x, y = a[start : start + _BLOCK], b[start : start + _BLOCK]
        # runs[:, j]: length of the common run that ends at token i of a and token j - 1 of b
        runs = np.zeros((len(x), y.shape[1] + 1), np.int32)
        best = longest[start : start + _BLOCK]
        for i in range(x.shape[1]):
            same = (x[:, i : i + 1] == y) & (y != PAD)
            runs[:, 1:] = np.where(same, runs[:, :-1] + 1, 0)
            np.maximum(best, runs.max(axis=1), out=best)
    return longest


def chunk_overlap(tokens: np.ndarray, neighbours: np.ndarray) -> np.ndarray:
    """r(C) of each chunk of a sequence: tokens [B, C, M], neighbours [B, C, K, R] -> [B, C] in [0, 1].

    The longest run that the chunk shares with what it retrieved itself (the paper's measure,
    section 2.6, over K neighbours instead of 10) or with what the chunk before it retrieved (which
    is what the model reads while it predicts this chunk), divided by M.
    """
    b, c, m = tokens.shape
    own = np.repeat(tokens[:, :, None], neighbours.shape[2], axis=2)
    runs = [longest_common_run(own.reshape(-1, m), neighbours.reshape(-1, neighbours.shape[-1]))]
    shown = np.concatenate([np.zeros_like(neighbours[:, :1]), neighbours[:, :-1]], axis=1)
    runs.append(longest_common_run(own.reshape(-1, m), shown.reshape(-1, shown.shape[-1])))
    return np.maximum(*runs).reshape(b, c, -1).max(axis=-1) / m
