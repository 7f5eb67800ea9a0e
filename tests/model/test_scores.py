"""Log-probabilities of tokens, and which of them are the most probable."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import weights
from test_retro import VOCAB, apply, example, token_logprobs

from retro_jax.model import functional


def test_token_logprobs_are_those_of_the_softmax(mesh, tiny):
    params = weights(tiny, VOCAB)
    tokens, neighbours = example(9)
    logits = apply(tiny, params, tokens, neighbours)
    expected = np.asarray(jax.nn.log_softmax(logits))
    got = np.asarray(token_logprobs(tiny, params, tokens, neighbours))
    assert not got[:, 0].any()
    for b, t in np.ndindex(2, 8):
        np.testing.assert_allclose(got[b, t + 1], expected[b, t, tokens[b, t + 1]], atol=1e-5)


@pytest.mark.parametrize("block", [256, 4])
def test_scores_are_log_probabilities_and_whether_it_is_the_first_of_the_most_probable_tokens(
    mesh, tiny, monkeypatch, block
):
    """Of 40 tokens 20 .. 39 are as probable as 0 .. 19, so that each has an equal."""
    params = weights(tiny, VOCAB)
    params["embedding"] = jnp.tile(params["embedding"][:20], (2, 1))
    tokens, neighbours = example(12)
    first = int(np.argmax(apply(tiny, params, tokens, neighbours)[0, 0]))
    never, expected = (first, 2), np.zeros((2, 12), bool)
    for t in range(11):
        logits = np.array(apply(tiny, params, tokens, neighbours))[:, t]
        logits[:, never] = -np.inf
        top = logits.argmax(-1)
        if t % 3 == 0:
            tokens[:, t + 1], expected[:, t + 1] = top, True
        elif t % 3 == 1:  # its equal, which is not the first
            tokens[:, t + 1] = np.where(top < 20, top + 20, top)
            expected[:, t + 1] = top >= 20
        else:
            expected[:, t + 1] = tokens[:, t + 1] == top
    monkeypatch.setattr(functional, "_READOUT_BLOCK", block)
    scores = jax.jit(lambda p: functional.token_scores(tiny, p, tokens, neighbours, never))
    logp, best, top = map(np.asarray, scores(params))
    np.testing.assert_array_equal((best == tokens)[:, 1:], expected[:, 1:])
    assert not np.any(np.stack([best, top])[..., 0])
    logits = apply(tiny, params, tokens, neighbours)
    of_softmax = np.asarray(jax.nn.log_softmax(logits))
    for remat in ("none", "full"):
        config = dataclasses.replace(tiny, remat=remat)
        # (A function of this test's own: blocks are no argument, and traces are kept.)
        whole = jax.jit(lambda p, c=config: functional.token_logprobs(c, p, tokens, neighbours))
        np.testing.assert_allclose(whole(params), logp, atol=1e-5)
    assert not np.any(logp[:, 0])
    for b, t in np.ndindex(2, 11):
        np.testing.assert_allclose(logp[b, t + 1], of_softmax[b, t, tokens[b, t + 1]], atol=1e-5)
        np.testing.assert_allclose(top[b, t + 1], of_softmax[b, t, best[b, t + 1]], atol=1e-5)
