"""What the network promises: causality, the chunk grid, neighbours as a set, OFF."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import altered, weights

from retro_jax.model import functional
from retro_jax.model.cross import (
    chunked_cross_attention,
    cross_attention_once,
    full_cross_attention,
)
from retro_jax.model.layers import ROWS
from retro_jax.model.retro import PAD, layer_names

VOCAB = 40
M, K, R = 4, 2, 8
# One compilation is far faster than one for every operation.
apply = jax.jit(functional.apply, static_argnums=0)
token_logprobs = jax.jit(functional.token_logprobs, static_argnums=0)


@pytest.fixture
def f(mesh, tiny):
    """tokens [B, L], neighbours [B, C, K, R] | None -> logits, of one fixed random model."""
    params = weights(tiny, VOCAB)
    run = jax.jit(lambda x, n: apply(tiny, params, x, n))
    return lambda x, n: np.asarray(run(x, n))


def example(length, seed=0, k=K, batch=2):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(4, VOCAB, (batch, length)).astype(np.int32)
    neighbours = rng.integers(4, VOCAB, (batch, -(-length // M), k, R)).astype(np.int32)
    return tokens, neighbours


def first_difference(a, b):
    """First position at which two logits [B, L, V] differ at all, or None."""
    different = np.flatnonzero((a != b).any(axis=(0, 2)))
    return different[0] if len(different) else None


def test_changing_a_token_changes_no_earlier_logit(f):
    tokens, neighbours = example(14)
    before = f(tokens, neighbours)
    for t in range(14):
        changed = tokens.copy()
        changed[:, t] = (changed[:, t] + 1 - 4) % (VOCAB - 4) + 4
        assert first_difference(before, f(changed, neighbours)) == t


def test_neighbours_of_a_chunk_act_from_its_last_token_on(f):
    tokens, neighbours = example(16)
    before = f(tokens, neighbours)
    for u in range(4):
        changed = neighbours.copy()
        changed[:, u] = example(16, seed=9)[1][:, u]
        assert first_difference(before, f(tokens, changed)) == u * M + M - 1


def test_neighbours_are_a_set(f):
    tokens, neighbours = example(12, k=3)
    permuted = neighbours[:, :, [2, 0, 1]]
    np.testing.assert_allclose(f(tokens, neighbours), f(tokens, permuted), atol=1e-5)
    one = neighbours[:, :, :1]
    np.testing.assert_allclose(f(tokens, one), f(tokens, np.repeat(one, 5, axis=2)), atol=1e-5)


def test_no_neighbours_is_off(f):
    tokens, neighbours = example(12)
    off = f(tokens, None)
    np.testing.assert_array_equal(off, f(tokens, neighbours[:, :, :0]))
    np.testing.assert_allclose(off, f(tokens, np.full_like(neighbours, PAD)), atol=1e-6)
    # one chunk without any: as if every position that reads it were off
    without = neighbours.copy()
    without[:, 0] = PAD
    got = f(tokens, without)
    np.testing.assert_allclose(got[:, : 2 * M - 1], off[:, : 2 * M - 1], atol=1e-6)
    assert first_difference(got, off) is not None


def test_one_set_of_weights_reads_any_number_of_neighbours(f):
    """Also a number that it was not trained with (trap 31)."""
    tokens, neighbours = example(12, k=10)
    read = [f(tokens, neighbours[:, :, :k]) for k in (0, 1, 2, 10)]
    np.testing.assert_array_equal(read[0], f(tokens, None))
    for fewer, more in itertools.pairwise(read):
        assert first_difference(fewer, more) == M - 1


def test_cross_attention_adds_nothing_where_nothing_can_be_read(mesh, tiny):
    """Exactly nothing, biases or not: before the end of the first chunk, and where a chunk retrieved
    nothing (trap 10)."""
    config = altered(
        tiny, decoder={"norm": "layer", "norm_bias": True, "qkv_bias": True, "out_bias": True}
    )
    network = functional.network(config, weights(config, VOCAB))
    cross = jax.tree.map(lambda w: w[0], network.stacks[1])[0].cca
    rng = np.random.default_rng(0)
    h = jnp.asarray(rng.normal(size=(2, 12, 16)), jnp.float32)
    memory = jnp.asarray(rng.normal(size=(2, 3, K, R, 24)), jnp.float32)
    mask = np.ones((2, 3, K, R), bool)
    mask[1, 1] = False
    h, memory, mask_ = (jax.device_put(x, ROWS) for x in (h, memory, mask))
    y = np.asarray(chunked_cross_attention(cross, h, memory, mask_, M)[0])
    reads = np.ones((2, 12), bool)
    reads[:, : M - 1] = reads[1, 2 * M - 1 : 3 * M - 1] = False
    np.testing.assert_array_equal((y != 0).any(-1), reads)


def test_a_missing_neighbour_is_as_if_fewer_were_asked_for(f):
    tokens, neighbours = example(12)
    missing = neighbours.copy()
    missing[:, :, 1] = PAD
    np.testing.assert_allclose(f(tokens, missing), f(tokens, neighbours[:, :, :1]), atol=1e-5)


def test_gradients_are_finite_where_nothing_was_retrieved(mesh, tiny):
    tokens, neighbours = example(12)
    neighbours[:, 1] = PAD
    small = altered(
        tiny, decoder={"layers": 2}, encoder={"layers": 1}, reading={"cca_layers": (2,)}
    )
    for dtype in ("float32", "bfloat16"):
        config = dataclasses.replace(small, dtype=dtype)
        params = weights(config, VOCAB)

        def total(p):
            return functional.token_logprobs(config, p, tokens, neighbours).sum()  # noqa: B023

        grads = jax.jit(jax.grad(total))(params)
        assert all(np.isfinite(g).all() for g in grads.values())


def test_every_prefix_is_predicted_as_in_the_full_sequence(f):
    """Any length, also one that is no multiple of the chunk (traps 19, 20)."""
    tokens, neighbours = example(2 * M + 3)
    full = f(tokens, neighbours)
    for length in (1, M - 1, M, M + 1, 2 * M, 2 * M + 2):
        chunks = -(-length // M)
        got = f(tokens[:, :length], neighbours[:, :chunks])
        np.testing.assert_allclose(got, full[:, :length], atol=2e-5)


def test_what_an_incomplete_chunk_retrieves_is_not_read(f):
    tokens, neighbours = example(M + 2)
    changed = neighbours.copy()
    changed[:, 1] = example(8, seed=5)[1][:, 1]
    np.testing.assert_array_equal(f(tokens, neighbours), f(tokens, changed))


def test_padding_is_attended_nowhere(mesh, tiny):
    """The padding id's embedding reaches no position that holds a token."""
    params = weights(tiny, VOCAB)
    tokens, neighbours = example(12)
    tokens[:, 6:8] = PAD  # the tail of a document's last chunk; another document follows
    neighbours[:, 0, 0, 5:] = PAD
    neighbours[:, 1, 1] = PAD
    other = dict(params)
    for name in ("embedding", "encoder.embedding"):
        is_pad = jnp.arange(VOCAB)[:, None] == PAD
        other[name] = jnp.where(is_pad, 3.0, params[name])
    before, after = (np.array(apply(tiny, p, tokens, neighbours)) for p in (params, other))
    real = np.delete(np.arange(12), [6, 7])
    # the readout is tied: the logit of PAD itself may change
    np.testing.assert_array_equal(before[:, real, 1:], after[:, real, 1:])
    assert np.isfinite(after).all()


