"""Retrieved once, and read by everything after it: the reader of `atlas` and `cepe`."""

import jax
import numpy as np
import pytest
from conftest import altered, drawn, reading_step

from retro_jax.methods import reader_says
from retro_jax.methods.atlas import Atlas
from retro_jax.methods.cepe import Cepe
from retro_jax.methods.method import METHODS, Retrieved
from retro_jax.methods.query_map import Examples
from retro_jax.methods.retro import Retro
from retro_jax.model import cross, sizes
from retro_jax.model.attend import attend
from retro_jax.model.cache import Fresh

VOCAB, K = 50, 2


def put(x):
    return jax.device_put(np.asarray(x), jax.P(("replica", "data")))


def examples(config, length: int, rows: int = 2):
    m, rng = config.reading.chunk, np.random.default_rng(0)
    near = rng.integers(1, VOCAB, (rows, -(-length // m), K, 2 * m)).astype(np.int32)
    near[0, 0, 1, m:] = 0
    tokens = rng.integers(1, VOCAB, (rows, length)).astype(np.int32)
    return tokens, Retrieved(near, np.zeros(near.shape[:3], np.float32))


@pytest.fixture
def atlas(tiny, mesh):
    """(method, weights, log p as a function of tokens and neighbours)."""
    method = Atlas(tiny, K)
    params = drawn(method.model, method.shapes(VOCAB))
    score = jax.jit(method.logprobs)
    return method, params, lambda t, n: np.asarray(score(params, put(t), jax.tree.map(put, n)))


def test_of_two_chunks_it_is_retro_without_positions(tiny, mesh):
    """What the first chunk retrieved, read by the second: there the two readers are the same."""
    config = altered(tiny, reading={"positions": "none"})
    m = config.reading.chunk
    tokens, near = examples(config, 2 * m - 1)
    found = []
    for cls in (Atlas, Retro):
        method = cls(config, K)
        params = drawn(method.model, method.shapes(VOCAB))
        given = params, put(tokens), jax.tree.map(put, near)
        found.append(np.asarray(jax.jit(method.logprobs)(*given)))
    np.testing.assert_allclose(*found, atol=1e-5)


def test_only_the_first_chunks_neighbours_count_and_for_all_tokens_after_it(atlas, tiny):
    _, _, logp = atlas
    m = tiny.reading.chunk
    tokens, near = examples(tiny, 4 * m + 1)
    expected = logp(tokens, near)
    others = near.tokens.copy()
    others[:, 1:] = 7
    np.testing.assert_array_equal(logp(tokens, near._replace(tokens=others)), expected)
    others = near.tokens.copy()
    others[:, 0, 0] = others[:, 0, 0] % 5 + 1
    changed = logp(tokens, near._replace(tokens=others)) != expected
    assert not changed[:, :m].any()
    assert changed[:, m:].all()
    none = near._replace(tokens=near.tokens * 0)
    np.testing.assert_allclose(logp(tokens, none)[:, :m], expected[:, :m], atol=1e-5)


def test_it_attends_to_all_neighbours_at_once():
    """One softmax over all keys, in plain loops."""
    rng = np.random.default_rng(0)
    b, length, k, r, d, m = 1, 7, 2, 3, 4, 2
    h, memory = rng.normal(size=(b, length, d)), rng.normal(size=(b, 1, k, r, d))
    mask = np.array([[[[True] * r, [True, False, True]]]])

    def softmax(x, memory, mask, offset, statistics):
        flat, seen = memory.reshape(b, -1, d), mask.reshape(b, 1, -1)
        weights = np.exp(x[:, 0] @ flat.swapaxes(1, 2)) * seen
        return (weights / weights.sum(-1, keepdims=True) @ flat)[:, None], None

    y, _ = cross.cross_attention_once(softmax, h, memory, mask, m)
    for t in range(length):
        keys = [memory[0, 0, j, i] for j in range(k) for i in range(r) if mask[0, 0, j, i]]
        w = np.exp([h[0, t] @ key for key in keys])
        expected = (
            sum(w_ * key for w_, key in zip(w, keys)) / w.sum() if t >= m - 1 else np.zeros(d)
        )
        np.testing.assert_allclose(y[0, t], expected, rtol=1e-5)


@pytest.mark.parametrize("prompt", [1, 3, 4, 9])
def test_token_by_token_it_is_what_is_said_at_once(atlas, tiny, prompt):
    method, params, logp = atlas
    m, length = tiny.reading.chunk, 14
    tokens, near = examples(tiny, length)
    expected = logp(tokens, near)
    net = method.decoder(dict(params))
    state = method.start(net, 2, length + 1, K)
    padded = np.where(np.arange(12) < prompt, tokens[:, :12], 0)
    given = near.tokens[:, :3] * (prompt >= m)
    read = Retrieved(put(given), put(near.distances[:, :3]))
    counts = put(np.array([prompt] * 2, np.int32))
    logits, state = jax.jit(method.prefill)(net, state, put(padded), counts, read)
    step = reading_step(method.step, method.read)
    for t in range(prompt, length):
        said = np.asarray(jax.nn.log_softmax(logits))[range(2), tokens[:, t]]
        np.testing.assert_allclose(said, expected[:, t], atol=1e-4)
        fresh = None
        if t + 1 == m:
            fresh = Fresh(put(np.arange(2)), put(near.tokens[:, 0]), put(near.distances[:, 0]))
        logits, state = step(net, state, put(tokens[:, t]), fresh)


@pytest.mark.parametrize("cls", [Atlas, Retro])
def test_a_neighbour_that_is_masked_is_one_that_is_left_out(tiny, mesh, cls):
    """So that leaving documents out one at a time, as LOOP does, takes no other encodings."""
    method = cls(tiny, K)
    params = drawn(method.model, method.shapes(VOCAB))
    tokens, near = examples(tiny, 14)
    score = jax.jit(method.logprobs)
    for j in range(K):
        masked, out = near.tokens.copy(), np.delete(near.tokens, j, axis=2)
        masked[:, :, j] = 0
        found = [
            score(params, put(tokens), Retrieved(put(x), put(near.distances[..., : x.shape[2]])))
            for x in (masked, out)
        ]
        np.testing.assert_allclose(*found, atol=1e-5)


def test_cepe_begins_as_the_language_model_that_it_stands_beside(tiny, mesh):
    method = Cepe(tiny, K)
    fresh = jax.jit(lambda: method.init(VOCAB, 0))()
    alone = {n: p for n, p in fresh.items() if n not in method.added(VOCAB)}
    tokens, near = examples(tiny, 9)
    got = jax.jit(method.logprobs)(fresh, put(tokens), jax.tree.map(put, near))
    base = METHODS["language_model"](tiny)
    np.testing.assert_allclose(got, jax.jit(base.logprobs)(alone, put(tokens)), atol=1e-5)
    assert method.freezes
    assert method.begins.name == "language_model"


def test_the_flops_are_those_of_the_traced_program(tiny, mesh):
    """And fewer than RETRO's: neighbours of one chunk are encoded."""
    m, length = tiny.reading.chunk, 16
    method = Atlas(tiny, K)
    shapes = {n: jax.ShapeDtypeStruct(s, np.float32) for n, s in method.shapes(VOCAB).items()}
    given = (
        jax.ShapeDtypeStruct((1, length), np.int32),
        jax.ShapeDtypeStruct((1, length // m, K, 2 * m), np.int32),
    )
    traced = jax.make_jaxpr(lambda p, t, n: method.logprobs(p, t, Retrieved(n)))(shapes, *given)
    assert method.flops(VOCAB, length) == pytest.approx(sizes.dot_flops(traced.jaxpr), rel=0.1)
    assert method.flops(VOCAB, length) < Retro(tiny, K).flops(VOCAB, length)


def chunks(config, n: int = 6, candidates: int = 3) -> Examples:
    """Training chunks, what follows, candidates; one text ends early, and one document."""
    m, rng = config.reading.chunk, np.random.default_rng(1)
    texts, following = rng.integers(1, VOCAB, (2, n, m)).astype(np.int32)
    following[1, 1:] = 0
    near = rng.integers(1, VOCAB, (n, candidates, 2 * m)).astype(np.int32)
    near[2, 0, m:] = 0
    vectors = rng.normal(size=(n, 5)), rng.normal(size=(n, candidates, 5))
    queries, found = (x.astype(np.float32) for x in vectors)
    return Examples(queries, found, texts, following, near, np.arange(n))


def test_what_the_reader_says_of_documents_is_what_it_says_of_each_alone(tiny, mesh):
    """In plain loops: with one document, with all but one; and where it looks, from its own statistics."""
    method, given = Atlas(tiny, K), chunks(tiny)
    params, m = drawn(method.model, method.shapes(VOCAB)), tiny.reading.chunk
    of = given, method, params, mesh, 4
    (logp, tokens), (left_out, _) = reader_says.alone(*of), reader_says.without(*of)
    looked, score = reader_says.attended(*of), jax.jit(method.logprobs)
    for i in range(6):
        text = np.concatenate([given.texts[i], given.following[i]])[None]
        there = text[0, m:] > 0
        assert tokens[i] == there.sum()

        def said(near, text=text, there=there):
            both = np.stack([near, np.zeros_like(near)])[None]
            read = Retrieved(put(both), put(np.zeros(both.shape[:3], np.float32)))
            return np.asarray(score(params, put(text), read))[0, m:][there].sum()

        for k in range(3):
            near = given.neighbours[i]
            np.testing.assert_allclose(logp[i, k], said(near[k : k + 1]), rtol=1e-4)
            rest = near * (np.arange(3) != k)[:, None]
            np.testing.assert_allclose(left_out[i, k], said(rest), rtol=1e-4)
            np.testing.assert_allclose(said(rest), said(np.delete(near, k, 0)), rtol=1e-4)
    assert (looked > 0).all()


def test_attention_on_values_is_weights_times_norms():
    """One head, one memory, in numpy."""
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=s).astype(np.float32) for s in ((3, 4), (6, 4), (6, 4)))
    shaped = q[None, None, :, None, None], *(x[None, None, None, :, None] for x in (k, v))
    mask = np.ones((1, 1, 1, 6), bool)
    _, mass = attend(*shaped, mask, statistics="values")
    logits = q @ k.T / 2
    weights = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    weights *= np.linalg.norm(v, axis=1)
    expected = np.stack([weights[:, :3].sum(1), weights[:, 3:].sum(1)], axis=-1)
    np.testing.assert_allclose(mass[0, 0, :, 0], expected, rtol=1e-5)


@pytest.mark.parametrize("loss", ["pdist", "emdr2", "loop", "adist"])
def test_its_retriever_learns_with_each_loss(tiny, mesh, loss):
    method = Atlas(tiny, K, Atlas.Settings(retriever=loss, tau=0.05))
    given, params = chunks(tiny), drawn(method.model, method.shapes(VOCAB))
    made, rows = method.loss_of_scores(given, params, mesh, 4), np.array([0, 2, 3, 5])
    scores = np.random.default_rng(0).normal(size=(4, 3))
    before, grad = jax.value_and_grad(made)(scores, rows)
    assert np.abs(grad).max() > 1e-4
    assert made(scores - 0.1 * grad, rows) < before
