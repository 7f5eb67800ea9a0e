"""The gradient of a product copies its smaller operand, and stays in that order when XLA compiles it."""

import re

import jax
import jax.numpy as jnp
import numpy as np

from retro_jax.model.einsum import project


def compiled(rows: int):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(rows, 8)), jnp.float32)
    w = jnp.asarray(np.random.default_rng(1).normal(size=(8, 4)), jnp.float32)

    def loss(w):
        return (project(x, w) ** 2).sum()

    step = jax.jit(jax.grad(loss))
    np.testing.assert_allclose(step(w), 2 * x.T @ (x @ w), rtol=1e-4)
    return step.lower(w).compile().as_text()


def test_the_gradient_of_a_weight_copies_what_is_smaller(mesh):
    """x [R, 8], the gradient of the result g [R, 4]: x^T g would copy x, (g^T x)^T copies g, half as many numbers.
    Without the barrier XLA merges the last transpose into the product, and copies x after all."""
    text = compiled(4096)
    products = re.findall(r"f32\[(\d+),(\d+)\]\S* dot\(", text)
    assert ("4", "8") in products, text
