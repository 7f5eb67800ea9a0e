"""Losses of a retriever: plain loops, and gradients by finite differences; the map that is trained with them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from retro_jax.methods import retriever_losses as losses
from retro_jax.methods.query_map import Examples, scores, spread_of, train

N, K = 3, 4
RNG = np.random.default_rng(0)
SCORES, SAID = RNG.normal(size=(N, K)), RNG.normal(size=(N, K))


def softmax(x):
    e = [np.exp(v) for v in x]
    return [v / sum(e) for v in e]


def in_loops(name: str, s, said) -> float:
    """The mean over queries, of each a loop over its documents."""
    total = 0.0
    for row in range(len(s)):
        p = softmax(s[row])
        if name == "emdr2":
            total -= np.log(sum(p[k] * np.exp(said[row][k]) for k in range(K)))
            continue
        target = softmax([{"loop": -v}.get(name, v) / 0.5 for v in said[row]])
        a, b = (p, target) if name == "lsr" else (target, p)
        total += sum(a[k] * np.log(a[k] / b[k]) for k in range(K))
    return total / len(s)


CASES = {
    "lsr": lambda s, x: losses.lsr(s, x, beta=0.5),
    "pdist": lambda s, x: losses.pdist(s, x, tau=0.5),
    "emdr2": losses.emdr2,
    "loop": lambda s, x: losses.loop(s, x, tau=0.5),
    "adist": lambda s, x: losses.adist(s, x, tau=0.5),
}


@pytest.mark.parametrize("name", CASES)
def test_it_is_what_loops_say_and_its_gradient_is_that_of_finite_differences(name):
    with jax.enable_x64(True):
        loss = CASES[name]
        s, said = jnp.asarray(SCORES), jnp.asarray(SAID)
        np.testing.assert_allclose(loss(s, said), in_loops(name, SCORES, SAID), rtol=1e-9)
        grad, of_said = jax.grad(loss, argnums=(0, 1))(s, said)
        for at in np.ndindex(N, K):
            moved = [np.array(SCORES) for _ in range(2)]
            moved[0][at] += 1e-5
            moved[1][at] -= 1e-5
            slope = (in_loops(name, moved[0], SAID) - in_loops(name, moved[1], SAID)) / 2e-5
            np.testing.assert_allclose(grad[at], slope, atol=1e-8)
        np.testing.assert_array_equal(of_said, 0)  # the reader is a target


@pytest.mark.parametrize("name", ["lsr", "pdist", "emdr2", "loop", "adist"])
def test_a_step_moves_towards_the_document_that_helps(name):
    """Which lowers the loss where it is left out, and raises what is said where it is read."""
    said = np.zeros((1, K))
    said[0, 2] = -1.0 if name == "loop" else 1.0
    grad = jax.grad(CASES[name])(jnp.zeros((1, K)), jnp.asarray(said))
    assert np.argmin(grad[0]) == 2


def drawn(seed: int = 0, n: int = 80, k: int = 6, e: int = 5) -> tuple[Examples, np.ndarray]:
    """Candidates of which the useful ones are near in the first number only, and how much each helps [n, K]."""
    rng = np.random.default_rng(seed)
    queries = rng.normal(size=(n, e)).astype(np.float32)
    near = rng.normal(size=(n, k, e)).astype(np.float32)
    helps = -4 * (queries[:, :1] - near[..., 0]) ** 2
    nothing = np.zeros((n, 1), np.int32)
    return Examples(queries, near, nothing, nothing, nothing, np.arange(n)), helps


def test_the_map_learns_what_the_reader_finds_useful():
    given, helps = drawn()

    def loss(s, rows):
        return losses.lsr(s, helps[rows])

    w, found = train(given, loss, 300, 0.03)
    for before, after in found.values():
        assert after < 0.9 * before
    spread = spread_of(given)
    best = helps.argmax(axis=1)
    right = [
        (np.asarray(scores(m, given.queries, given.candidates, spread)).argmax(axis=1) == best)
        for m in (np.eye(5), w)
    ]
    assert right[1].mean() > right[0].mean()


def test_where_nothing_can_be_learnt_the_map_stays_as_it_was():
    """What is good where it is trained, and bad on the documents apart, is not taken."""
    given, _ = drawn()
    noise = np.random.default_rng(1).normal(size=(len(given.queries), 6)) * 5

    def loss(s, rows):
        return losses.lsr(s, noise[rows])

    w, found = train(given, loss, 100, 0.3)
    assert found["apart"][1] <= found["apart"][0]
    w, _ = train(given, loss, 0, 0.3)
    np.testing.assert_array_equal(w, np.eye(5))
