"""Decoding token by token from caches gives what one forward pass over the whole sequence gives."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import weights

from retro_jax.model import decode, functional

VOCAB, LENGTH = 50, 23  # five chunks of 4 and a part of a sixth

OTHERS = {
    "rotary, grouped heads, biases": {
        "positions": "rotary", "rotary_share": 0.5, "kv_heads": 2, "qkv_bias": True, "out_bias": True,
        "norm": "layer", "norm_bias": True, "gated": True, "parallel": True,
    },
    "learned positions": {"positions": "learned", "max_length": 30},
    "one CCA layer, shared embedding": {
        "cca_layers": (1,), "encoder_d": 16, "encoder_heads": 4, "encoder_head_size": 4,
        "share_embedding": True,
    },
}  # fmt: skip


def examples(config, rows: int, k: int = 2):
    """Tokens [B, LENGTH] and neighbours [B, C, K, R], some of them short, some missing."""
    rng = np.random.default_rng(0)
    chunks = -(-LENGTH // config.chunk)
    near = rng.integers(1, VOCAB, (rows, chunks, k, config.retrieved)).astype(np.int32)
    near[:, :, -1, config.retrieved // 2 :] = 0
    near[rows - 1, 1] = 0
    near[0, 2, 0] = 0
    return rng.integers(1, VOCAB, (rows, LENGTH)).astype(np.int32), near


def decoded(config, params, tokens, near, prompts):
    """Logits [B, LENGTH, V] of decoding rows whose prompts have these lengths; NaN before them.

    A row that is through reads its last token again and again, which must not disturb the others.
    """
    rows, m, k = len(tokens), config.chunk, near.shape[2]
    net = decode.decoder(config, params)
    longest = max(prompts)
    padded = np.where(np.arange(longest) < np.array(prompts)[:, None], tokens[:, :longest], 0)
    given = near[:, : -(-longest // m)].copy()
    for row, length in enumerate(prompts):
        given[row, length // m :] = 0
    put = lambda x: jax.device_put(x, jax.P(("replica", "data")))  # noqa: E731
    cache = decode.start(net, rows, LENGTH + 1, k)
    logits, cache = jax.jit(decode.prefill)(
        net, cache, put(padded), put(np.array(prompts)), put(given)
    )
    step, out = jax.jit(decode.step), np.full((rows, LENGTH, VOCAB), np.nan, np.float32)
    at = np.array(prompts) - 1
    while True:
        for row, t in enumerate(at):
            out[row, t] = logits[row]
        if (at == LENGTH - 1).all():
            return out
        at = np.minimum(at + 1, LENGTH - 1)
        cache = cache._replace(count=put(at))
        ends = [row for row, t in enumerate(at) if (t + 1) % m == 0]
        fresh = None
        if ends and k:
            ends += ends[:1] * (rows - len(ends))
            fresh = decode.Fresh(put(np.array(ends)), put(near[ends, at[ends] // m]))
        logits, cache = step(net, cache, put(tokens[np.arange(rows), at]), fresh)


def whole(config, params, tokens, near):
    return np.asarray(functional.apply(config, params, jnp.asarray(tokens), jnp.asarray(near)))


def same(got, expected, prompts):
    for row, length in enumerate(prompts):
        np.testing.assert_allclose(
            got[row, length - 1 :], expected[row, length - 1 :], rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("name", ["RETRO", *OTHERS])
def test_every_prompt_length_continues_as_the_whole_pass(mesh, tiny, name):
    config = dataclasses.replace(tiny, **OTHERS.get(name, {}))
    params = weights(config, VOCAB)
    tokens, near = examples(config, 1)
    expected = whole(config, params, tokens, near)
    for prompt in range(1, 14) if name == "RETRO" else (1, 4, 7):
        same(decoded(config, params, tokens, near, [prompt]), expected, [prompt])


def test_rows_of_any_lengths_in_one_batch_are_each_as_alone(mesh, tiny):
    params = weights(tiny, VOCAB)
    tokens, near = examples(tiny, 5)
    prompts = [1, 4, 11, 8, 6]
    same(decoded(tiny, params, tokens, near, prompts), whole(tiny, params, tokens, near), prompts)


def test_without_neighbours_it_is_the_language_model(mesh, tiny):
    """With k = 0, and with k = 2 where none were found."""
    params = weights(tiny, VOCAB)
    tokens, near = examples(tiny, 2)
    expected = np.asarray(functional.apply(tiny, params, jnp.asarray(tokens)))
    for given in (near[:, :, :0], np.zeros_like(near)):
        same(decoded(tiny, params, tokens, given, [3, 6]), expected, [3, 6])


def test_in_bfloat16_it_is_the_whole_pass_but_for_its_noise(mesh, tiny):
    """What the whole pass keeps in float32 stays so: a weight rounded once more would be another model."""
    config = dataclasses.replace(tiny, dtype="bfloat16")
    params = weights(config, VOCAB)
    net = decode.decoder(config, params)
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
    config = dataclasses.replace(tiny, positions="learned", max_length=LENGTH)
    params = weights(config, VOCAB)
    tokens, near = examples(config, 1)
    net = decode.decoder(config, params)
    put = lambda x: jax.device_put(x, jax.P(("replica", "data")))  # noqa: E731
    padded = np.pad(tokens, ((0, 0), (0, 1)))
    given = near.copy()
    given[:, LENGTH // config.chunk :] = 0
    cache = decode.start(net, 1, LENGTH + 1, 2)
    logits, _ = decode.prefill(net, cache, put(padded), put(np.array([LENGTH])), put(given))
    np.testing.assert_allclose(
        logits[0], whole(config, params, tokens, near)[0, -1], rtol=1e-5, atol=1e-5
    )
