"""The options that pre-trained decoders need, remat, precision and attention statistics."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import altered, weights

from retro_jax.config import Experiment, TrainConfig
from retro_jax.errors import UserError
from retro_jax.model import functional

VOCAB = 32
apply = jax.jit(functional.apply, static_argnums=0)
OPTIONS = {
    "llama": {"decoder": {
        "positions": "rotary", "kv_heads": 2, "gated": True, "activation": "silu", "tied": False,
        "norm_eps": 1e-5, "ffw": 24, "scale_embedding": False,
    }},
    "gpt2": {"decoder": {
        "positions": "learned", "max_length": 16, "norm": "layer", "norm_bias": True,
        "qkv_bias": True, "out_bias": True, "ffw_bias": True, "scale_embedding": False,
    }},
    "neox": {"decoder": {
        "positions": "rotary", "rotary_share": 0.25, "norm": "layer", "norm_bias": True,
        "qkv_bias": True, "out_bias": True, "ffw_bias": True, "parallel": True, "tied": False,
        "activation": "gelu_exact",
    }},
    "gemma": {"decoder": {
        "norm_unit_offset": True, "gated": True, "positions": "rotary", "kv_heads": 1,
    }, "reading": {"null_key": True}},
    "qwen3": {"decoder": {
        "positions": "rotary", "kv_heads": 2, "gated": True, "qk_norm": True, "readout_bias": True,
        "rotary_scaling": (8.0, 1.0, 4.0, 16.0),
    }},
    "instructretro": {
        "decoder": {"positions": "rotary", "norm": "layer", "norm_bias": True, "gated": True},
        "encoder": {"final_norm": False},
        "reading": {"positions": "none", "normed_chunk": True},
    },
}  # fmt: skip


def example(length=12, k=2):
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, VOCAB, (2, length)).astype(np.int32)
    return tokens, rng.integers(1, VOCAB, (2, -(-length // 4), k, 8)).astype(np.int32)


@pytest.fixture(scope="module")
def small(tiny):
    """What compiles fastest: a plain layer, a crossing one, one encoder layer."""
    return altered(tiny, decoder={"layers": 2}, encoder={"layers": 1}, reading={"cca_layers": (2,)})


@pytest.fixture(params=OPTIONS)
def config(request, small):
    return altered(small, **OPTIONS[request.param])


def test_every_kind_of_decoder_keeps_the_promises_of_the_papers(mesh, config):
    """Causal, reads neighbours from the last token of their chunk on, and OFF is the base model."""
    params = weights(config, VOCAB)
    tokens, neighbours = example()
    before = np.asarray(apply(config, params, tokens, neighbours))
    changed = tokens.copy()
    changed[:, 7] = changed[:, 7] % (VOCAB - 1) + 1
    after = np.asarray(apply(config, params, changed, neighbours))
    assert np.flatnonzero((before != after).any((0, 2)))[0] == 7
    changed = neighbours.copy()
    changed[:, 1] = changed[:, 0]
    after = np.asarray(apply(config, params, tokens, changed))
    assert np.flatnonzero((before != after).any((0, 2)))[0] == 7
    base = {
        n: p for n, p in params.items() if n not in functional.added_by_retrieval(config, VOCAB)
    }
    off, alone = apply(config, params, tokens, None), apply(config, base, tokens, None)
    np.testing.assert_array_equal(off, alone)
    assert np.abs(off - before)[:, 3:].max() > 1e-3


def test_every_option_has_a_parameter_or_changes_the_result(mesh, small):
    """An option that is read nowhere would pass every other test."""
    tokens, neighbours = example()
    base = altered(small, decoder={"positions": "rotary"})
    names = functional.shapes(base, VOCAB)
    reference = apply(base, weights(base, VOCAB), tokens, neighbours)
    for option, value in {
        "decoder.rotary_share": 0.5, "decoder.rotary_base": 100.0, "decoder.kv_heads": 2,
        "decoder.norm": "layer", "decoder.norm_bias": True, "decoder.norm_unit_offset": True,
        "decoder.norm_eps": 1e-2, "decoder.activation": "silu", "decoder.gated": True,
        "decoder.ffw": 24, "encoder.ffw": 24, "decoder.qkv_bias": True, "decoder.out_bias": True,
        "decoder.ffw_bias": True, "decoder.parallel": True, "decoder.tied": False,
        "decoder.scale_embedding": False, "decoder.qk_norm": True, "decoder.rotary_scaling": (4.0,),
        "decoder.readout_bias": True, "reading.positions": "none", "encoder.final_norm": False,
        "reading.normed_chunk": True,
    }.items():  # fmt: skip
        part, _, field = option.partition(".")
        config = altered(base, **{part: {field: value}})
        shapes = functional.shapes(config, VOCAB)
        if shapes == names:
            got = apply(config, weights(base, VOCAB), tokens, neighbours)
            assert np.abs(np.asarray(got - reference)).max() > 1e-4, option


def test_every_parameter_has_a_gradient(mesh, config):
    """One that is made and used nowhere would pass every other test."""
    tokens, neighbours = example()

    def total(p):
        return functional.token_logprobs(config, p, tokens, neighbours).sum()

    grads = jax.jit(jax.grad(total))(weights(config, VOCAB))
    assert [name for name, g in grads.items() if not np.asarray(g).any()] == []


def test_grouped_heads_equal_full_heads_with_repeated_keys(mesh, small):
    grouped = altered(small, decoder={"positions": "rotary", "kv_heads": 2})
    full = altered(grouped, decoder={"kv_heads": 0})
    params, shapes = weights(grouped, VOCAB), functional.shapes(full, VOCAB)
    repeated = {}
    for name, p in params.items():
        if p.shape != shapes[name]:
            of_keys = name.endswith((".key", ".value"))
            p = (
                np.repeat(np.asarray(p), 2, axis=2)
                if of_keys
                else np.asarray(p).reshape(shapes[name])
            )
        repeated[name] = jnp.asarray(p)
    tokens, neighbours = example()
    np.testing.assert_allclose(
        apply(grouped, params, tokens, neighbours),
        apply(full, repeated, tokens, neighbours),
        atol=1e-4,
    )


def test_remat_changes_memory_and_not_the_gradient(mesh, small):
    """Compared with `none`, and shown to have recomputed: fewer bytes are kept for the gradient."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, VOCAB, (16, 64)).astype(np.int32)
    neighbours = rng.integers(1, VOCAB, (16, 16, 1, 8)).astype(np.int32)
    base = altered(
        small,
        decoder={"layers": 10},
        reading={"cca_layers": tuple(range(1, 11))},
        attention_block=16,
    )
    params = weights(base, VOCAB)

    def gradient(remat):
        config = dataclasses.replace(base, remat=remat)

        def total(p):
            return functional.token_logprobs(config, p, tokens, neighbours).mean()

        compiled = jax.jit(jax.grad(total)).lower(params).compile()
        return compiled(params), compiled.memory_analysis().temp_size_in_bytes

    plain, most = gradient("none")
    for remat, share in (("dots", 0.9), ("full", 0.6)):
        again, kept = gradient(remat)
        for name in plain:
            np.testing.assert_allclose(again[name], plain[name], rtol=1e-3, atol=1e-5, err_msg=name)
        assert kept < share * most, (remat, kept / most)


