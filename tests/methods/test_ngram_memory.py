"""A memory of n-grams: what plain loops say, how large it is, and on any mesh the same."""

import itertools

import jax
import numpy as np
from conftest import drawn, make_mesh

from retro_jax.methods.ngram_memory import NGramMemory, Settings
from retro_jax.methods.retro import Retro
from retro_jax.model import functional

VOCAB, LENGTH = 50, 12


def put(x):
    return jax.device_put(np.asarray(x), jax.P(("replica", "data")))


def memory_of(method, params):
    return functional.network(method.model, params).memory


def test_it_is_what_plain_loops_say(tiny, mesh):
    method = NGramMemory(tiny, settings=Settings(size=7, width=3, hashes=2))
    params = drawn(method.model, method.shapes(VOCAB))
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, VOCAB, (2, LENGTH)).astype(np.int32)
    h = rng.normal(size=(2, LENGTH, tiny.decoder.d)).astype(np.float32)
    run = jax.jit(lambda p, t, h: memory_of(method, p)(t, h))
    found = np.asarray(run(params, put(tokens), put(h)))
    places = np.asarray(jax.jit(lambda p, t: memory_of(method, p).places(t))(params, put(tokens)))
    p = {n.removeprefix("memory."): np.asarray(x) for n, x in params.items() if "memory" in n}

    def rms(x, scale):
        return x / np.sqrt((x * x).mean() + tiny.decoder.norm_eps) * scale

    for b in range(2):
        for t in range(LENGTH):
            e = np.concatenate([p["rows"][i] for i in places[b, t]])
            match = rms(h[b, t], p["norm.scale"]) @ rms(e @ p["key"], p["key_norm.scale"])
            gate = 1 / (1 + np.exp(-match / np.sqrt(tiny.decoder.d)))
            np.testing.assert_allclose(found[b, t], gate * (e @ p["value"]), atol=1e-5)


def test_the_same_n_gram_has_the_same_place_and_every_table_its_own(tiny, mesh):
    method = NGramMemory(tiny, settings=Settings(size=1 << 16))
    params = drawn(method.model, method.shapes(VOCAB))
    tokens = np.array([[1, 2, 3, 4, 9, 2, 3, 4], [5, 2, 3, 4, 2, 3, 5, 4]], np.int32)
    places = np.asarray(jax.jit(lambda p, t: memory_of(method, p).places(t))(params, put(tokens)))
    np.testing.assert_array_equal(places[0, 3], places[0, 7])
    np.testing.assert_array_equal(places[0, 3], places[1, 3])
    pairs, triples = places[..., :4], places[..., 4:]
    np.testing.assert_array_equal(pairs[0, 2], pairs[0, 6])
    assert (triples[0, 2] != triples[0, 6]).all()  # 1 2 3 and 9 2 3
    assert (pairs[0, 2] != pairs[0, 3]).all()
    assert len(set(places[0, 3].tolist())) == places.shape[-1]
    assert ((places >> 16) == np.arange(8)).all()
    apart = np.asarray(
        jax.jit(lambda p, t, b: memory_of(method, p).places(t, b))(
            params, put(tokens[:, 2:]), put(tokens[:, :2])
        )
    )
    np.testing.assert_array_equal(apart, places[:, 2:])
    # The same in every version, or a trained memory's rows would not be found again. Worked out in Python:
    factors = np.random.default_rng(0).integers(1 << 31, 1 << 32, (4, 3)) | 1
    for row, (n, head) in enumerate(itertools.product((2, 3), range(4))):
        mixed = n
        for back in range(n):
            mixed = (mixed ^ int(tokens[0, 4 - back])) * int(factors[head, back]) % (1 << 32)
            mixed ^= mixed >> 15
        assert places[0, 4, row] == mixed % (1 << 16) + (row << 16)


def test_it_has_the_parameters_that_retro_adds(tiny):
    counts = {}
    for method in (NGramMemory(tiny), Retro(tiny, 2)):
        shapes = method.shapes(VOCAB)
        counts[method.name] = functional.count({n: shapes[n] for n in method.added(VOCAB)})
    assert abs(counts["ngram_memory"] / counts["retro"] - 1) < 0.2  # the tables are small here


def test_on_eight_devices_it_is_the_same(tiny):
    method, found = NGramMemory(tiny), []
    params = drawn(method.model, method.shapes(VOCAB))
    tokens = np.random.default_rng(0).integers(1, VOCAB, (4, LENGTH)).astype(np.int32)
    for shape in ((1, 1, 1), (2, 2, 2)):
        with jax.set_mesh(make_mesh(*shape)):
            given = method.init(VOCAB, 0)
            given = {n: jax.device_put(params[n], x.sharding) for n, x in given.items()}
            found.append(np.asarray(jax.jit(method.logprobs)(given, put(tokens))))
    np.testing.assert_allclose(*found, atol=1e-5)


def test_it_is_added_before_the_first_layer_that_retrieval_would_have(tiny, mesh):
    """That layer is given what the layers before it made, and the memory; nothing else is changed."""
    method, first = NGramMemory(tiny), tiny.reading.cca_layers[0]
    params = drawn(method.model, method.shapes(VOCAB))
    tokens = put(np.random.default_rng(0).integers(1, VOCAB, (2, LENGTH)).astype(np.int32))

    def by_layers(p, tokens):
        net = functional.network(method.model, p)
        h, number = net.embed(net.embedding[...], tokens), 0
        for stack in net.stacks:
            for time in range(jax.tree.leaves(stack)[0].shape[0]):
                for layer in jax.tree.map(lambda w: w[time], stack):  # noqa: B023
                    number += 1
                    h = h + net.memory(tokens, h) if number == first else h
                    h = layer(h, tokens != 0, None, False)[0]
        return net.norm(h)

    whole = jax.jit(lambda p, t: functional.network(method.model, p)(t)[0])(params, tokens)
    np.testing.assert_allclose(whole, jax.jit(by_layers)(params, tokens), atol=1e-4)
