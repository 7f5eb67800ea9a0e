"""kNN-LM: what transformers and NumPy say in plain loops, and token by token what is said at once."""

import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import altered, drawn, make_mesh

sys.path.insert(0, str(Path(__file__).parents[1] / "weights"))
import foreign
import torch

from retro_jax.config import ReadingConfig
from retro_jax.corpus.tokenizer_json import FIRST
from retro_jax.methods import datastore
from retro_jax.methods.datastore import Flat, Store
from retro_jax.methods.knn_lm import KnnLm, Settings
from retro_jax.methods.method import METHODS, Retrieved
from retro_jax.pipeline.prepared import Prepared
from retro_jax.store.workdir import WorkDir
from retro_jax.weights.directory import open_directory
from retro_jax.weights.placement import place

K, LENGTH, VOCAB = 5, 12, 50
SETTINGS = Settings(k=K, weight=0.3, temperature=4.0)


def put(x):
    return jax.device_put(np.asarray(x), jax.P(("replica", "data")))


@pytest.fixture
def opened(tiny):
    """A method whose datastore is there, of random keys with some values in common."""
    rng = np.random.default_rng(1)
    method = KnnLm(tiny, settings=SETTINGS)
    keys = rng.normal(size=(40, tiny.decoder.d)).astype(np.float32)
    method._store = Store(Flat(keys), rng.integers(1, 12, 40).astype(np.int32))
    return method


def states(theirs, row):
    """What the last feed-forward reads of each token [L, D], and log p of the token after each [L, V]."""
    seen = []
    hook = theirs.model.layers[-1].mlp.register_forward_pre_hook(
        lambda _, args: seen.append(args[0])
    )
    logits = torch.tensor(foreign.logits(theirs, row[None])[0].astype(np.float64))
    hook.remove()
    return seen[0][0].detach().numpy(), torch.log_softmax(logits, -1).numpy()


def test_it_is_what_transformers_says_in_plain_loops(tmp_path):
    theirs, rng = foreign.two_layers(), np.random.default_rng(0)
    theirs.save_pretrained(tmp_path / "theirs")
    given, mesh = open_directory(tmp_path / "theirs"), make_mesh(1, 1, 1)
    reading = ReadingConfig(cca_layers=(1,), chunk=4, retrieved=8)
    database, text = (rng.integers(3, 30, (rows, LENGTH)) for rows in (6, 2))
    keys, values = [], []
    for row in database:
        fed, _ = states(theirs, row)
        keys.extend(fed[:-1])
        values.extend(row[1:])
    keys, values = np.array(keys), np.array(values)
    method = KnnLm(altered(given.model, reading=vars(reading)), settings=SETTINGS)
    method._store = Store(Flat(keys), (values + FIRST).astype(np.int32))
    with jax.set_mesh(mesh):
        params = place(given, given.model, False, mesh)
        logp = np.asarray(jax.jit(method.logprobs)(params, put(text + FIRST)))
    for row, found in zip(text, logp):
        fed, own = states(theirs, row)
        for t in range(1, LENGTH):
            distance = ((keys - fed[t - 1]) ** 2).sum(axis=1)
            near = np.argsort(distance)[:K]
            weights = np.exp(-distance[near] / SETTINGS.temperature)
            q = (weights / weights.sum())[values[near] == row[t]].sum()
            p = 0.7 * np.exp(own[t - 1, row[t]]) + 0.3 * q
            assert abs(np.log(p) - found[t]) < 1e-5


