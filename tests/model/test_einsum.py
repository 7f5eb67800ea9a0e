"""The gradient of a product copies its smaller operand, and stays in that order when XLA compiles it."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params
from jax.sharding import AbstractMesh, AxisType, use_abstract_mesh

from retro_jax.model.einsum import product, project
from retro_jax.model.layers import AXES, look_up


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


def dots(function, *args) -> list:
    """What the products of a program give."""

    def of(jaxpr):
        for eqn in jaxpr.eqns:
            if eqn.primitive.name == "dot_general":
                yield eqn.outvars[0].aval
            for inner in jaxprs_in_params(eqn.params):
                yield from of(inner)

    return list(of(jax.make_jaxpr(function)(*args).jaxpr))


@pytest.mark.parametrize("rows", [1, 3])
def test_of_bfloat16_a_cpu_gets_the_products_that_it_is_fast_at(mesh, rows):
    """They give float32, and have two rows or more; what comes out is as anywhere else."""
    rng = np.random.default_rng(0)
    x, w = (jnp.asarray(rng.normal(size=s), jnp.bfloat16) for s in ((1, rows, 24), (24, 6)))
    exact = x.astype(jnp.float32) @ w.astype(jnp.float32)
    for dtype, tolerance in ((jnp.bfloat16, 2**-8), (jnp.float32, 1e-5)):
        of = functools.partial(product, "blk,kd->bld", dtype=dtype)
        (dot,) = dots(of, x, w)
        assert dot.dtype == jnp.float32
        assert dot.size // 6 == max(rows, 2)
        got = of(x, w)
        assert (got.dtype, got.shape) == (dtype, (1, rows, 6))
        np.testing.assert_allclose(got.astype(jnp.float32), exact, rtol=tolerance, atol=1e-5)
    of = functools.partial(product, "blk,kd->bld", dtype=jnp.bfloat16)
    assert {d.dtype for d in dots(jax.grad(lambda x, w: of(x, w).sum(), (0, 1)), x, w)} == {
        dot.dtype
    }
    with use_abstract_mesh(AbstractMesh((1, 1, 1), AXES, (AxisType.Explicit,) * 3)):
        shapes = (jax.ShapeDtypeStruct(a.shape, a.dtype) for a in (x, w))
        assert {d.dtype for d in dots(of, *shapes)} == {x.dtype}


def test_rows_of_a_bfloat16_table_are_looked_up_as_bits(mesh):
    """Without, a CPU makes float32 of the whole table. What is found is the same, and so is the gradient."""
    table = jnp.asarray(np.random.default_rng(0).normal(size=(9, 4)), jnp.bfloat16)
    ids = jnp.array([[3, 3, 8]])

    def squares(find):
        return jax.jit(jax.value_and_grad(lambda t: (find(t).astype(jnp.float32) ** 2).sum()))

    found, expected = squares(lambda t: look_up(t, ids)), squares(lambda t: t[ids])
    for got, wanted in zip(found(table), expected(table)):
        np.testing.assert_array_equal(got, wanted)
    text = jax.jit(lambda t: look_up(t, ids)).lower(table).compile().as_text()
    assert "f32[9,4]" not in text
