"""Laws are found again that were put in, and a multiplier is what it was made to be."""

import numpy as np
import pytest

from retro_jax.study import figures, laws
from retro_jax.study.figures import Curve

SIZES = np.array([4e4, 1e5, 2.2e5, 5.3e5, 1.25e6])


def curve(losses, noise=0.0, draws=200, x=SIZES):
    drawn = losses + noise * np.random.default_rng(0).standard_normal((draws, len(x)))
    sizes = dict.fromkeys(figures.SIZES, x)
    return Curve([["a"]] * len(x), sizes, losses, drawn, [np.array([v]) for v in losses])


def law(x, floor=0.8, scale=60.0, exponent=0.35):
    return floor + scale * x**-exponent


def test_a_law_is_found_again_and_inverted():
    losses = law(SIZES)
    found = laws.fit(SIZES, np.stack([losses, 2 * losses]))
    np.testing.assert_allclose(found.exponent, 0.35, atol=0.011)
    np.testing.assert_allclose(found.floor, [0.8, 1.6], rtol=0.05)
    np.testing.assert_allclose(found(SIZES), np.stack([losses, 2 * losses]), rtol=1e-3)
    np.testing.assert_allclose(
        found.size(np.array([losses[2], 2 * losses[3]])), SIZES[2:4], rtol=0.02
    )
    assert found.size(np.array([0.7, 0.7])).tolist() == [np.inf, np.inf]  # below the floor
    assert np.abs(laws.leave_one_out(SIZES, losses)).max() < 0.02


@pytest.mark.parametrize("losses", [SIZES * 0 + 1.5, np.linspace(1, 2, 5)])
def test_losses_that_do_not_fall_give_a_flat_law(losses):
    found = laws.fit(SIZES, losses[None])
    assert found.scale[0] == 0
    np.testing.assert_allclose(found.floor, losses.mean())


def test_a_floor_is_never_below_0():
    found = laws.fit(SIZES, law(SIZES, floor=-0.5)[None])
    assert found.floor[0] == 0
    fixed = laws.fit(SIZES, law(SIZES)[None], floor=0.8)
    np.testing.assert_allclose([fixed.floor[0], fixed.exponent[0]], [0.8, 0.35], atol=0.011)


def test_a_reader_that_is_as_good_as_twice_its_size_is_worth_two():
    base, reader = curve(law(SIZES), 0.003), curve(law(2 * SIZES), 0.003)
    found = figures.multipliers(base, reader)
    for m in found:
        assert m["value"] == pytest.approx(2, rel=0.03)
        assert m["law"] == pytest.approx(2, rel=0.03)
        assert m["low"] < 2 < m["high"]
    # The largest is worth a model that was not trained: that is said, and only what was measured is claimed.
    assert [m["beyond"] for m in found] == [False] * 4 + [True]
    assert found[-1]["at_least"] == pytest.approx(1)
    assert figures.multipliers(curve(law(SIZES[:2]), x=SIZES[:2]), reader) == []


def test_equal_losses_are_worth_one_whatever_the_law_misses():
    """Losses that no law goes through: by the law M would be above or below 1 where both models are alike."""
    losses = np.array([2.0, 1.9, 1.3, 1.25, 1.0])
    found = figures.multipliers(curve(losses), curve(losses))
    assert [m["value"] for m in found] == pytest.approx([1] * 5)
    assert max(abs(m["law"] - 1) for m in found) > 0.2
    assert not any(m["beyond"] or m["below"] for m in found)
    worse = figures.multipliers(curve(losses), curve(losses + 0.05))
    assert [m["below"] for m in worse] == [True] + [False] * 4
    assert all(m["value"] < 1 for m in worse)


def test_between_two_sizes_it_bends_as_the_law_does():
    x, half = np.array([1.0, 4.0, 16.0]), np.full(5, 0.5)  # x^-0.5 is 1, 0.5, 0.25
    losses = np.array([[3.0, 2.0, 1.0]] * 5)
    found = laws.between(x, losses, np.array([2.5, 2.0, 1.5, 3.5, 0.5]), half)
    assert found[:3] == pytest.approx([0.75**-2, 4, 0.375**-2])
    assert np.isnan(found[3:]).all()  # off both ends
    # Noise can have it rise: then it is the smallest size with that loss.
    rises = laws.between(x, np.array([[2.0, 2.5, 1.0]]), np.array([2.2]), half[:1])
    assert rises[0] == pytest.approx((0.8 * 0.5 + 0.2 * 0.25) ** -2)


def test_the_variance_of_seeds_is_pooled_over_sizes():
    each = [np.array([1.0, 1.2]), np.array([2.0, 2.0, 2.3]), np.array([5.0])]
    squares = 2 * 0.1**2 + 2 * 0.1**2 + 0.2**2
    assert figures.pooled(each) == pytest.approx(np.sqrt(squares / 3))
    assert figures.pooled(each[2:]) == 0


def test_a_draw_without_text_is_left_out():
    losses = np.stack([law(SIZES)] * 50)
    losses[0] = np.nan
    found = laws.fit(SIZES, losses)
    assert np.isnan(found.exponent[0])
    sizes = found.size(losses[:, 2])
    assert np.isnan(sizes[0])
    assert laws.interval(sizes) == pytest.approx((SIZES[2], SIZES[2]), rel=0.02)
