"""Neighbours in the prompt: what transformers says in plain loops, and token by token what is said at once."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import altered, drawn, make_mesh, reading_step

sys.path.insert(0, str(Path(__file__).parents[1] / "weights"))
import foreign

from retro_jax.config import ReadingConfig
from retro_jax.corpus.tokenizer_json import FIRST
from retro_jax.errors import UserError
from retro_jax.methods.method import METHODS, Retrieved
from retro_jax.methods.rag import Rag
from retro_jax.methods.replug import Replug
from retro_jax.model import sizes
from retro_jax.model.cache import Fresh
from retro_jax.weights.directory import open_directory
from retro_jax.weights.placement import place

M, R, K, C = 4, 8, 3, 5
LENGTH = M * C - 2  # the last chunk is not complete
NAMES = ["rag", "replug"]
SHOWN, JUDGED = 2, 2  # of candidates K; tokens by which they are judged
READING = ReadingConfig(cca_layers=(1,), chunk=M, retrieved=R)


def examples(low: int, high: int, rows: int = 2, k: int = K):
    """Tokens [B, L], and neighbours of their chunks: some short, one missing, none of one chunk."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(low, high, (rows, LENGTH)).astype(np.int32)
    near = rng.integers(low, high, (rows, C, k, R)).astype(np.int32)
    distances = rng.uniform(0, 30, (rows, C, k)).astype(np.float32)
    near[:, :, 1, R // 2 :] = 0
    for at in ((0, 1, 2), (1, 2)):
        near[at], distances[at] = 0, np.inf
    return tokens, Retrieved(near, distances)


def put(x):
    return jax.device_put(np.asarray(x), jax.P(("replica", "data")))


def method_of(name: str, model, length: int, **settings):
    k = SHOWN if name == "rag_reranked" else K
    return METHODS[name](model, k, METHODS[name].Settings(**settings), length)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """(model of transformers, our config, its weights)."""
    theirs, directory = foreign.two_layers(), tmp_path_factory.mktemp("theirs")
    theirs.save_pretrained(directory)
    given = open_directory(directory)
    with jax.set_mesh(make_mesh(1, 1, 1)):
        params = place(given, given.model, False, make_mesh(1, 1, 1))
    return (
        theirs,
        altered(given.model, reading={"cca_layers": (1,), "chunk": M, "retrieved": R}),
        params,
    )


def said(theirs, row) -> np.ndarray:
    """log p of the token after a row [n] [V]."""
    logits = foreign.logits(theirs, np.asarray(row)[None] - FIRST)[0, -1].astype(np.float64)
    logits -= logits.max()
    return logits - np.log(np.exp(logits).sum())


def in_loops(theirs, tokens, near: Retrieved, room: int, temperature: float | None, kind: str):
    """log p of each token [L] of one text. room: tokens of a row at most, when its chunk is complete; temperature:
    of REPLUG's mixture, None for all neighbours in one row."""
    out, every = np.zeros(len(tokens)), M
    if kind == "rag_often":  # of every chunk two look-ups
        every = M // 2
        near = Retrieved(*(x.reshape(-1, K, *x.shape[2:]) for x in near))
    for t in range(1, len(tokens)):
        chunk = t // every
        texts, weights, older = [np.zeros(0, int)], [0.0], tokens
        if chunk:
            asked = 0 if kind == "rag_once" else chunk - 1
            found = [n[n > 0] for n in near.tokens[asked]]
            scores = [-d for d in near.distances[asked] if np.isfinite(d)]
            found = [n for n in found if len(n)]
            if kind == "rag_reranked" and found:
                found = by_likelihood(theirs, tokens[asked * M : chunk * M], found)[:SHOWN]
            if found and temperature is None:
                texts = [np.concatenate(found[::-1])]
            elif found:
                texts, weights = found, np.array(scores) / temperature
        weights = np.exp(weights) / np.exp(weights).sum()
        p = 0.0
        for text, weight in zip(texts, weights):
            begin = max(0, (chunk + 1) * every - (room - len(text)))
            row = np.concatenate([text, older[begin:t]])
            if kind == "rag_spliced":
                row = np.zeros(0, int)
                for c in range(chunk + 1):
                    before = near.tokens[c - 1][::-1].reshape(-1) if c else row[:0]
                    row = np.concatenate(
                        [row, before[before > 0], tokens[c * M : min(t, (c + 1) * M)]]
                    )
                complete = len(row) + (chunk + 1) * M - t
                row = row[max(0, complete - room) :]
            p += weight * np.exp(said(theirs, row)[tokens[t] - FIRST])
        out[t] = np.log(p)
    return out


def by_likelihood(theirs, chunk, found: list) -> list:
    """Neighbours in the order in which they make the last JUDGED tokens of a chunk probable."""

    def logp(text):
        row = np.concatenate([text, chunk])
        ends = range(len(row) - JUDGED, len(row))
        return sum(said(theirs, row[:t])[row[t] - FIRST] for t in ends)

    return sorted(found, key=lambda text: -logp(text))


@pytest.mark.parametrize(
    ("name", "settings", "length", "room"),
    [
        ("rag", {}, 2 * M + K * R, 2 * M + K * R),
        ("rag", {"budget": "longer"}, LENGTH, LENGTH + K * R),
        ("rag_once", {}, 2 * M + K * R, 2 * M + K * R),
        ("rag_spliced", {}, 2 * M + K * R, 2 * M + K * R),
        ("rag_spliced", {"budget": "longer"}, LENGTH, LENGTH + C * K * R),
        ("rag_often", {"every": M // 2}, 2 * M + K * R, 2 * M + K * R),
        ("rag_reranked", {"candidates": K, "judged": JUDGED}, 2 * M + SHOWN * R, 2 * M + SHOWN * R),
        ("replug", {"temperature": 7.0}, M * 4, M * 4),
        ("replug", {"temperature": 7.0, "budget": "longer"}, M * 2, M * 2 + R),
    ],
)
def test_it_is_what_transformers_says_in_plain_loops(llama, name, settings, length, room):
    """Windows that displace the oldest tokens, and that are as long as they have to be."""
    theirs, config, params = llama
    low = FIRST + 3
    twice = 2 if name == "rag_often" else 1
    tokens, near = examples(low, low + 200, k=twice * K)
    method = method_of(name, config, length, **settings)
    with jax.set_mesh(make_mesh(1, 1, 1)):
        given = jax.tree.map(put, near)
        logp = np.asarray(jax.jit(method.logprobs)(params, put(tokens), given))
    for row in range(len(tokens)):
        of_row = Retrieved(near.tokens[row], near.distances[row])
        temperature = settings.get("temperature")
        expected = in_loops(theirs, tokens[row], of_row, room, temperature, name)
        np.testing.assert_allclose(logp[row], expected, atol=1e-5)


def test_look_ups_may_be_given_one_by_one_or_by_chunks(tiny, mesh):
    """As a comparison gives them, all of a chunk together, and as whoever looks texts up one after the other."""
    method = method_of("rag_often", tiny, 2 * M + K * R, every=M // 2)
    params = drawn(tiny, METHODS["language_model"](tiny).shapes(50))
    tokens, near = examples(1, 50, k=2 * K)
    apart = Retrieved(*(x.reshape(len(x), 2 * C, K, *x.shape[3:]) for x in near))
    tokens = np.pad(
        tokens, ((0, 0), (0, M * C - LENGTH)), constant_values=3
    )  # as many as 2 C look-ups
    score = jax.jit(method.logprobs)
    one, other = (score(params, put(tokens), jax.tree.map(put, x)) for x in (near, apart))
    np.testing.assert_array_equal(one, other)
    assert np.abs(np.asarray(one) - score(params, put(tokens), None)).max() > 1e-3


def test_what_is_tried_is_what_each_choice_says(tiny, mesh):
    method = method_of("replug", tiny, LENGTH, budget="longer")
    params = drawn(tiny, METHODS["language_model"](tiny).shapes(50))
    tokens, near = examples(1, 50)
    given = params, put(tokens), jax.tree.map(put, near)
    tried = np.asarray(jax.jit(method.tried)(*given))
    for i in (0, 2, len(method.choices()) - 1):
        other = Replug(tiny, K, method.choices()[i], LENGTH)
        np.testing.assert_allclose(tried[..., i], jax.jit(other.logprobs)(*given), atol=1e-5)
    assert np.ptp(tried, axis=-1)[:, M:].max() > 1e-3


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("budget", ["window", "longer"])
def test_token_by_token_it_is_what_is_said_at_once(tiny, mesh, name, budget):
    """From prompts that end in different places of a chunk, with new neighbours where chunks end."""
    vocab, prompts = 50, np.array([2, 9])
    method = method_of(name, tiny, K * R + 2 * M, budget=budget)
    params = drawn(tiny, METHODS["language_model"](tiny).shapes(vocab))
    tokens, near = examples(1, vocab)
    expected, best, top = jax.jit(lambda p, t, n: method.scores(p, t, n, ()))(
        params, put(tokens), jax.tree.map(put, near)
    )
    net = method.decoder(dict(params))
    state = method.start(net, 2, LENGTH + 2, K)
    padded = np.where(np.arange(12) < prompts[:, None], tokens[:, :12], 0)
    given = Retrieved(*(x[:, :3].copy() for x in near))
    for row, n in enumerate(prompts):
        given.tokens[row, n // M :] = 0
    logits, state = jax.jit(method.prefill)(
        net, state, put(padded), put(prompts.astype(np.int32)), jax.tree.map(put, given)
    )
    step = reading_step(method.step, method.read)
    at = prompts.copy()
    while (at < LENGTH).any():
        said = np.asarray(jax.nn.log_softmax(jnp.asarray(logits)))
        for row, t in enumerate(at):
            if t < LENGTH:
                target = tokens[row, t]
                np.testing.assert_allclose(said[row, target], expected[row, t], atol=1e-4)
                assert said[row].argmax() == best[row, t]
                assert abs(said[row].max() - top[row, t]) < 1e-4
        active = at < LENGTH
        reads = [row for row, t in enumerate(at) if active[row] and (t + 1) % M == 0]
        fresh = None
        if reads:
            chunks = [at[row] // M for row in reads]
            fresh = Fresh(
                *map(
                    put,
                    (np.array(reads), near.tokens[reads, chunks], near.distances[reads, chunks]),
                )
            )
        token = tokens[np.arange(2), np.minimum(at, LENGTH - 1)]
        logits, state = step(net, state, put(token), fresh, put(active))
        at = at + active


@pytest.mark.parametrize("name", NAMES)
def test_without_neighbours_it_is_the_language_model(tiny, mesh, name):
    """Where none was looked for, and where none was found; whatever the window."""
    method = method_of(name, tiny, K * R + 2 * M, budget="longer")
    params = drawn(tiny, METHODS["language_model"](tiny).shapes(50))
    tokens, near = examples(1, 50)
    alone = np.asarray(jax.jit(METHODS["language_model"](tiny).logprobs)(params, put(tokens)))
    none = Retrieved(put(near.tokens * 0), put(np.full_like(near.distances, np.inf)))
    for retrieved in (None, none):
        got = jax.jit(method.logprobs)(params, put(tokens), retrieved)
        np.testing.assert_allclose(got, alone, atol=1e-5)


@pytest.mark.parametrize("name", [*NAMES, "rag_spliced", "rag_reranked"])
def test_on_a_mesh_of_eight_devices_some_chunks_are_the_same(tiny, name):
    """Those that are asked for; the others are left out."""
    method = method_of(name, tiny, K * R + 2 * M)
    params = drawn(tiny, METHODS["language_model"](tiny).shapes(64))
    tokens, near = examples(1, 50, rows=4)
    found, asked = [], np.random.default_rng(0).random(tokens.shape) < 0.1
    for shape, given in (((1, 1, 1), {}), ((2, 2, 2), {"asked": asked})):
        with jax.set_mesh(make_mesh(*shape)):
            near_of = jax.tree.map(put, near)
            logp = jax.jit(method.logprobs)(
                params, put(tokens), near_of, **jax.tree.map(put, given)
            )
            found.append(np.asarray(logp))
    whole, some = found
    np.testing.assert_allclose(whole[asked], some[asked], atol=1e-5)
    size = method.look_ups.every
    without = ~np.add.reduceat(asked, np.arange(0, asked.shape[1], size), axis=1).astype(bool)
    assert 0 < without.mean() < 0.9
    assert not some[without.repeat(size, axis=1)[:, : some.shape[1]]].any()


def test_a_nearer_neighbour_weighs_more_and_a_missing_one_nothing(tiny):
    near = np.ones((1, 3, R), np.int32)
    near[0, 2] = 0
    weigh = Replug(tiny, 3, Replug.Settings(temperature=2.0)).weigh
    weights = np.exp(weigh(Retrieved(near, np.array([[1.0, 3.0, np.inf]], np.float32))))
    np.testing.assert_allclose(
        weights[0, ::-1], [1 / (1 + np.exp(-1)), 1 / (1 + np.exp(1)), 0], atol=1e-6
    )
    given = np.exp(
        weigh(Retrieved(near, np.full((1, 3), np.inf, np.float32)))
    )  # texts of a request
    np.testing.assert_allclose(given[0, ::-1], [0.5, 0.5, 0], atol=1e-6)


def test_neighbours_that_leave_no_room_are_refused(tiny):
    with pytest.raises(
        UserError, match=r"train\.length = 16: neighbours of 24 tokens leave no room"
    ):
        Rag(tiny, 3, Rag.Settings(), 16)._window(16, 3)


@pytest.mark.parametrize("name", NAMES)
def test_the_flops_are_those_of_the_traced_program(tiny, mesh, name):
    method, length = method_of(name, tiny, M * C + K * R), M * C
    shapes = METHODS["language_model"](tiny).shapes(50)
    params = {n: jax.ShapeDtypeStruct(s, np.float32) for n, s in shapes.items()}
    near = Retrieved(np.zeros((1, C, K, R), np.int32), np.zeros((1, C, K), np.float32))
    traced = jax.make_jaxpr(method.logprobs)(params, np.zeros((1, length), np.int32), near)
    # The body of its loop, which is run for every look-up that is asked for, is counted once. What is projected of
    # relative positions is the same for all rows of a batch, and counted for each.
    counted = sizes.dot_flops(traced.jaxpr) * method.look_ups.count(length)
    assert method.flops(50, length) == pytest.approx(counted, rel=0.1)