def test_rows_of_a_batch_are_independent(f):
    tokens, neighbours = example(13, batch=3)
    together = f(tokens, neighbours)
    for b in range(3):
        alone = f(tokens[b : b + 1], neighbours[b : b + 1])
        np.testing.assert_allclose(alone[0], together[b], atol=2e-5)


def test_encoder_reads_the_chunk_that_retrieved_and_no_other(mesh, tiny):
    encoder = functional.network(tiny, weights(tiny, VOCAB)).encoder
    rng = np.random.default_rng(0)
    batch = jax.NamedSharding(mesh, ROWS)
    e = jax.device_put(rng.normal(size=(1, 3, K, R, 24)).astype(np.float32), batch)
    h = jax.device_put(rng.normal(size=(1, 3, M, 16)).astype(np.float32), batch)
    ok = jnp.ones((1, 3, K, R), bool), jnp.ones((1, 3, M), bool)
    for u in range(3):
        chosen = np.zeros(e.shape, np.float32)
        chosen[0, u] = rng.normal(size=(K, R, 24))

        def total(h, w):
            return (encoder(e, ok[0], h, ok[1]) * w).sum()

        grad = jax.jit(jax.grad(total))(h, chosen)
        touched = np.abs(np.asarray(grad)[0]).max(axis=-1) > 0
        assert touched[u].all()
        assert not np.delete(touched, u, axis=0).any()


