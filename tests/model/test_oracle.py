"""The network equals the paper written as plain loops (`oracle.py`), layer stacks, scans and all."""

import jax
import numpy as np
import oracle
import pytest
from conftest import altered, weights

from retro_jax.model import functional
from retro_jax.model.retro import PAD, layer_names

VOCAB = 30


@pytest.fixture(scope="module")
def config(tiny):
    """Every kind of run: plain x 2, the first cross, (plain, cross) x 2, cross, plain."""
    return altered(tiny, decoder={"layers": 9}, reading={"cca_layers": (3, 5, 7, 8)})


@pytest.mark.parametrize(("length", "k"), [(3, 2), (8, 1), (11, 2), (13, 5), (6, 0)])
def test_logits_equal_the_paper_in_loops(mesh, config, length, k):
    params = weights(config, VOCAB)
    rng = np.random.default_rng(length)
    tokens = rng.integers(1, VOCAB, (2, length)).astype(np.int32)
    tokens[1, length // 2] = PAD
    neighbours = rng.integers(1, VOCAB, (2, -(-length // 4), k, 8)).astype(np.int32)
    ends = rng.integers(1, 9, neighbours.shape[:3])  # ragged: neighbours at a document's end
    neighbours[np.arange(8) >= ends[..., None]] = PAD
    if k:
        neighbours[0, 0] = PAD  # nothing was retrieved
        neighbours[1, -1, 0] = PAD  # one neighbour is missing
    got = jax.jit(functional.apply, static_argnums=0)(config, params, tokens, neighbours)
    by_layer = oracle.unstacked(config, params)
    for b in range(2):
        expected = oracle.logits(by_layer, config, tokens[b], neighbours[b])
        real = tokens[b] != PAD  # what stands at a padding token's own place is nobody's
        np.testing.assert_allclose(got[b][real], expected[real], rtol=2e-4, atol=2e-4)


def test_blocks_windows_a_shared_embedding_and_a_null_key_equal_the_paper_too(mesh, tiny):
    """Chunks of 16, so that distances go by windows, and self-attention by blocks of 8."""
    config = altered(
        tiny,
        decoder={"layers": 2, "d": 24},
        encoder={"layers": 1, "share_embedding": True},
        reading={"cca_layers": (2,), "chunk": 16, "retrieved": 32, "null_key": True},
        attention_block=8,
    )
    params, rng = weights(config, VOCAB), np.random.default_rng(0)
    tokens = rng.integers(1, VOCAB, (1, 37)).astype(np.int32)
    neighbours = rng.integers(1, VOCAB, (1, 3, 1, 32)).astype(np.int32)
    neighbours[0, 1, 0, 20:] = PAD
    got = jax.jit(functional.apply, static_argnums=0)(config, params, tokens, neighbours)
    expected = oracle.logits(oracle.unstacked(config, params), config, tokens[0], neighbours[0])
    np.testing.assert_allclose(got[0], expected, rtol=2e-4, atol=2e-4)


def test_layer_names_find_every_layer_once(config):
    names = layer_names(config)
    assert len(names) == len(set(names)) == config.decoder.layers
    shapes = functional.shapes(config, VOCAB)
    crossing = [
        number
        for number, (prefix, _) in enumerate(names, 1)
        if f"{prefix}.cca.attention.query" in shapes
    ]
    assert tuple(crossing) == config.reading.cca_layers
    for prefix, index in names:
        assert index < shapes[f"{prefix}.attention.query"][0]
