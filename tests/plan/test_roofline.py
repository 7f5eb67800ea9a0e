"""What a step does is counted as one counts it by hand, and is as long as the slowest of it."""

import jax
import jax.numpy as jnp
import pytest
from conftest import make_mesh
from jax.sharding import NamedSharding, use_abstract_mesh
from jax.sharding import PartitionSpec as P

from retro_jax.config import MeshConfig
from retro_jax.plan import roofline, topology
from retro_jax.train.hardware import CHIPS

MESH = make_mesh(1, 4, 2).abstract_mesh


def counted(of, *arrays):
    """The work of a program on arrays (shape, spec) of float32."""
    with use_abstract_mesh(MESH):
        given = [
            jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(MESH, P(*spec)))
            for shape, spec in arrays
        ]
        return roofline.work(jax.jit(of).trace(*given).jaxpr.jaxpr, MESH)


def test_a_product_whose_matrix_is_gathered():
    def product(x, w):
        return x @ jax.sharding.reshard(w, P(None, "model"))

    found = counted(product, ((8, 16), ("data",)), ((16, 32), ("data", "model")))
    # 2 rows of 8, 16 columns of 32 on each chip.
    assert found.flops == 2 * 2 * 16 * 16
    # All but a quarter of the matrix's half comes from the three others.
    assert found.sent == {"data": 16 * 16 * 4 * 3 / 4}
    gathered = 4 * 16 + 16 * 16  # read, and written
    read, written = 2 * 16 + 16 * 16, 2 * 16
    assert found.bytes == 4 * (gathered + read + written)


@pytest.mark.parametrize(
    ("out", "sent"), [((None, None), 2 * 8 * 8 * 4 / 2), (("model", None), 4 * 8 * 4)], ids=str
)
def test_a_product_over_a_split_dimension_is_summed_up(out, sent):
    def product(x, w):
        return jnp.einsum("ab,bc->ac", x, w, out_sharding=P(*out))

    found = counted(product, ((8, 16), (None, "model")), ((16, 8), ("model", None)))
    assert found.flops == 2 * 8 * 8 * 8
    assert found.sent == {"model": sent}


def test_along_the_axis_of_far_chips_goes_what_is_left_for_each_of_the_near():
    def total(x):
        return x.sum(0)

    def gathered(x):
        return jax.sharding.reshard(x, P(None, None))

    wide = ((8, 16), (("data", "model"), None))  # one row on each of 8 chips
    summed = counted(total, wide).sent
    assert summed == {"model": 2 * 64 / 2, "data": 2 * 64 / 2 * 3 / 4}
    assert counted(gathered, wide).sent == {"model": 512 / 2, "data": 512 / 2 * 3 / 4}


def test_what_is_split_along_another_dimension_is_sent():
    def turned(x):
        return jax.sharding.reshard(x, P(None, "data"))

    found = counted(turned, ((8, 16), ("data", None)))
    assert found.sent == {"data": 8 * 4 * 4 * 3 / 4}


def test_a_loop_counts_as_often_as_it_runs():
    def often(x, w):
        return jax.lax.scan(lambda h, _: (h @ w, None), x, length=5)[0]

    def once(x, w):
        return x @ w

    arrays = ((8, 16), ("data",)), ((16, 16), ())
    loop, single = counted(often, *arrays), counted(once, *arrays)
    assert loop.flops == 5 * single.flops
    assert loop.bytes >= 5 * single.bytes


def test_what_is_computed_in_passing_is_not_read_from_memory():
    def passing(x):
        return jnp.tanh(x * 2) + 1

    assert counted(passing, ((8, 16), ())).bytes == 0
    assert counted(lambda x: passing(x).sum(), ((8, 16), ())).bytes == 4 * 8 * 16


def test_a_step_takes_as_long_as_the_slowest_of_it():
    work = roofline.Work(flops=197e12, bytes=2 * 819e9, sent={"data": 300e9, "model": 0.0})
    took = roofline.times(work, CHIPS["v5e"], {"data": 100e9, "model": 100e9})
    assert (took.products, took.memory, took.axes) == (1, 2, {"data": 3})
    assert (took.best, took.bound) == (3, "links along data")
    assert took.worst == pytest.approx((1 + 2 + 3) / roofline.REACHED)


@pytest.mark.parametrize(
    ("on", "mesh", "far"),
    [
        ("v5e:4x4", MeshConfig(2, 8, 1), set()),
        ("v5e:4x4*2", MeshConfig(2, 16, 1), {"replica"}),
        ("h100:8", MeshConfig(1, 8, 1), set()),
        ("h100:16", MeshConfig(1, 4, 4), {"data", "replica"}),
    ],
)
def test_what_leaves_a_slice_or_a_host_goes_over_the_network(on, mesh, far):
    on = topology.parse(on)
    found = topology.speeds(on, topology.abstract_mesh(on, mesh))
    assert {axis for axis, speed in found.items() if speed == on.chip.network} == far
