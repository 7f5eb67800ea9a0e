"""cuDNN's attention says what the reference says, forward and backward: here by XLA, with the same arguments, and
lowered for a GPU, which is where it would run."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import make_mesh
from jax._src.cudnn import fused_attention_stablehlo
from jax.sharding import AbstractDevice, AbstractMesh, AxisType
from test_attention import example, f32

from retro_jax.errors import UserError
from retro_jax.model.attend import attend, attend_causal, softmax_read
from retro_jax.model.cudnn import check_chip, cudnn_causal, cudnn_read
from retro_jax.model.layers import AXES, ROWS
from retro_jax.model.positions import distances, sinusoid


def found(reads, queries, keys, memories, offset, groups, each=1, relative=True, causal=False):
    """What each of them reads, and all gradients."""
    q, k, v, mask, w_r, u, w = example(queries, keys, memories, each=each, groups=groups, size=8)

    def of(read):
        def total(q, k, v, w_r, u, w):
            steps = distances(queries, keys, offset, causal)
            table = jnp.einsum("sd,dnah->snah", sinusoid(steps, 6), w_r)
            given = (table, u, w) if relative else None
            y = read(q, k, v, jnp.asarray(mask), given)
            return (y * jnp.sin(3 * q)).sum(), y

        of_all = jax.value_and_grad(total, argnums=range(6), has_aux=True)
        (_, y), gradients = jax.jit(of_all)(*f32(q, k, v, w_r, u, w))
        return y, *gradients

    return [of(read) for read in reads]


@pytest.mark.parametrize(
    ("queries", "keys", "memories", "offset", "groups", "each", "relative"),
    [(16, 8, 2, 4, 3, 2, True), (5, 7, 2, 4, 3, 1, True), (5, 7, 2, 4, 3, 2, False)],
)
def test_chunks_are_read_as_by_the_reference(
    mesh, queries, keys, memories, offset, groups, each, relative
):
    def by(read):
        return lambda *given: attend(*given, read=read)[0]

    got, expected = found(
        [by(cudnn_read), by(softmax_read)], queries, keys, memories, offset, groups, each, relative
    )
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    assert not np.any(got[0][0, 0])  # no key at all


@pytest.mark.parametrize(("each", "relative"), [(2, True), (1, False)])
def test_a_sequence_is_read_as_by_the_reference(mesh, each, relative):
    reads = [cudnn_causal, functools.partial(attend_causal, block=64)]
    got, expected = found(reads, 12, 12, 1, 0, 1, each, relative, causal=True)
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


H100 = ("NVIDIA H100 80GB HBM3", "gpu", "9.0")


def traced(on, queries, keys, memories=1, groups=1, each=1, relative=True, causal=False, how=""):
    """The gradient on a mesh of 4 parts of 8 sequences and 2 parts of 4 heads of keys."""
    read = functools.partial(cudnn_read, causal=causal, how=how)

    def loss(table, q, k, v, mask, u, w):
        given = q, k, v, mask, (table, u, w) if relative else None
        y, _ = attend(*given, causal_from=0 if causal else None, read=read)
        return (y.astype(jnp.float32) ** 2).sum()

    def shaped(*shape, spec, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=jax.NamedSharding(on, jax.P(*spec)))

    rows, distances = ROWS[0], queries + 1 if causal else queries + keys
    bias = shaped(4, each, 8, spec=["model"])
    given = (
        shaped(distances, 4, each, 8, spec=[None, "model"]),
        shaped(8, groups, queries, 4, each, 8, spec=[rows, None, None, "model"]),
        *[shaped(8, groups, memories, keys, 4, 8, spec=[rows, *[None] * 3, "model"])] * 2,
        shaped(8, groups, memories, keys, spec=[rows], dtype=bool), bias, bias,
    )  # fmt: skip
    return jax.jit(jax.grad(loss, argnums=(1, 2, 3))).trace(*given)


@pytest.mark.parametrize(
    ("shape", "added"),
    [
        ({"queries": 128, "keys": 128, "causal": True}, "2x2x128x128"),
        ({"queries": 64, "keys": 128, "memories": 2, "groups": 3, "each": 2}, "6x4x64x256"),
        ({"queries": 5, "keys": 7, "relative": False}, "2x1x6x8"),  # filled up to even numbers
    ],
)
def test_for_gpus_it_is_cudnns_kernels_on_each_chips_part(monkeypatch, shape, added):
    """Lowered, as no GPU is at hand: one forward, although what is added is made again for the gradient, and one
    backward."""
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91200)
    on = make_mesh(1, 4, 2)
    with jax.set_mesh(on):
        text = traced(on, how="cudnn", **shape).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("@__cudnn$fmhaScaleBiasSoftmax(") == 1
    assert text.count("@__cudnn$fmhaScaleBiasSoftmaxBackward(") == 1
    assert f"tensor<{added}xbf16>" in text


@pytest.mark.parametrize("kind", ["gpu", "cpu"])
def test_the_mesh_says_what_computes_it(monkeypatch, kind):
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91200)
    device = AbstractDevice(kind, None, kind)
    on = AbstractMesh((1, 4, 2), AXES, (AxisType.Explicit,) * 3, abstract_device=device)
    with jax.sharding.use_abstract_mesh(on):
        found = "dot_product_attention_fwd" in str(traced(on, 16, 16, causal=True).jaxpr)
    assert found == (kind == "gpu")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((("TPU v5e", "tpu", None), "bfloat16", 64), "not for TPU v5e; set it to flash"),
        ((("Tesla V100", "gpu", "7.0"), "bfloat16", 64), "not for Tesla V100"),
        ((H100, "float32", 64), "model.dtype = 'float32': cuDNN's attention computes in bfloat16"),
        ((H100, "bfloat16", 20), "a multiple of 8 numbers, at most 128, and not of 20"),
    ],
)
def test_what_it_cannot_do_is_said(given, message):
    (kind, platform, capability), *rest = given
    device = SimpleNamespace(device_kind=kind, platform=platform)
    if capability:
        device.compute_capability = capability
    with pytest.raises(UserError, match=message):
        check_chip(device, *rest)
