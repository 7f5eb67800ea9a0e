"""RETRO++: rows in plain loops, and token by token what is said at once."""

import jax
import numpy as np
import pytest
from conftest import altered, drawn, reading_step

from retro_jax.errors import UserError
from retro_jax.methods.method import METHODS, Retrieved
from retro_jax.methods.retro_pp import RetroPP, Settings
from retro_jax.model import functional
from retro_jax.model.cache import Fresh

VOCAB, K = 50, 2


def put(x):
    return jax.device_put(np.asarray(x), jax.P(("replica", "data")))


def examples(m: int, chunks: int, rows: int = 2):
    rng = np.random.default_rng(0)
    near = rng.integers(1, VOCAB, (rows, chunks, K, 2 * m)).astype(np.int32)
    near[0, 0, 0, m + 1 :] = 0  # the nearest has no whole continuation
    near[1, 1] = 0  # nothing was found
    tokens = rng.integers(1, VOCAB, (rows, chunks * m - 1)).astype(np.int32)
    return tokens, Retrieved(near, np.zeros(near.shape[:3], np.float32))


def in_loops(config, params, tokens, near, window: int):
    """log p of each token [L] of one text, of rows of `window` chunks that are cut in Python."""
    m, out = config.reading.chunk, np.zeros(len(tokens))
    apply = jax.jit(lambda p, t, n: functional.token_logprobs(config, p, t, n))
    for u in range(len(near)):
        first = max(0, u - (window - 3))
        prompt = near[u - 1, 0] if u else np.zeros(2 * m, int)
        prompt = np.concatenate([prompt[prompt == 0], prompt[prompt != 0]])
        row = np.concatenate([prompt, tokens[first * m : (u + 1) * m]])
        row = np.pad(row, (window * m - len(row) - (u + 1) * m + min(len(tokens), (u + 1) * m), 0))
        row = np.pad(row, (0, window * m - len(row)))
        read = np.zeros((window, *near.shape[1:]), np.int32)
        read[window - (u + 1 - first) :] = near[first : u + 1]
        logp = np.asarray(apply(params, put(row[None].astype(np.int32)), put(read[None])))[0]
        size = min(len(tokens), (u + 1) * m) - u * m
        out[u * m : u * m + size] = logp[-m : len(logp) - m + size]
    out[0] = 0
    return out


@pytest.mark.parametrize(("budget", "length"), [("window", 5), ("longer", 3)])
def test_it_is_what_rows_cut_in_python_say(tiny, mesh, budget, length):
    """Five chunks in a row, two of them the neighbour's: the oldest go."""
    m = tiny.reading.chunk
    tokens, near = examples(m, 6)
    method = RetroPP(tiny, K, Settings(budget), length * m)
    params = drawn(tiny, METHODS["retro"](tiny, K).shapes(VOCAB))
    found = jax.jit(method.logprobs)(params, put(tokens), jax.tree.map(put, near))
    for row in range(2):
        expected = in_loops(tiny, params, tokens[row], near.tokens[row], 5)
        np.testing.assert_allclose(found[row], expected, atol=1e-5)


@pytest.mark.parametrize("prompt", [1, 4, 10])
def test_token_by_token_it_is_what_is_said_at_once(tiny, mesh, prompt):
    m = tiny.reading.chunk
    tokens, near = examples(m, 6)
    method = RetroPP(tiny, K, None, 5 * m)
    params = drawn(tiny, METHODS["retro"](tiny, K).shapes(VOCAB))
    given = params, put(tokens), jax.tree.map(put, near)
    expected, best, _ = jax.jit(lambda p, t, n: method.scores(p, t, n, ()))(*given)
    net = method.decoder(dict(params))
    state = method.start(net, 2, 6 * m, K)
    padded = np.where(np.arange(12) < prompt, tokens[:, :12], 0)
    read = near.tokens[:, :3].copy()
    read[:, prompt // m :] = 0
    counts = put(np.array([prompt] * 2, np.int32))
    logits, state = jax.jit(method.prefill)(
        net, state, put(padded), counts, Retrieved(put(read), put(near.distances[:, :3]))
    )
    step = reading_step(method.step, method.read)
    for t in range(prompt, tokens.shape[1]):
        said = np.asarray(jax.nn.log_softmax(logits))
        np.testing.assert_allclose(said[range(2), tokens[:, t]], expected[:, t], atol=1e-4)
        np.testing.assert_array_equal(said.argmax(1), np.asarray(best)[:, t])
        fresh = None
        if (t + 1) % m == 0:
            u = t // m
            fresh = Fresh(put(np.arange(2)), put(near.tokens[:, u]), put(near.distances[:, u]))
        logits, state = step(net, state, put(tokens[:, t]), fresh)


def test_what_cannot_be_read_is_refused(tiny):
    with pytest.raises(UserError, match="no room for two chunks"):
        RetroPP(tiny, K, None, 3 * tiny.reading.chunk)
    learned = altered(tiny, decoder={"positions": "learned", "max_length": 64})
    with pytest.raises(UserError, match="'learned'"):
        RetroPP(learned, K)
