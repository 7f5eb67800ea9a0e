"""The optimizer equals AdamW, clipping and schedules written in NumPy, one number at a time."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from retro_jax.config import TrainConfig
from retro_jax.train import optimizer

SHAPES = {"matrix": (3, 4), "norm.scale": (5,), "attention.content_bias": (2, 2), "base": (4,)}
STEPS = 12


def rate(c: TrainConfig, step: int) -> float:
    """Linear from 1e-7, then a cosine, or constant and then a line, to `final` of the rate."""
    if step < c.warmup:
        return 1e-7 + (c.learning_rate - 1e-7) * step / c.warmup
    last = c.final * c.learning_rate
    if c.schedule == "cosine":
        done = (step - c.warmup) / (c.steps - c.warmup)
        return last + (c.learning_rate - last) * (1 + math.cos(math.pi * done)) / 2
    begins = c.steps - round(c.decay * c.steps)
    return c.learning_rate + (last - c.learning_rate) * max(0, step - begins) / max(
        1, c.steps - begins
    )


def adamw(c: TrainConfig, params: dict, gradients: list[dict], shares: dict) -> dict:
    """The parameters after a step for each of the gradients."""
    p = {n: x.astype(np.float64) for n, x in params.items()}
    m, v = ({n: np.zeros_like(x) for n, x in p.items()} for _ in range(2))
    for t, given in enumerate(gradients):
        norm = math.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in given.values()))
        for n, g in given.items():
            g = g * min(1, c.clip / norm)
            m[n] = c.b1 * m[n] + (1 - c.b1) * g
            v[n] = c.b2 * v[n] + (1 - c.b2) * g**2
            change = m[n] / (1 - c.b1 ** (t + 1))
            change /= np.sqrt(v[n] / (1 - c.b2 ** (t + 1))) + 1e-8
            if n in ("matrix", "base"):
                change = change + c.weight_decay * p[n]
            p[n] = p[n] - rate(c, t) * change * shares.get(n, 1)
    return p


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
@pytest.mark.parametrize("shares", [{}, {"base": 0.25}])
@pytest.mark.parametrize("size", [0.01, 3.0], ids=["not clipped", "clipped"])
def test_steps_are_adamws(schedule, shares, size):
    rng = np.random.default_rng(0)
    config = TrainConfig(
        steps=STEPS, warmup=3, schedule=schedule, decay=0.5, final=0.1, learning_rate=0.1, clip=1.0,
        weight_decay=0.3, b1=0.8, b2=0.9,
    )  # fmt: skip
    params = {n: rng.normal(size=s).astype(np.float32) for n, s in SHAPES.items()}
    gradients = [
        {n: (size * rng.normal(size=s)).astype(np.float32) for n, s in SHAPES.items()}
        for _ in range(STEPS)
    ]
    expected = adamw(config, params, gradients, shares)
    made = optimizer.adamw(config, shares)
    now, state = jax.tree.map(jnp.asarray, params), made.init(params)
    for given in gradients:
        updates, state = made.update(given, state, now)
        now = optax.apply_updates(now, updates)
    for name, value in now.items():
        np.testing.assert_allclose(value, expected[name], rtol=2e-4, atol=2e-6, err_msg=name)


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
@pytest.mark.parametrize(("steps", "warmup"), [(100, 10), (100, 0), (10, 10), (5, 10), (1, 0)])
def test_the_rate_rises_holds_and_falls(schedule, steps, warmup):
    config = TrainConfig(
        steps=steps, warmup=warmup, schedule=schedule, decay=0.2, final=0.1, learning_rate=2e-3
    )
    got = optimizer.schedule(config)
    for step in range(min(steps, warmup), steps):
        if steps > warmup:
            np.testing.assert_allclose(got(step), rate(config, step), rtol=2e-5)
    rising = [float(got(step)) for step in range(min(steps, warmup))]
    line = 1e-7 + (2e-3 - 1e-7) * np.arange(len(rising)) / max(1, len(rising))
    np.testing.assert_allclose(rising, line, rtol=1e-4, atol=1e-9)
    if steps == 100:
        np.testing.assert_allclose(got(steps), 2e-4, rtol=1e-4)
        assert optimizer.decay_begins(config) == 80


def test_an_average_is_of_what_was_and_what_is():
    old, new = {"a": jnp.array([1.0, 2.0])}, {"a": jnp.array([5.0, 6.0])}
    np.testing.assert_allclose(optimizer.averaged(old, new, 0.75)["a"], [2.0, 3.0])
    assert optimizer.averaged({}, new, 0.75) == {}