def test_a_filled_chunk_is_read_as_if_zeros_stood_where_it_has_padding(mesh, tiny):
    params, rng = weights(tiny, VOCAB), np.random.default_rng(0)
    h = jnp.asarray(rng.normal(size=(2, 6, 16)), jnp.float32)
    real = jnp.asarray(np.arange(6) < np.array([[6], [3]]))
    _, neighbours = example(6)

    def memory(h, real, filled):
        net = functional.network(altered(tiny, reading={"filled_chunk": filled}), params)
        return net.encode(net.embedding[...], neighbours, h, real)[0]

    padded = jnp.pad(jnp.where(real[..., None], h, 0), ((0, 0), (0, 2), (0, 0)))
    expected = memory(padded, jnp.ones((2, 8), bool), False)
    np.testing.assert_allclose(memory(h, real, True), expected, atol=1e-5)
    assert np.abs(memory(h, real, False) - expected).max() > 1e-3


def test_encoder_is_conditioned_after_self_attention_of_the_first_cca_layer(mesh, tiny):
    """Replace a part of the network: E follows the attention of layer min(P), not its FFW; and it is
    computed once, for both CCA layers."""
    calls = []

    def encoded(change):
        """What the encoder gave, in a network whose parameter `change` is doubled."""
        params = weights(tiny, VOCAB)
        params = {n: 2 * p if n == change else p for n, p in params.items()}
        model = functional.network(tiny, params)
        encode, given = model.encode, []

        def spy(*args):
            given.append(encode(*args))
            return given[-1]

        model.encode = spy
        memory = jax.jit(lambda x, n: (model(x, n), given[0][0]))(*example(12))[1]
        calls.append(len(given))
        return np.asarray(memory)

    prefix, _ = layer_names(tiny)[tiny.reading.cca_layers[0] - 1]
    plain = encoded(None)
    assert np.abs(encoded(f"{prefix}.attention.out") - plain).max() > 1e-3
    for later in ("feed_forward.down", "cca.attention.out"):
        np.testing.assert_array_equal(encoded(f"{prefix}.{later}"), plain)
    assert set(calls) == {1}


def test_cca_layers_are_counted_from_one(tiny):
    names = functional.shapes(tiny, VOCAB)
    prefixes = [prefix for prefix, _ in layer_names(tiny)]
    with_cca = [i for i, p in enumerate(prefixes, 1) if f"{p}.cca.norm.scale" in names]
    assert with_cca == [2, 3]
    cross = {n.split(".")[2] for n in names if n.startswith("encoder.") and ".cross." in n}
    assert cross == {"0"}


def test_what_retrieval_adds_is_marked_and_the_rest_is_the_language_model(tiny):
    added = functional.added_by_retrieval(tiny, VOCAB)
    everything = functional.shapes(tiny, VOCAB)
    assert everything.keys() - added == functional.shapes(tiny, VOCAB, retrieval=False).keys()
    assert all(n.startswith("encoder.") or ".cca." in n for n in added)


