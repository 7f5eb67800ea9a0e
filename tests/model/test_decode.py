"""Decoding token by token from caches gives what one forward pass over the whole sequence gives."""

import dataclasses
import gc

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from conftest import altered, make_mesh, reading_step, weights

from retro_jax.model import decode, functional
from retro_jax.model.cache import Fresh, place
from retro_jax.model.decoder import decoder as network_of
from retro_jax.model.decoder import params_of
from retro_jax.model.layers import ROWS
from retro_jax.train.sharding import one_device

prefill, step = jax.jit(decode.prefill), reading_step(decode.step, decode.read)
decoder = jax.jit(network_of, static_argnums=0)
apply = jax.jit(functional.apply, static_argnums=0)
start = jax.jit(decode.start, static_argnums=(1, 2, 3))
VOCAB, LENGTH = 50, 23  # five chunks of 4 and a part of a sixth

OTHERS = {
    "rotary, grouped heads, biases": {
        "decoder": {
            "positions": "rotary", "rotary_share": 0.5, "kv_heads": 2, "qkv_bias": True, "out_bias": True,
            "norm": "layer", "norm_bias": True, "gated": True, "parallel": True,
        },
    },
    "learned positions": {"decoder": {"positions": "learned", "max_length": 30}},
    "norms of heads, InstructRetro's reading": {
        "decoder": {
            "positions": "rotary", "rotary_scaling": (4.0,), "qk_norm": True, "readout_bias": True,
        },
        "encoder": {"final_norm": False},
        "reading": {"positions": "none", "normed_chunk": True},
    },
    "one layer, shared embedding, null keys": {
        "decoder": {"layers": 1},
        "encoder": {"d": 16, "heads": 4, "head_size": 4, "share_embedding": True},
        "reading": {"cca_layers": (1,), "null_key": True},
    },
}  # fmt: skip


