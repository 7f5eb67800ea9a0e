"""The gradient of a product copies its smaller operand, and stays in that order when XLA compiles it."""

import re

import jax
import jax.numpy as jnp
import numpy as np

from retro_jax.model.einsum import project


def test_the_gradient_of_a_weight_copies_what_is_smaller(mesh):
    """x [R, 8], the gradient of the result g [R, 4]: x^T g would copy x, (g^T x)^T copies g, half as many numbers.
    Without the barrier XLA merges the last transpose into the product, and copies x after all."""
    rng = np.random.default_rng(0)
    x, w = (jnp.asarray(rng.normal(size=size), jnp.float32) for size in ((4096, 8), (8, 4)))
    step = jax.jit(jax.grad(lambda w: (project(x, w) ** 2).sum()))
    np.testing.assert_allclose(step(w), 2 * x.T @ (x @ w), rtol=1e-4)
    text = step.lower(w).compile().as_text()
    products = re.findall(r"f32\[(\d+),(\d+)\]\S* dot\(", text)
    assert ("4", "8") in products, text
