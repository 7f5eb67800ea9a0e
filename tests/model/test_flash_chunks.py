"""The TPU kernel of chunks and their neighbours says what the reference says, forward and backward: here interpreted,
and compiled by the TPU's own compiler."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_attention import example, f32

from retro_jax.config import MeshConfig
from retro_jax.model.attend import attend, softmax_read
from retro_jax.model.flash_chunks import flash_read
from retro_jax.model.positions import distances, sinusoid
from retro_jax.plan import roofline, topology


# What is no whole tile, and more groups than a program takes; cross-attention, the encoder's two; without positions.
@pytest.mark.parametrize(
    ("queries", "keys", "memories", "offset", "groups", "relative"),
    [
        (5, 7, 2, 4, 9, True),
        (20, 40, 1, 19, 3, True),
        (64, 128, 2, 63, 2, True),
        (5, 7, 2, 4, 3, False),
    ],
)
def test_the_kernel_is_the_reference_and_so_is_its_gradient(
    mesh, queries, keys, memories, offset, groups, relative
):
    q, k, v, mask, w_r, u, w = example(queries, keys, memories, groups=groups, size=8)
    nothing = np.random.default_rng(1).normal(size=q.shape[:-1])

    def both(read):
        def total(q, k, v, w_r, u, w, nothing):
            steps = distances(queries, keys, offset, causal=False)
            table = jnp.einsum("sd,dnah->snah", sinusoid(steps, 6), w_r)
            given = (q, k, v, jnp.asarray(mask), (table, u, w) if relative else None)
            y, _ = attend(*given, nothing=nothing, read=read)
            return (y * jnp.sin(3 * q)).sum(), y

        of_all = jax.value_and_grad(total, argnums=range(7), has_aux=True)
        (_, y), gradients = jax.jit(of_all)(*f32(q, k, v, w_r, u, w, nothing))
        return y, *gradients

    found = both(flash_read)
    for got, expected in zip(found, both(softmax_read), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    assert not np.any(found[0][0, 0])  # no key at all


def _loss(table, q, k, v, mask, u, w):
    return attend(q, k, v, mask, (table, u, w), read=flash_read)[0].astype(jnp.float32).sum()


def test_its_products_are_counted(mesh):
    """Keys and distances as they are filled up: 64 queries to 2 memories of 128 keys, 256 distances."""
    q, k, v, mask, _, u, w = f32(*example(64, 128, 2, heads=2, groups=3, size=4))
    given = jnp.zeros((192, 2, 1, 4)), q, k, v, mask > 0, u, w
    traced = jax.make_jaxpr(_loss)(*given)
    expected = 2 * (2 * 2 * 3 * 64) * 4 * (2 * 2 * 128 + 256)
    assert roofline.work(traced.jaxpr, jax.sharding.get_abstract_mesh()).flops == expected


def test_the_tpu_compiler_takes_it():
    """As RETRO's cross-attention reads, and its encoder: itself, and the chunk; and chunks that are no whole tiles."""
    mesh = topology.device_mesh(topology.parse("v5e:2x2"), MeshConfig(1, 4, 1))
    if mesh is None:
        pytest.skip("needs libtpu: pip install 'retro_jax[tpu]'")
    rows = ("replica", "data")

    def shaped(*shape, spec=(rows,), dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=jax.NamedSharding(mesh, jax.P(*spec)))

    def arguments(queries, keys, memories, groups, size=64):
        return (
            shaped(queries + keys, 2, 1, size, spec=()), shaped(4, groups, queries, 2, 1, size),
            *[shaped(4, groups, memories, keys, 2, size)] * 2, shaped(4, groups, memories, keys, dtype=bool),
            *[shaped(2, 1, size, spec=())] * 2,
        )  # fmt: skip

    def all_of_them(*given):
        return sum(_loss(*one) for one in given)

    shapes = [
        arguments(*x)
        for x in ((64, 128, 2, 8), (128, 128, 1, 16), (128, 64, 1, 16), (20, 40, 24, 9))
    ]
    with jax.set_mesh(mesh):
        jitted = jax.jit(jax.grad(all_of_them, argnums=range(4), allow_int=True))
        text = jitted.lower(*shapes).compile().as_text()
    calls = [line for line in text.splitlines() if " custom-call(" in line]
    assert sum("flash_chunks_backward" in line for line in calls) == 4