def test_off_equals_the_language_model_with_the_same_weights(mesh, tiny):
    params = weights(tiny, VOCAB)
    added = functional.added_by_retrieval(tiny, VOCAB)
    base = {n: p for n, p in params.items() if n not in added}
    tokens, _ = example(11)
    np.testing.assert_array_equal(apply(tiny, params, tokens), apply(tiny, base, tokens))


def test_cross_attention_that_starts_as_the_identity_is_the_language_model(mesh, tiny):
    """With `cca_zero`, RETROfit's step 0 is the base model, whatever is retrieved (trap 27)."""
    tokens, neighbours = example(12)
    params = functional.init(altered(tiny, reading={"cca_zero": True}), VOCAB, seed=0)
    on, off = (apply(tiny, params, tokens, n) for n in (neighbours, None))
    np.testing.assert_array_equal(on, off)
    # The first gradient step is what ends it.
    out = "stacks.1.0.cca.attention.out"
    moved = apply(tiny, params | {out: params[out] + 0.1}, tokens, neighbours)
    assert first_difference(np.asarray(moved), np.asarray(off)) == M - 1


def test_neighbours_for_another_number_of_chunks_are_refused(f):
    tokens, neighbours = example(12)
    with pytest.raises(ValueError, match=r"must be .*\(2, 3, K, R\)"):
        f(tokens, neighbours[:, :2])


def test_bfloat16_stays_near_float32(mesh, tiny):
    tokens, neighbours = example(12)
    params = weights(tiny, VOCAB)
    low = dataclasses.replace(tiny, dtype="bfloat16")
    difference = apply(tiny, params, tokens, neighbours) - apply(low, params, tokens, neighbours)
    assert np.abs(difference).max() < 0.15


def test_one_memory_for_the_whole_sequence_is_read_by_the_same_cross_attention(mesh, tiny):
    """Unchunked: as if the sequence were one attending chunk, at distances of its own."""
    config = altered(tiny, decoder={"layers": 1}, reading={"cca_layers": (1,)})
    params = weights(config, VOCAB)
    cross = jax.tree.map(lambda w: w[0], functional.network(config, params).stacks[0])[0].cca
    rng = np.random.default_rng(0)
    h = jnp.asarray(rng.normal(size=(2, 7, 16)), jnp.float32)
    memory = jnp.asarray(rng.normal(size=(2, K, R, 24)), jnp.float32)
    mask = jnp.asarray(rng.random((2, K, R)) < 0.7)
    h, memory, mask = (jax.device_put(x, ROWS) for x in (h, memory, mask))
    full = jax.jit(full_cross_attention, static_argnames=("offset", "statistics"))
    once = jax.jit(cross_attention_once, static_argnums=(4, 5))
    got, mass = full(cross, h, memory, mask, offset=6, statistics=True)
    assert mass.shape == (2, 7, K, 2)
    # Chunks of 7: the attending rows 6 .. 12 of a sequence of 14 are the same 7 queries.
    shifted = jnp.pad(h, ((0, 0), (6, 1), (0, 0)))
    memories = jnp.stack([memory, jnp.zeros_like(memory)], axis=1)
    masks = jnp.stack([mask, jnp.zeros_like(mask)], axis=1)
    chunked = jax.jit(lambda *x: chunked_cross_attention(*x, 7)[0])(cross, shifted, memories, masks)
    np.testing.assert_allclose(got, chunked[:, 6:13], atol=1e-5)
    assert not np.any(chunked[:, :6])
    # The reader that looks up once: nothing before the end of the first chunk, all of it from there on.
    for m in (1, 3, 7):
        y, share = once(cross, h, memory[:, None], mask[:, None], m, True)
        whole = full(cross, h[:, m - 1 :], memory, mask, statistics=True)
        for had, wanted in zip((y, share), whole):
            assert not np.any(had[:, : m - 1])
            np.testing.assert_allclose(had[:, m - 1 :], wanted, atol=1e-5)
    assert full(cross, h, memory, mask)[1] is None
    y, share = once(cross, h[:, :2], memory[:, None], mask[:, None], 3)
    assert y.shape == (2, 2, 16) and not np.any(y) and share is None  # noqa: PT018