def test_scores_choices_and_steps_say_what_logprobs_says(opened, tiny, mesh):
    params = drawn(tiny, METHODS["language_model"](tiny).shapes(VOCAB))
    tokens = np.random.default_rng(0).integers(1, VOCAB, (2, LENGTH)).astype(np.int32)
    expected = np.asarray(jax.jit(opened.logprobs)(params, put(tokens)))
    alone = np.asarray(jax.jit(KnnLm(tiny).logprobs)(params, put(tokens)))
    assert np.abs(expected - alone)[:, 1:].min() > 1e-4
    scored, best, top = jax.jit(lambda p, t: opened.scores(p, t, None, ()))(params, put(tokens))
    np.testing.assert_allclose(scored, expected, atol=1e-5)
    tried = np.asarray(jax.jit(opened.tried)(params, put(tokens)))
    np.testing.assert_allclose(tried[..., 0], expected, atol=1e-5)
    last = KnnLm(tiny, settings=opened.choices()[-1])
    last._store = opened._store
    np.testing.assert_allclose(
        tried[..., -1], jax.jit(last.logprobs)(params, put(tokens)), atol=1e-5
    )
    net, none = opened.decoder(dict(params)), np.zeros((2, 2, 0, tiny.reading.retrieved), np.int32)
    state = opened.start(net, 2, LENGTH, 0)
    logits, state = jax.jit(opened.prefill)(
        net, state, put(tokens[:, :5]), put(np.array([5, 5], np.int32)), Retrieved(put(none))
    )
    step = jax.jit(lambda net, state, t: opened.step(net, state, t))
    for t in range(5, LENGTH):
        said = np.asarray(jax.nn.log_softmax(logits))
        np.testing.assert_allclose(said[range(2), tokens[:, t]], expected[:, t], atol=1e-4)
        np.testing.assert_array_equal(said.argmax(1), np.asarray(best)[:, t])
        np.testing.assert_allclose(said.max(1), np.asarray(top)[:, t], atol=1e-4)
        logits, state = step(net, state, put(tokens[:, t]))


def test_on_eight_devices_it_is_the_same(opened, tiny):
    params = drawn(tiny, METHODS["language_model"](tiny).shapes(VOCAB))
    tokens = np.random.default_rng(0).integers(1, VOCAB, (4, LENGTH)).astype(np.int32)
    found = []
    for shape in ((1, 1, 1), (2, 2, 2)):
        with jax.set_mesh(make_mesh(*shape)):
            found.append(np.asarray(opened.jitted("logprobs")(params, put(tokens))))
    np.testing.assert_allclose(*found, atol=1e-5)
    with jax.set_mesh(make_mesh(1, 1, 1)):
        alone = np.asarray(jax.jit(opened.logprobs)(params, put(tokens)))
        scored, *_ = opened.jitted("scores", never=())(params, put(tokens))
        tried = opened.jitted("tried")(params, put(tokens))
    np.testing.assert_allclose(found[0], alone, atol=1e-5)
    np.testing.assert_allclose(scored, alone, atol=1e-5)
    np.testing.assert_allclose(np.asarray(tried)[..., 0], alone, atol=1e-5)
    with jax.set_mesh(make_mesh(2, 2, 2)), pytest.raises(ValueError, match="use `jitted`"):
        jax.jit(opened.logprobs)(params, put(tokens))


def test_where_nothing_is_found_it_is_the_language_model(opened, tiny, mesh):
    """And of fewer keys than k those count that there are."""
    params = drawn(tiny, METHODS["language_model"](tiny).shapes(VOCAB))
    tokens = np.random.default_rng(0).integers(1, VOCAB, (2, LENGTH)).astype(np.int32)
    alone = np.asarray(jax.jit(KnnLm(tiny).logprobs)(params, put(tokens)))
    for count in (0, 2):
        keys = np.ones((count, tiny.decoder.d), np.float32)
        opened._store = Store(Flat(keys), np.full(count, 7, np.int32))
        logp = np.asarray(jax.jit(opened.logprobs)(params, put(tokens)))
        q = np.where(tokens == 7, SETTINGS.weight, 0.0) if count else 0.0
        p = np.exp(alone) * (1 - SETTINGS.weight * bool(count)) + q
        np.testing.assert_allclose(logp[:, 1:], np.log(p)[:, 1:], atol=1e-5)


def test_a_part_of_the_database_is_spread_over_all_of_it(finished, small):
    table = Prepared(WorkDir(finished, small)).database

    def documents(share):
        batches = datastore._sequences(small, table, share)
        found = np.concatenate([documents for _, documents in batches])
        return found[(found >= 0).any(axis=1)]  # without the rows that fill the last batch

    whole, part = documents(1.0), documents(0.25)
    np.testing.assert_array_equal(part, whole[::4])
    assert len(documents(1e-9)) == 1  # never none
    assert set(whole[whole >= 0]) == set(range(len(table.documents)))
