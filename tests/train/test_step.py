"""The sharded step: the same mathematics on every mesh, and a model that learns to read."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import altered, make_mesh

from retro_jax.config import MeshConfig, TrainConfig
from retro_jax.errors import UserError
from retro_jax.methods.language_model import LanguageModel
from retro_jax.methods.retro import Retro, Settings
from retro_jax.model import functional, sizes
from retro_jax.train import optimizer, sharding
from retro_jax.train.step import COMPILER, gradients, init_state, make_train_step

VOCAB = 64
TRAIN = TrainConfig(
    length=16, batch=8, steps=10, learning_rate=1e-2, warmup=2, weight_decay=0.1, clip=1.0
)


def batch(seed, size=8, length=16, m=4, k=2):
    rng = np.random.default_rng(seed)
    return {
        "tokens": rng.integers(1, VOCAB, (size, length)).astype(np.int32),
        # every neighbour of every chunk of every row differs, and some are missing
        "neighbours": rng.integers(0, VOCAB, (size, length // m, k, 2 * m)).astype(np.int32)
        * (rng.random((size, length // m, k, 1)) < 0.8),
    }


@pytest.fixture(scope="module")
def tiny(tiny):
    """With one layer of each kind: what a step does to one it does to all, and it compiles in half the time."""
    reading = {"cca_layers": (2,), "null_key": True}
    return altered(tiny, decoder={"layers": 2}, encoder={"layers": 1}, reading=reading)


@pytest.fixture(scope="module")
def fresh(tiny):
    """The state of step 0 on a mesh of eight devices. Read it; do not give it to a step."""
    with jax.set_mesh(make_mesh(1, 4, 2)):
        return init_state(Retro(tiny), TRAIN, VOCAB)


@pytest.fixture(scope="module")
def begin(tiny, fresh):
    """A function from (mesh, which is in context, and TrainConfig) to a state of step 0. The parameters
    are drawn once for all: that each mesh draws the same is tested in test_checkpoint.py."""
    drawn = {n: np.asarray(p) for n, p in fresh.params.items()}

    def begin(mesh, train=TRAIN):
        like = jax.eval_shape(lambda: init_state(Retro(tiny), train, VOCAB))
        like = sharding.shapes_on(mesh, like)
        state = jax.tree.map(lambda x: jax.device_put(np.zeros(x.shape, x.dtype), x.sharding), like)
        params, average = (
            {n: jax.device_put(drawn[n], x.sharding) for n, x in tree.items()}
            for tree in (like.params, like.average)
        )
        return dataclasses.replace(state, params=params, average=average)

    return begin


@pytest.fixture(scope="module")
def step_on_one(tiny):
    """A function from a TrainConfig to its step on a mesh of one device, compiled once for all tests."""
    return functools.cache(lambda train: make_train_step(Retro(tiny), train))


def test_on_a_mesh_and_in_parts_steps_are_the_same(tiny, begin):
    """To float tolerance: on one device as a whole, and on eight, spread in each of the three ways, in parts, of
    which padding makes one lighter than the other; with everything that a step can do."""
    whole = dataclasses.replace(TRAIN, ema=0.9, nonfinite="skip", learning_rate=1e-3)
    found = []
    for shape, parts in (((1, 1, 1), 1), ((2, 2, 2), 2)):
        train, mesh = dataclasses.replace(whole, accumulate=parts), make_mesh(*shape)
        with jax.set_mesh(mesh):
            state, seen = begin(mesh, train), []
            step = make_train_step(Retro(tiny), train)
            for i in range(12):
                given = batch(i)
                given["tokens"][:3, 5:] = 0
                state, metrics = step(state, sharding.shard_batch(mesh, given))
                seen.append([float(metrics[name]) for name in ("loss", "grad_norm")])
                if i == 0:
                    moments = {n: np.asarray(m) for n, m in optimizer_moments(state).items()}
                if i == 2:
                    params = {n: np.asarray(p) for n, p in state.params.items()}
        found.append((np.array(seen), moments, params))
    (seen, moments, params), (others, other_moments, other) = found
    assert seen[-1, 0] < seen[0, 0] - 0.1
    np.testing.assert_allclose(others, seen, rtol=2e-5)
    for name in params:
        np.testing.assert_allclose(other_moments[name], moments[name], atol=2e-7, err_msg=name)
        # Adam divides by the gradient's size: where that is near 0, rounding moves single
        # weights by a share of the learning rate (0.001, three steps); all others are equal.
        difference = np.abs(other[name] - params[name])
        assert np.median(difference) < 1e-7, (name, np.median(difference))
        assert difference.max() < 5e-4, (name, difference.max())


def test_parts_of_a_batch_are_computed_one_after_the_other(mesh, tiny, begin):
    """Or accumulation would save no memory, whatever its numbers."""
    state, given = begin(mesh), batch(0)

    def loops(parts):
        train = dataclasses.replace(TRAIN, accumulate=parts)
        jaxpr = jax.make_jaxpr(lambda s, b: gradients(Retro(tiny), train, s, b))(state, given)
        return [e.params["length"] for e in jaxpr.eqns if e.primitive.name == "scan"]

    # (A stack of layers is a loop too: `tiny` has stacks of one layer each.)
    assert set(loops(1)) == {1}
    assert loops(4) == [4]


def test_the_loss_is_nats_a_token_of_what_is_predicted(mesh, tiny, begin, step_on_one):
    """Of the logits (which tests/model holds to the paper), one token after the other: padding is no target."""
    given, state = batch(0), begin(mesh)
    given["tokens"][:3, 5:] = 0
    given["tokens"][4, 7] = 0
    params = {n: np.asarray(p) for n, p in state.params.items()}
    apply = jax.jit(functional.apply, static_argnums=0)  # quicker than each operation by itself
    logits = apply(tiny, params, given["tokens"], given["neighbours"])
    nats = []
    for row, tokens in zip(np.asarray(logits, np.float64), given["tokens"]):
        for place, target in zip(row, tokens[1:]):
            if target:
                e = np.exp(place - place.max())
                nats.append(-np.log(e[target] / e.sum()))
    _, metrics = step_on_one(TRAIN)(state, given)
    np.testing.assert_allclose(metrics["loss"], np.mean(nats), rtol=1e-5)
    assert len(nats) == 8 * 15 - 3 * 11 - 1


def test_the_average_follows_the_parameters_and_is_what_is_evaluated(mesh, begin, step_on_one):
    train = dataclasses.replace(TRAIN, ema=0.75)
    state = begin(mesh, train)
    expected = {n: np.asarray(p) for n, p in state.params.items()}
    step = step_on_one(train)
    for i in range(3):
        state, _ = step(state, batch(i))
        expected = {n: 0.75 * a + 0.25 * np.asarray(state.params[n]) for n, a in expected.items()}
    for name, value in state.weights().items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-5, atol=1e-7)
    assert any((np.asarray(state.params[n]) != v).any() for n, v in expected.items())


@pytest.mark.parametrize("nonfinite", ["stop", "skip"])
def test_a_step_that_is_not_finite_changes_nothing_but_counts(mesh, begin, step_on_one, nonfinite):
    """And with stop, nothing after it does: the state stays the one that the failing step had."""
    train = dataclasses.replace(TRAIN, ema=0.75, nonfinite=nonfinite)
    state = begin(mesh, train)
    step = step_on_one(train)
    state, metrics = step(state, batch(0))
    assert metrics["skipped"] == 0
    broken = state.params | {"norm.scale": state.params["norm.scale"].at[0].set(np.inf)}
    state = dataclasses.replace(state, params=broken)
    before = jax.tree.map(np.asarray, (state.params, state.opt_state, state.average))
    state, metrics = step(state, batch(1))
    assert metrics["skipped"] == 1
    assert state.step == 2
    jax.tree.map(
        np.testing.assert_array_equal, (state.params, state.opt_state, state.average), before
    )
    healed = state.params | {"norm.scale": np.ones_like(state.params["norm.scale"])}
    state = dataclasses.replace(state, params=healed)
    state, metrics = step(state, batch(2))
    changed = (np.asarray(state.params["embedding"]) != before[0]["embedding"]).any()
    assert changed == (nonfinite == "skip")
    assert metrics["skipped"] == 1


def test_parameters_and_moments_are_spread_over_the_whole_mesh(fresh):
    for tree in (fresh.params, optimizer_moments(fresh)):
        for name, value in tree.items():
            if not name.endswith(("_bias", "scale", "null_key")):
                share = value.addressable_shards[0].data.size / value.size
                assert share == 1 / 8, name


def optimizer_moments(state):
    return next(
        s.mu
        for s in jax.tree.leaves(state.opt_state, is_leaf=lambda s: hasattr(s, "mu"))
        if hasattr(s, "mu")
    )


def test_the_compiled_step_communicates_as_planned(tiny, fresh):
    """Weights are gathered and gradients reduced; nothing is sent from all to all, and nothing moves
    between neighbours, which would say that an array changed its layout on the way."""
    mesh = make_mesh(1, 4, 2)
    with jax.set_mesh(mesh):
        arrays = sharding.shard_batch(mesh, batch(0))
        step = make_train_step(Retro(tiny), TRAIN)
        text = step.lower(fresh, arrays).compile().as_text()
    count = {
        name: len(re.findall(rf" {name}(?:-start)?\(", text))
        for name in (
            "all-gather",
            "all-reduce",
            "reduce-scatter",
            "all-to-all",
            "collective-permute",
        )
    }
    assert count["all-to-all"] == count["collective-permute"] == 0, count
    weights = sum(v.ndim > 1 for v in fresh.params.values())
    assert 0 < count["all-gather"] <= 3 * weights, count  # forward, gradient, and the readout's
    assert 0 < count["all-reduce"] + count["reduce-scatter"] <= 4 * weights, count


def test_a_frozen_base_stays_bit_for_bit_and_off_is_the_base(tiny, fresh):
    """RETROfit: decay, clipping, moments and averages never touch what is not trained (traps 25, 26)."""
    mesh = make_mesh(1, 4, 2)
    train = dataclasses.replace(TRAIN, clip=1e-3, weight_decay=1.0, ema=0.9)
    with jax.set_mesh(mesh):
        language = functional.shapes(tiny, VOCAB, retrieval=False)
        base = {n: jnp.copy(fresh.params[n]) for n in language}
        before = {n: np.asarray(p) for n, p in base.items()}
        x = sharding.shard_batch(mesh, batch(0))["tokens"]
        score = jax.jit(functools.partial(functional.token_logprobs, tiny))
        alone = np.asarray(score(base, x))
        state = init_state(Retro(tiny), train, VOCAB, base)
        step = make_train_step(Retro(tiny), train)
        first = {n: np.asarray(p) for n, p in state.params.items()}
        for i in range(10):
            arrays = sharding.shard_batch(mesh, batch(i))
            state, _ = step(state, arrays)
        off = np.asarray(score(state.weights(), x))
    assert state.params.keys() == optimizer_moments(state).keys()
    assert state.params.keys() == Retro(tiny).added(VOCAB) == state.average.keys()
    for name, value in before.items():
        np.testing.assert_array_equal(state.frozen[name], value)
    assert all((np.asarray(p) != first[n]).any() for n, p in state.params.items())
    np.testing.assert_array_equal(off, alone)


def test_frozen_layers_below_the_first_that_reads_have_no_backward_pass(tiny, mesh):
    """Products of the gradient less those of the loss: as many for two more layers below, more for one above."""
    x = jax.tree.map(jnp.asarray, batch(0, size=1))

    def backward(layers, cca):
        model = altered(tiny, decoder={"layers": layers}, reading={"cca_layers": (cca,)})

        def begin():
            base = functional.init(model, VOCAB, 0, retrieval=False)
            return init_state(Retro(model), TRAIN, VOCAB, base)

        state = jax.eval_shape(begin)
        loss = jax.make_jaxpr(Retro(model).loss)(state.weights(), x)
        grad = jax.make_jaxpr(functools.partial(gradients, Retro(model), TRAIN))(state, x)
        return sizes.dot_flops(sizes.live(grad.jaxpr)) - sizes.dot_flops(loss.jaxpr)

    assert backward(4, 4) == backward(2, 2) < backward(3, 2)


def test_one_small_batch_is_learnt_by_heart(tiny, begin, mesh):
    train = dataclasses.replace(TRAIN, steps=300, warmup=10, weight_decay=0.0)
    one = batch(0, size=2)
    state, step = begin(mesh, train), make_train_step(Retro(tiny), train)
    for _ in range(train.steps):
        state, metrics = step(state, one)
    assert metrics["loss"] < 0.01


def test_weight_decay_is_for_matrices_only(tiny):
    decayed = optimizer.decayed(functional.shapes(tiny, VOCAB))
    assert decayed["stacks.1.0.cca.attention.query"]
    assert decayed["embedding"]
    assert not decayed["stacks.0.0.norm.scale"]
    assert not decayed["stacks.0.0.attention.content_bias"]


def test_the_schedule_is_the_papers():
    config = TrainConfig(steps=1000, warmup=750, learning_rate=2e-4, final=0.1)
    rate = optimizer.schedule(config)
    np.testing.assert_allclose([rate(0), rate(750), rate(1000)], [1e-7, 2e-4, 2e-5], rtol=1e-4)
    np.testing.assert_allclose(rate(375), 1e-4, rtol=1e-2)
    np.testing.assert_allclose(rate(875), 1.1e-4, rtol=1e-2)  # half way down the cosine


def test_a_model_whose_neighbours_hold_the_answer_learns_to_read_them(tiny, monkeypatch):
    """Random words cannot be predicted but by copying, and a neighbour holds them (trap 28).

    32 words, sequences of 5 chunks of 8; the first neighbour of a chunk is the chunk and the next.
    """
    model = altered(
        tiny,
        decoder={"d": 64, "heads": 4, "head_size": 16, "layers": 2},
        encoder={"d": 64, "heads": 4, "head_size": 16, "share_embedding": True, "layers": 1},
        reading={"cca_layers": (1, 2), "chunk": 8, "retrieved": 16},
    )
    train = TrainConfig(length=40, batch=16, steps=400, learning_rate=2e-3, warmup=20, clip=1.0)
    chance = np.log(32)
    optimized = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}
    monkeypatch.setitem(COMPILER, "cpu", COMPILER["cpu"] | optimized)  # hundreds of steps
    with jax.set_mesh(make_mesh(1, 1, 1)):
        state = init_state(Retro(model), train, 33)
        step = make_train_step(Retro(model), train)
        score = jax.jit(functools.partial(functional.token_logprobs, model))
        x, true = copies(10**6)

        def nats(n):
            return -np.asarray(score(state.params, x, n))

        for i in range(train.steps):
            state, _ = step(state, of(copies(i)))
            # The token at 8 is the first that a neighbour gives away: position 7 predicts it.
            if i % 20 == 19 and (half := nats(true)[:, 8:].mean() < chance / 2):
                break
        for j in range(train.steps, train.steps + 60):  # and on, at the schedule's last rate
            state, _ = step(state, of(copies(j)))
        on, random, off = nats(true), nats(np.roll(true, 1, axis=0)), nats(None)
    assert half, i
    assert on[:, 8:].mean() < 0.1 * chance
    assert on[:, 1:8].mean() > 0.98 * chance  # nothing was retrieved yet
    assert random[:, 8:].mean() > 0.98 * chance
    assert off[:, 1:].mean() > 0.98 * chance


def of(pair):
    return dict(zip(("tokens", "neighbours"), pair))


def copies(seed):
    """Random words [16, 40] and neighbours [16, 5, 2, 16], the second of each chunk random."""
    rng = np.random.default_rng(seed)
    x = rng.integers(1, 33, (16, 48)).astype(np.int32)
    own = np.stack([x[:, u * 8 : u * 8 + 16] for u in range(5)], axis=1)
    other = rng.integers(1, 33, own.shape).astype(np.int32)
    return x[:, :40], np.stack([own, other], axis=2)


def test_a_mesh_that_does_not_fit_is_refused_by_field():
    with pytest.raises(UserError, match=r"mesh = \(replica 1, data 3, model 1\).*8 device"):
        sharding.make_mesh(MeshConfig(data=3))
    assert sharding.make_mesh(MeshConfig(data=-1, model=2)).shape == {
        "replica": 1,
        "data": 4,
        "model": 2,
    }


def test_sizes_that_do_not_divide_are_refused_by_field(tiny):
    mesh = make_mesh(1, 4, 2)
    with pytest.raises(UserError, match=r"train\.batch: 6 must be a multiple of 4"):
        sharding.check_divides(mesh, tiny, VOCAB, train_batch=6)
    with pytest.raises(UserError, match=r"corpus\.vocab: 63"):
        sharding.check_divides(mesh, tiny, 63, train_batch=8)


def test_without_neighbours_the_gradient_is_the_language_models(tiny, begin):
    """So `read_from` trains first what the language model alone would be, and nothing of what reads."""
    mesh, tokens = make_mesh(1, 1, 1), {"tokens": batch(0)["tokens"]}
    with jax.set_mesh(mesh):
        state, given = begin(mesh), sharding.shard_batch(mesh, tokens)
        _, grads = gradients(Retro(tiny), TRAIN, state, given)
        alone = LanguageModel(tiny)
        params = {n: state.params[n] for n in alone.shapes(VOCAB)}
        _, expected = gradients(alone, TRAIN, dataclasses.replace(state, params=params), given)
    for name, value in grads.items():
        if name in expected:
            np.testing.assert_allclose(value, expected[name], atol=1e-6, err_msg=name)
        else:
            assert not value.any(), name
    assert grads.keys() > expected.keys()


def test_what_reads_stays_as_it_is_until_it_is_used(tiny, begin):
    """Decay would shrink what an attention to neighbours begins with, by which it finds what is like a query."""
    mesh, train = make_mesh(1, 1, 1), dataclasses.replace(TRAIN, warmup=1)
    with jax.set_mesh(mesh):
        state, method = begin(mesh, train), Retro(tiny)
        before = {n: np.asarray(p) for n, p in state.params.items()}
        step = make_train_step(method, train)
        given = batch(0)
        alone = sharding.shard_batch(mesh, {"tokens": given["tokens"]})
        added = method.added(VOCAB)
        for _ in range(2):  # the first has a learning rate of 0
            state, _ = step(state, alone)
        for name, value in state.params.items():
            assert (name in added) == np.array_equal(value, before[name]), name
        state, _ = step(state, sharding.shard_batch(mesh, given))
        assert not any(np.array_equal(state.params[n], before[n]) for n in added)


def test_what_reads_learns_at_its_share_of_the_rate(tiny, begin):
    """Adam's first step is as long as the rate, whatever the gradient: so each weight moves by its own."""
    train = dataclasses.replace(TRAIN, warmup=0, weight_decay=0.0)
    mesh, moved = make_mesh(1, 1, 1), []
    with jax.set_mesh(mesh):
        for share in (1.0, 0.25):
            method = Retro(tiny, settings=Settings(reading_rate=share))
            state = begin(mesh, train)
            before = {n: np.asarray(p) for n, p in state.params.items()}
            given = sharding.shard_batch(mesh, batch(0))
            state, _ = make_train_step(method, train)(state, given)
            moved.append({n: np.abs(state.params[n] - before[n]).max() for n in before})
    whole, part = moved
    for name in whole:
        share = 0.25 if name in method.added(VOCAB) else 1
        np.testing.assert_allclose(part[name], share * whole[name], rtol=1e-2, err_msg=name)
