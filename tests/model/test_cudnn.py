"""cuDNN's attention says what the reference says, forward and backward: here by XLA, with the same arguments, and
lowered for a GPU, which is where it would run."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import make_mesh
from jax._src.cudnn import fused_attention_stablehlo
from test_attention import example, f32

from retro_jax.errors import UserError
from retro_jax.model.attend import attend, attend_causal, softmax_read
from retro_jax.model.cudnn import check_chip, cudnn_causal, cudnn_read
from retro_jax.model.layers import ROWS
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


def test_for_a_gpu_it_is_cudnns_kernels_on_each_chips_part(monkeypatch):
    """Lowered, as no GPU is at hand: two sequences and two heads for each."""
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)
    read = functools.partial(cudnn_read, causal=True, how="cudnn")

    def loss(table, q, k, v, mask, u, w):
        y, _ = attend(q, k, v, mask, (table, u, w), causal_from=0, read=read)
        return y.astype(jnp.float32).sum()

    on = make_mesh(1, 4, 2)
    with jax.set_mesh(on):

        def shaped(*shape, spec=ROWS, dtype=jnp.bfloat16):
            return jax.ShapeDtypeStruct(shape, dtype, sharding=jax.NamedSharding(on, spec))

        heads = jax.P(ROWS[0], None, None, "model", None, None)
        keys = jax.P(ROWS[0], None, None, None, "model", None)
        bias = shaped(4, 1, 8, spec=jax.P("model"))
        given = (
            shaped(129, 4, 1, 8, spec=jax.P(None, "model")), shaped(8, 1, 128, 4, 1, 8, spec=heads),
            *[shaped(8, 1, 1, 128, 4, 8, spec=keys)] * 2, shaped(8, 1, 1, 128, dtype=bool), bias, bias,
        )  # fmt: skip
        gradient = jax.jit(jax.grad(loss, argnums=range(4)))
        text = gradient.trace(*given).lower(lowering_platforms=("cuda",)).as_text()
    assert "@__cudnn$fmhaScaleBiasSoftmax(" in text
    assert "@__cudnn$fmhaScaleBiasSoftmaxBackward(" in text
    assert "tensor<2x2x128x128xbf16>" in text  # what positions add, of one chip


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("tpu", "bfloat16", 64), "not for a tpu; set it to flash"),
        (("gpu", "float32", 64), "model.dtype = 'float32': cuDNN's attention computes in bfloat16"),
        (("gpu", "bfloat16", 20), "a multiple of 8 numbers, at most 128, and not of 20"),
    ],
)
def test_what_it_cannot_do_is_said(given, message):
    with pytest.raises(UserError, match=message):
        check_chip(*given)
