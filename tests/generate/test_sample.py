"""What is drawn from logits: as a sorted NumPy reference says, each row as if it were alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retro_jax.corpus.tokenizer import BOS, PAD, UNK
from retro_jax.generate import sample
from retro_jax.generate.sample import Sampling

V = 40
SILENT = np.isin(np.arange(V), [PAD, BOS, UNK])
draw = jax.jit(lambda *given: sample.sample(*given, SILENT))
among = jax.jit(sample._among)


def ways(rows: int, **given) -> Sampling:
    plain = {"temperature": 1, "top_k": 0, "top_p": 1, "min_p": 0, "penalty": 1, "seed": 0} | given
    kinds = {"top_k": jnp.int32, "seed": jnp.uint32}
    return Sampling(
        **{
            n: jnp.broadcast_to(jnp.asarray(v, kinds.get(n, jnp.float32)), rows)
            for n, v in plain.items()
        }
    )


def many(logits, rows: int = 2000, **given) -> np.ndarray:
    """What is drawn from the same logits [V] at so many places."""
    held = jnp.zeros((rows, V), bool)
    return np.asarray(
        draw(
            jnp.broadcast_to(jnp.asarray(logits), (rows, V)),
            ways(rows, **given),
            held,
            jnp.arange(rows),
        )
    )


def sorted_reference(x, top_k: int, top_p: float, min_p: float) -> set[int]:
    """The tokens that are left, with a sort; x: distinct logits [V]."""
    order = np.argsort(-x.astype(np.float64))
    if top_k:
        order = order[:top_k]
    p = np.exp(x[order].astype(np.float64) - x.max())
    p /= p.sum()
    enough = int(np.searchsorted(np.cumsum(p), top_p - 1e-6) + 1) if top_p < 1 else len(p)
    return {int(t) for t, q in zip(order[:enough], p) if q >= min_p * p[0] * (1 - 1e-5)}


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 2**20),
    scale=st.sampled_from([0.1, 1.0, 5.0, 30.0]),
    top_k=st.integers(0, V + 5),
    top_p=st.floats(0.01, 1.0),
    min_p=st.floats(0, 1.0),
)
def test_the_tokens_drawn_from_are_those_of_a_sort(seed, scale, top_k, top_p, min_p):
    x = np.random.default_rng(seed).normal(size=(1, V)).astype(np.float32) * scale
    how = ways(1, top_k=top_k, top_p=top_p, min_p=min_p)
    kept = set(np.flatnonzero(np.asarray(among(jnp.asarray(x), how))[0]).tolist())
    expected = sorted_reference(x[0], top_k, top_p, min_p)
    # On either side of a bound that float32 sums cannot tell apart one token may differ, or many that
    # hardly ever come.
    p = np.exp(x[0] - x.max())
    differ = list(kept ^ expected)
    assert len(differ) <= 1 or p[differ].sum() < 1e-5 * p.sum()
    assert int(x.argmax()) in kept


def test_equally_probable_tokens_are_in_or_out_together():
    x = jnp.asarray([[3.0, 2.0, 2.0, 2.0, 1.0]])
    for narrow in ({"top_k": 2}, {"top_p": 0.7}):
        assert np.asarray(among(x, ways(1, **narrow)))[0].tolist() == [
            True,
            True,
            True,
            True,
            False,
        ]


def test_however_little_is_asked_for_the_most_probable_token_is_left():
    x = np.random.default_rng(0).normal(size=V).astype(np.float32)
    narrowed = ({"top_p": 1e-38}, {"top_p": 1e-50}, {"min_p": 1}, {"temperature": 2e-38})
    for narrow, x in ((n, x + far) for n in narrowed for far in (-20, 0, 20)):
        best = np.where(np.isin(np.arange(V), [PAD, BOS, UNK]), -np.inf, x).argmax()
        assert set(many(x, 50, **narrow).tolist()) == {int(best)}


def test_tokens_come_as_often_as_they_are_probable():
    x = np.full(V, -np.inf, np.float32)
    x[10:14] = np.log([0.5, 0.25, 0.15, 0.1])
    often = np.bincount(many(x, 20000), minlength=V) / 20000
    np.testing.assert_allclose(often[10:14], [0.5, 0.25, 0.15, 0.1], atol=0.015)
    colder = np.bincount(many(x, 20000, temperature=0.5), minlength=V)[10:14] / 20000
    squares = np.square([0.5, 0.25, 0.15, 0.1])
    np.testing.assert_allclose(colder, squares / squares.sum(), atol=0.015)


def test_what_is_no_text_is_never_drawn():
    x = np.zeros(V, np.float32)
    x[[PAD, BOS, UNK]] = 50
    for temperature in (0, 1):
        assert not {PAD, BOS, UNK} & set(many(x, temperature=temperature).tolist())


def test_a_row_is_drawn_as_alone():
    """Whatever is beside it: other settings, other logits."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(4, V)).astype(np.float32)) * 3
    held = jnp.asarray(rng.random((4, V)) < 0.3)
    how = Sampling(
        jnp.array([0, 1, 0.7, 2.0]), jnp.array([0, 5, 0, 3]), jnp.array([1, 1, 0.8, 0.9]),
        jnp.array([0, 0, 0.1, 0.05]), jnp.array([1, 1.3, 1, 2.0]), jnp.arange(4, dtype=jnp.uint32),
    )  # fmt: skip
    place = jnp.array([3, 9, 100, 0])
    together = draw(x, how, held, place)
    for row in range(4):
        one = slice(row, row + 1)
        alone = draw(x[one], Sampling(*(v[one] for v in how)), held[one], place[one])
        assert alone[0] == together[row]