def examples(config, rows: int, k: int = 2):
    """Tokens [B, LENGTH] and neighbours [B, C, K, R], some of them short, some missing."""
    rng = np.random.default_rng(0)
    chunks = -(-LENGTH // config.reading.chunk)
    near = rng.integers(1, VOCAB, (rows, chunks, k, config.reading.retrieved)).astype(np.int32)
    near[:, :, -1, config.reading.retrieved // 2 :] = 0
    near[rows - 1, 1] = 0
    near[0, 2, 0] = 0
    return rng.integers(1, VOCAB, (rows, LENGTH)).astype(np.int32), near


def test_layers_lie_apart_and_are_stacked_again(tiny):
    """Who decodes need not keep the stacks, which a pass over whole texts takes."""
    config = altered(tiny, decoder={"layers": 5}, reading={"cca_layers": (2, 4)})
    params, mesh = functional.init(config, VOCAB, 0), one_device()
    with jax.set_mesh(mesh):
        given = dict(params)
        net = network_of(config, given)
        assert (len(given), len(net.blocks)) == (0, 5)
        again = jax.jit(params_of)(net)
        assert again.keys() == params.keys()
        for name, value in params.items():
            np.testing.assert_array_equal(again[name], value)
            assert jax.typeof(again[name]).sharding.spec == jax.typeof(value).sharding.spec
        gc.disable()  # the stacks do not wait for it
        try:
            given = functional.init(config, VOCAB, 0)
            held = sum(x.nbytes for x in jax.live_arrays())
            other = network_of(config, given)
            assert sum(x.nbytes for x in jax.live_arrays()) == held
            assert len(other.blocks) == 5
        finally:
            gc.enable()


def decoded(config, params, tokens, near, prompts):
    """Logits [B, L, V] of decoding rows whose prompts have these lengths; NaN before them.

    A row that is through reads its last token again and again, which must not disturb the others.
    """
    (rows, length), m, k = tokens.shape, config.reading.chunk, near.shape[2]
    net = decoder(config, params)
    longest = max(16, *prompts)  # one shape for all short ones, which is compiled once
    padded = np.where(np.arange(longest) < np.array(prompts)[:, None], tokens[:, :longest], 0)
    given = near[:, : -(-longest // m)].copy()
    for row, prompt in enumerate(prompts):
        given[row, prompt // m :] = 0

    def put(x):
        return jax.device_put(x, jax.P(("replica", "data")))

    cache = start(net, rows, length + 1, k)
    logits, cache = prefill(net, cache, put(padded), put(np.array(prompts)), put(given))
    out = np.full((rows, length, VOCAB), np.nan, np.float32)
    at = np.array(prompts) - 1
    while True:
        out[np.arange(rows), at] = np.asarray(logits)
        if (at == length - 1).all():
            return out
        at = np.minimum(at + 1, length - 1)
        cache = cache._replace(count=put(at))
        ends = [row for row, t in enumerate(at) if (t + 1) % m == 0]
        fresh = None
        if ends and k:
            ends += ends[:1] * (rows - len(ends))  # one shape, which is compiled once
            fresh = Fresh(put(np.array(ends)), put(near[ends, at[ends] // m]))
        logits, cache = step(net, cache, put(tokens[np.arange(rows), at]), fresh)


def whole(config, params, tokens, near):
    return np.asarray(apply(config, params, jnp.asarray(tokens), jnp.asarray(near)))


def same(got, expected, prompts):
    for row, length in enumerate(prompts):
        np.testing.assert_allclose(
            got[row, length - 1 :], expected[row, length - 1 :], rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("name", ["RETRO", *OTHERS])
def test_every_prompt_length_continues_as_the_whole_pass(mesh, tiny, name):
    config = altered(tiny, **OTHERS.get(name, {}))
    params = weights(config, VOCAB)
    if name == "RETRO":
        tokens, near = examples(config, 1)
        expected = whole(config, params, tokens, near)
        for prompt in range(1, 14):
            same(decoded(config, params, tokens, near, [prompt]), expected, [prompt])
        return
    # Two rows, which read the part of their places that they have begun: an eighth at first.
    tokens, near = examples(config, 2)
    expected = whole(config, params, tokens, near)
    for prompts in ([1, 2], [4, 7]):
        same(decoded(config, params, tokens, near, prompts), expected, prompts)


def test_chunks_of_64_continue_as_the_whole_pass_over_three_boundaries(mesh, tiny):
    """The paper's chunks of 64: prompts that end around the first two of their ends, decoded to place 325."""
    config = altered(
        tiny, decoder={"layers": 2}, reading={"cca_layers": (2,), "chunk": 64, "retrieved": 128}
    )
    params, rng = weights(config, VOCAB), np.random.default_rng(0)
    tokens = rng.integers(1, VOCAB, (1, 325)).astype(np.int32)
    near = rng.integers(1, VOCAB, (1, 6, 2, 128)).astype(np.int32)
    near[0, 1, 1, 64:] = 0
    expected = whole(config, params, tokens, near)
    prompts = [1, 2, 31, 62, 63, 64, 65, 66, 100, 126, 127, 128, 129, 130]
    rows = (np.repeat(x, len(prompts), axis=0) for x in (tokens, near))
    got = decoded(config, params, *rows, prompts)
    same(got, np.broadcast_to(expected, got.shape), prompts)


def read_at(config, params, tokens, near, points, prompt, padding=0):
    """Logits [L, V] from place `prompt` - 1 on of decoding one row that reads anew before each of
    `points`; the first of them that are in the prompt are its chunks' ends."""
    net, put = (
        decoder(config, params),
        lambda x: jax.device_put(x, jax.P(("replica", "data"))),
    )
    padded = np.concatenate([np.zeros(padding, np.int32), tokens[:prompt]])
    size = -(-len(padded) // config.reading.chunk)
    given = np.zeros((1, size, *near.shape[1:]), np.int32)
    inside = sum(p <= prompt for p in points)
    given[0, :inside] = near[:inside]
    full = np.pad(padded, (0, size * config.reading.chunk - len(padded)))[None]
    cache = start(net, 1, padding + len(tokens) + config.reading.chunk, near.shape[1])
    logits, cache = prefill(net, cache, put(full), put(np.array([len(padded)])), put(given))
    out = [np.asarray(logits)[0]]
    for t in range(prompt, len(tokens)):
        fresh = None
        if t + 1 in points:
            fresh = Fresh(put(np.array([0])), put(near[points.index(t + 1)][None]))
        logits, cache = step(net, cache, put(tokens[t : t + 1]), fresh)
        out.append(np.asarray(logits)[0])
    return np.stack(out)


@pytest.mark.parametrize(
    ("points", "prompt", "padding"),
    [
        ([4, 8, 10, 12, 13, 16, 20], 9, 0),  # more often than a chunk ends
        ([2, 5, 8, 11, 14, 17], 1, 0),  # before there is a whole chunk
        ([3, 7, 11, 15], 7, 1),  # chunks that end where the prompt ends
        ([2, 6, 7, 8, 9, 12, 16], 6, 2),  # and from there on after every token, for a while
    ],
)
def test_reading_at_other_places_equals_the_paper_in_loops(mesh, tiny, points, prompt, padding):
    """What retrieves is the last M tokens, as far as there are so many; padding before the first token
    moves the chunks and nothing else."""
    params, rng = weights(tiny, VOCAB), np.random.default_rng(1)
    tokens = rng.integers(1, VOCAB, 18).astype(np.int32)
    near = rng.integers(1, VOCAB, (len(points), 2, tiny.reading.retrieved)).astype(np.int32)
    near[1, 1] = 0
    expected = oracle.logits(oracle.unstacked(tiny, params), tiny, tokens, near, points)[
        prompt - 1 :
    ]
    got = read_at(tiny, params, tokens, near, points, prompt, padding)
    np.testing.assert_allclose(got, expected, rtol=2e-4, atol=2e-4)


def test_a_row_that_pauses_or_is_copied_goes_on_as_if_nothing_had_been(mesh, tiny):
    params = weights(tiny, VOCAB)
    tokens, near = examples(tiny, 2)
    expected = whole(tiny, params, tokens, near)
    net, put = decoder(tiny, params), lambda x: jax.device_put(x, jax.P(("replica", "data")))
    cache = start(net, 2, LENGTH + 1, 2)
    given = near[:, :1] * 0
    _, cache = prefill(net, cache, put(tokens[:, :3]), put(np.array([3, 3])), put(given))
    for t in (3, 4, 5):  # row 0 stays before its chunk's last token
        fresh = Fresh(put(np.array([1])), put(near[1:, 0])) if t == 3 else None
        read = np.array([tokens[0, 3], tokens[1, t]])
        logits, cache = step(net, cache, put(read), fresh, put(np.array([False, True])))
        np.testing.assert_allclose(np.asarray(logits)[1], expected[1, t], rtol=1e-5, atol=1e-5)
    cache = jax.jit(place)(cache, np.array([1]), cache, np.array([0]))  # row 1 becomes row 0
    for t in range(3, 12):
        fresh = None
        if (t + 1) % 4 == 0:
            fresh = Fresh(put(np.array([0, 1])), put(near[[0, 0], t // 4]))
        logits, cache = step(net, cache, put(tokens[[0, 0], t]), fresh)
        for row in np.asarray(logits):
            np.testing.assert_allclose(row, expected[0, t], rtol=1e-5, atol=1e-5)


def test_rows_of_any_lengths_in_one_batch_are_each_as_alone(mesh, tiny):
    params = weights(tiny, VOCAB)
    tokens, near = examples(tiny, 5)
    prompts = [1, 4, 11, 8, 6]
    same(decoded(tiny, params, tokens, near, prompts), whole(tiny, params, tokens, near), prompts)


def test_without_neighbours_it_is_the_language_model(mesh, tiny):
    """With k = 0, and with k = 2 where none were found."""
    params = weights(tiny, VOCAB)
    tokens, near = examples(tiny, 2)
    expected = np.asarray(apply(tiny, params, jnp.asarray(tokens)))
    for given in (near[:, :, :0], np.zeros_like(near)):
        same(decoded(tiny, params, tokens, given, [3, 6]), expected, [3, 6])


def test_in_bfloat16_it_is_the_whole_pass_but_for_its_noise(mesh, tiny):
    """What the whole pass keeps in float32 stays so: a weight rounded once more would be another model."""
    config = dataclasses.replace(tiny, dtype="bfloat16")
    params = weights(config, VOCAB)
    net = decoder(config, params)
    kinds = {}
    for block in net.blocks:
        kinds |= {"norm": block.norm.scale[...].dtype, "W_q": block.attention.query[...].dtype}
        kinds["W_r"] = block.attention.position[...].dtype
    assert kinds == {"norm": jnp.float32, "W_r": jnp.float32, "W_q": jnp.bfloat16}
    tokens, near = examples(config, 2)
    expected, exact = (whole(c, params, tokens, near) for c in (config, tiny))
    got = decoded(config, params, tokens, near, [6, 9])
    for row, prompt in enumerate((6, 9)):
        noise = np.abs(expected - exact)[row, prompt - 1 :].mean()
        assert np.abs(got - expected)[row, prompt - 1 :].mean() < 2 * noise


def test_a_prompt_that_is_padded_past_the_last_position_is_read(mesh, tiny):
    config = altered(tiny, decoder={"positions": "learned", "max_length": LENGTH})
    params = weights(config, VOCAB)
    tokens, near = examples(config, 1)
    net = decoder(config, params)

    def put(x):
        return jax.device_put(x, jax.P(("replica", "data")))

    padded = np.pad(tokens, ((0, 0), (0, 1)))
    given = near.copy()
    given[:, LENGTH // config.reading.chunk :] = 0
    cache = start(net, 1, LENGTH + 1, 2)
    logits, _ = prefill(net, cache, put(padded), put(np.array([LENGTH])), put(given))
    np.testing.assert_allclose(
        logits[0], whole(config, params, tokens, near)[0, -1], rtol=1e-5, atol=1e-5
    )


def test_a_step_gives_back_a_cache_of_the_types_that_it_was_given(tiny):
    """Shapes, dtypes and how they lie on eight devices: or every first step would be compiled twice."""
    with jax.set_mesh(make_mesh(2, 2, 2)):
        found = []

        def types():
            net = network_of(tiny, functional.init(tiny, VOCAB, 0))
            before = decode.start(net, 4, LENGTH, 2)
            tokens = jnp.zeros(4, jnp.int32, out_sharding=ROWS)
            after = decode.step(net, before, tokens)[1]
            found.extend([jax.typeof(x) for x in jax.tree.leaves(c)] for c in (before, after))

        jax.eval_shape(types)
    before, after = found
    assert before == after