def test_statistics_measure_each_cca_layer_and_cost_nothing_when_not_asked_for(mesh, tiny):
    params = weights(tiny, VOCAB)
    tokens, neighbours = example(11)
    neighbours[0, 0] = 0  # the first chunk retrieved nothing
    measure = jax.jit(functional.statistics, static_argnums=0)
    stats = measure(tiny, params, tokens, neighbours)
    ratio, mass = np.asarray(stats["ratio"]), np.asarray(stats["mass"])
    assert ratio.shape == (2, 2, 11)  # CCA layers, batch, tokens
    assert mass.shape == (2, 2, 11, 2, 2)  # ..., neighbours, N and F
    reads = np.ones((2, 11), bool)
    reads[:, :3], reads[0, 3:7] = False, False
    np.testing.assert_allclose(mass.sum((-2, -1)), np.broadcast_to(reads, ratio.shape), atol=1e-5)
    assert (ratio[:, reads] > 1e-3).all()
    assert not ratio[:, ~reads].any()
    # The ratio is that of the layer's own CCA: silence one, and only its ratio is 0.
    silent = {n: 0 * p if n == "stacks.1.0.cca.attention.out" else p for n, p in params.items()}
    ratio = np.asarray(measure(tiny, silent, tokens, neighbours)["ratio"])
    assert not ratio[0].any()
    assert ratio[1].any()
    flops = [
        f.lower(tiny, params, tokens, neighbours).cost_analysis()["flops"] for f in (apply, measure)
    ]
    assert flops[0] < flops[1]


@pytest.mark.parametrize(
    ("field", "value"),
    [("kv_heads", 3), ("rotary_share", 0.3), ("max_length", 10), ("norm", "batch"),
     ("activation", "swish"), ("positions", "alibi"), ("ffw", -1)],
)  # fmt: skip
def test_options_of_the_decoder_that_cannot_work_are_refused_by_field(tiny, field, value):
    given = {"rotary_share": {"positions": "rotary"}, "max_length": {"positions": "learned"}}
    fields = {field: value} | given.get(field, {})
    with pytest.raises(UserError, match=f"model.decoder.{field}"):
        Experiment(model=altered(tiny, decoder=fields), train=TrainConfig(length=2048))


@pytest.mark.parametrize(("field", "value"), [("remat", "some"), ("attention_block", 0)])
def test_options_of_the_computation_that_cannot_work_are_refused_by_field(tiny, field, value):
    with pytest.raises(UserError, match=f"model.{field}"):
        dataclasses.replace(tiny, **{field: value})