def test_seeds_and_places_have_random_numbers_of_their_own():
    x = np.zeros(V, np.float32)
    first, other = many(x, 500, seed=1), many(x, 500, seed=2)
    np.testing.assert_array_equal(first, many(x, 500, seed=1))
    for pair in ((first, other), (first[1:], first[:-1]), (first[1:], other[:-1])):
        assert (pair[0] == pair[1]).mean() < 0.1  # by chance 1 / 37


def test_the_most_probable_token_is_taken_whatever_narrows_the_rest():
    x = np.random.default_rng(3).normal(size=V).astype(np.float32)
    best = int(np.where(np.isin(np.arange(V), [PAD, BOS, UNK]), -np.inf, x).argmax())
    for narrow in ({}, {"top_k": 7}, {"top_p": 0.2, "seed": 5}, {"min_p": 0.9}):
        assert set(many(x, 50, temperature=0, **narrow).tolist()) == {best}
    assert set(many(x, 50, top_k=1).tolist()) == {best}


@pytest.mark.parametrize(("value", "penalised"), [(2.0, 1.0), (-2.0, -4.0)])
def test_what_a_row_holds_becomes_less_probable_whatever_its_sign(value, penalised):
    """A negative logit has to be multiplied, not divided."""
    x = np.full(V, -np.inf, np.float32)
    x[10], x[11] = value, (value + penalised) / 2  # 11 is better than 10 only after the penalty
    rows = 1
    for held, expected in ((False, 10), (True, 11)):
        seen = jnp.zeros((rows, V), bool).at[0, 10].set(held)
        how = ways(rows, temperature=0, penalty=2.0)
        assert int(draw(jnp.asarray(x)[None], how, seen, jnp.zeros(1, jnp.int32))[0]) == expected


def test_log_probabilities_are_the_models_own():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, V)).astype(np.float32))
    expected = np.asarray(jax.nn.log_softmax(x))
    got = sample.logprob_of(x, jnp.array([4, 0, 39]))
    np.testing.assert_allclose(got, expected[[0, 1, 2], [4, 0, 39]], rtol=1e-6)
    ids, values = sample.most_probable(x)
    np.testing.assert_array_equal(ids, np.argsort(-expected, axis=1)[:, : sample.TOP])
    np.testing.assert_allclose(
        values, np.sort(expected, axis=1)[:, ::-1][:, : sample.TOP], rtol=1e-6
    )
