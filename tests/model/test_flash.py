"""The TPU kernel of self-attention says what the reference says, forward and backward: here interpreted, and
compiled by the TPU's own compiler, which refuses what a chip cannot do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import altered, make_mesh, weights
from test_attention import example, f32
from test_retro import VOCAB
from test_retro import example as text

from retro_jax.config import MeshConfig
from retro_jax.errors import UserError
from retro_jax.model import functional, kernel, sizes
from retro_jax.model.attend import attend_causal, self_distances
from retro_jax.model.flash import flash, flash_distances
from retro_jax.model.positions import sinusoid
from retro_jax.plan import roofline, topology


# Two blocks of queries of one of keys, with several heads of queries; two blocks of keys.
@pytest.mark.parametrize(
    ("length", "heads", "each", "relative"),
    [(130, 1, 2, True), (600, 1, 1, True), (600, 1, 2, False)],
)
def test_the_kernel_is_the_reference_and_so_is_its_gradient(mesh, length, heads, each, relative):
    q, k, v, mask, w_r, u, w = example(length, length, 1, heads=heads, each=each, groups=1, size=8)
    mask[1, ..., -3:] = False  # of the first text no key is allowed at all

    def both(by_kernel):
        steps = flash_distances(length) if by_kernel else self_distances(length, 256)

        def total(q, k, v, w_r, u, w):
            table = jnp.einsum("sd,dnah->snah", sinusoid(steps, 6), w_r)
            given = (q, k, v, jnp.asarray(mask), (table, u, w) if relative else None)
            y = flash(*given) if by_kernel else attend_causal(*given, 256)
            return (y * jnp.sin(3 * q)).sum(), y

        of_all = jax.value_and_grad(total, argnums=range(6), has_aux=True)
        (_, y), gradients = jax.jit(of_all)(*f32(q, k, v, w_r, u, w))
        return y, *gradients

    found = both(True)
    for got, expected in zip(found, both(False), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    assert not np.any(found[0][0])


def test_a_retro_on_a_mesh_has_the_same_gradient(tiny):
    one = altered(tiny, decoder={"layers": 1}, reading={"cca_layers": (1,)})
    with jax.set_mesh(make_mesh(1, 4, 2)):
        params = weights(one, VOCAB)
        tokens, neighbours = text(14, batch=4)
        tokens[0, -3:], neighbours[1, 1] = 0, 0  # padding, of some rows

        def gradient(config):
            def loss(params):
                logits = functional.apply(config, params, tokens, neighbours)
                return (jax.nn.log_softmax(logits) ** 2).mean()

            return jax.jit(jax.grad(loss))(params)

        expected = gradient(one)
        others = [gradient(altered(one, attention=by)) for by in ("flash", "cudnn")]
    for name, value in expected.items():
        for got in others:
            np.testing.assert_allclose(got[name], value, rtol=2e-3, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("kind", ["NVIDIA H100 80GB HBM3", "TPU v4"])
def test_other_chips_are_told_that_it_is_not_for_them(kind):
    """A GPU would interpret it, thousands of times slower than the reference; a v4 cannot turn rows."""
    with pytest.raises(UserError, match=rf"model.attention = .flash.*not for {kind}.*reference"):
        kernel.check_chip(kind)


def test_its_products_are_counted(mesh):
    """As the loops of its blocks go: 3 blocks of 128 queries to one of 384 keys, and 5 to 1 or 2 of 512."""
    for length, blocks, keys in ((384, 3, 384), (600, 4 + 2 * 4, 512)):
        q, k, v, mask, _, u, w = f32(*example(length, length, 1, heads=2, groups=1, size=4))
        table = jnp.zeros((len(flash_distances(length)), 2, 1, 4))
        traced = jax.make_jaxpr(flash)(q, k, v, mask > 0, (table, u, w))
        expected = 2 * 2 * 2 * 4 * blocks * 128 * (2 * keys + keys + 128)
        assert sizes.dot_flops(traced.jaxpr) == expected
        assert roofline.work(traced.jaxpr, jax.sharding.get_abstract_mesh()).flops == expected


def test_on_a_mesh_a_chips_part_is_counted_and_the_sum_of_the_tables_gradient():
    """The kernel is written for one chip: its arrays are of one chip already, and what it sums goes over the links."""
    q, k, v, mask, _, u, w = f32(*example(384, 384, 1, heads=2, groups=1, size=4))
    table = jnp.zeros((len(flash_distances(384)), 2, 1, 4))

    def work(data):
        mesh = make_mesh(1, data, 1)
        with jax.set_mesh(mesh):
            rows = [jnp.tile(x, (4,) + (1,) * (x.ndim - 1)) for x in (q, k, v, mask > 0)]
            rows = [jax.device_put(x, jax.P(("replica", "data"))) for x in rows]
            placed = [jax.device_put(x, jax.P()) for x in (table, u, w)]

            def loss(table, q, k, v, mask, u, w):
                return flash(q, k, v, mask, (table, u, w)).sum()

            given = placed[0], *rows, *placed[1:]
            return roofline.work(jax.make_jaxpr(jax.grad(loss))(*given).jaxpr, mesh)

    alone, four = work(1), work(4)
    assert four.flops == alone.flops / 4
    assert not any(alone.sent.values())
    assert four.sent["data"] >= 2 * table.nbytes * 3 / 4


def test_the_tpu_compiler_takes_it():
    mesh = topology.device_mesh(topology.parse("v5e:2x2"), MeshConfig(1, 4, 1))
    if mesh is None:
        pytest.skip("needs libtpu: pip install 'retro_jax[tpu]'")
    length, rows = 600, ("replica", "data")

    def shaped(*shape, spec=(rows,), dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=jax.NamedSharding(mesh, jax.P(*spec)))

    def loss(q, k, v, mask, table, u, w):
        return flash(q, k, v, mask, (table, u, w)).astype(jnp.float32).sum()

    with jax.set_mesh(mesh):
        given = [
            shaped(4, 1, length, 2, 1, 64), *[shaped(4, 1, 1, length, 2, 64)] * 2,
            shaped(4, 1, 1, length, dtype=bool), shaped(len(flash_distances(length)), 2, 1, 64, spec=()),
            *[shaped(2, 1, 64, spec=())] * 2,
        ]  # fmt: skip
        gradient = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 4, 5, 6))).lower(*given)
        assert gradient.compile().as_text().count("flash_backward") > 0
