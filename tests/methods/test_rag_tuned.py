"""A language model trained with neighbours in its prompt: what it learns from is what it will be asked."""

import jax
import numpy as np
import pytest
from conftest import drawn

from retro_jax.methods.method import METHODS, Retrieved
from retro_jax.methods.rag import Rag
from retro_jax.methods.rag_tuned import RagTuned

K, VOCAB = 2, 50


def put(x):
    return jax.device_put(np.asarray(x), jax.P(("replica", "data")))


def record(m: int, chunks: int, rng) -> dict:
    near = rng.integers(1, VOCAB, (chunks, K, 2 * m)).astype(np.uint16)
    near[:, 1, m:] = 0  # no continuation
    tokens = rng.integers(1, VOCAB, chunks * m).astype(np.uint16)
    return {"tokens": tokens, "neighbours": near}


@pytest.mark.parametrize("seed", range(3))
def test_an_example_is_a_row_as_rag_reads_it(tiny, mesh, seed):
    """log p of the chunk after the one that looked up is that of `rag`, whose window holds as much."""
    m, chunks, rng = tiny.reading.chunk, 4, np.random.default_rng(seed)
    settings = RagTuned.Settings(budget="longer")
    method = RagTuned(tiny, K, settings, m * chunks)
    example = method.example(given := record(m, chunks, rng), rng, 0.0)
    row, counts = example["tokens"], example["counts"]
    assert row.shape == counts.shape == (m * chunks + K * 2 * m,)
    first = int(np.argmax(counts))
    own = counts.sum() // m  # chunks that count: all after the one that looked up
    assert counts.sum() == own * m > 0
    np.testing.assert_array_equal(row[counts], given["tokens"][(chunks - own) * m :])
    params = drawn(tiny, METHODS["language_model"](tiny).shapes(VOCAB))
    found = jax.jit(lambda p, b: METHODS["language_model"](tiny).logprobs(p, b))(
        params, put(np.stack([row] * 2))
    )
    near = Retrieved(given["neighbours"][None].repeat(2, 0), np.zeros((2, chunks, K), np.float32))
    rag = Rag(tiny, K, settings, m * chunks)
    expected = jax.jit(rag.logprobs)(
        params, put(given["tokens"][None].repeat(2, 0)), jax.tree.map(put, near)
    )
    at = (chunks - own) * m
    np.testing.assert_allclose(
        np.asarray(found)[:, first : first + m], np.asarray(expected)[:, at : at + m], atol=1e-4
    )
    loss, count = jax.jit(method.loss)(
        params, {n: put(np.stack([x] * 2)) for n, x in example.items()}
    )
    assert count == 2 * counts.sum()
    np.testing.assert_allclose(loss, -np.asarray(found)[:, counts].sum(), rtol=1e-5)


def test_where_the_window_is_short_it_slides(tiny):
    """Neighbours take the place of text: the row has train.length tokens, wherever it is cut from."""
    m, chunks, rng = tiny.reading.chunk, 10, np.random.default_rng(0)
    method = RagTuned(tiny, K, None, m * chunks)
    for _ in range(20):
        example = method.example(given := record(m, chunks, rng), rng, 0.0)
        row, counts = example["tokens"], example["counts"]
        assert len(row) == m * chunks
        assert 0 < counts.sum() < m * (chunks - 2 * K)
        text = row[np.argmax(row == 0) - m : np.argmax(row == 0)] if (row == 0).any() else row[-m:]
        starts = given["tokens"].reshape(-1, m)
        assert (starts == text).all(axis=1).any()  # the last whole chunk is one of the sequence
