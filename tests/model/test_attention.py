"""Attention and positions, each promise alone; `test_oracle.py` holds the whole to the paper."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.extend.core import jaxprs_in_params

from retro_jax.config import DecoderConfig, ModelConfig
from retro_jax.model.attend import attend, attend_causal, self_distances
from retro_jax.model.attention import Attention, Heads
from retro_jax.model.positions import distances, rotate, rotations, shift, sinusoid


def attend_by_loops(q, k, v, mask, r, u, w, offset, causal=False):
    """One (query, memory, key) at a time, in float64: equation 3 with Transformer-XL positions.

    Shapes as in `attend`; r(distance) -> [N, A, H].
    """
    out = np.zeros(q.shape)
    for b, g, i, n, a in np.ndindex(q.shape[:-1]):
        logits = np.full(k.shape[2:4], -np.inf)
        for m, j in np.ndindex(logits.shape):
            if mask[b, g, m, j] and (not causal or j <= i + offset):
                content = (q[b, g, i, n, a] + u[n, a]) @ k[b, g, m, j, n]
                position = (q[b, g, i, n, a] + w[n, a]) @ r(i - j + offset)[n, a]
                logits[m, j] = (content + position) / np.sqrt(q.shape[-1])
        if np.isfinite(logits).any():
            weights = np.exp(logits - logits.max())
            weights /= weights.sum()
            out[b, g, i, n, a] = np.einsum("mj,mjh->h", weights, v[b, g, :, :, n])
    return out


def example(queries, keys, memories, heads=2, each=1, size=4, width=6, groups=3, seed=0):
    """(q, k, v, mask, W_r, u, w), drawn at random; the first group's keys are all masked."""
    rng = np.random.default_rng(seed)
    q = rng.normal(size=(2, groups, queries, heads, each, size))
    k, v = rng.normal(size=(2, 2, groups, memories, keys, heads, size))
    mask = rng.random((2, groups, memories, keys)) < 0.6
    mask[0, 0] = False
    u, w = rng.normal(size=(2, heads, each, size))
    return q, k, v, mask, rng.normal(size=(width, heads, each, size)), u, w


def table_of(steps, w_r):
    return np.einsum("sd,dnah->snah", np.asarray(sinusoid(steps, len(w_r))), w_r)


def by_distance(w_r):
    return lambda distance: table_of(np.array([distance]), w_r)[0]


def f32(*arrays):
    return [jnp.asarray(a, jnp.float32) for a in arrays]


@pytest.mark.parametrize(
    ("queries", "keys", "memories", "offset", "each"),
    # the last two with more than one window of distances
    [
        (5, 5, 1, 0, 1),
        (4, 8, 2, 3, 1),
        (8, 4, 1, 0, 2),
        (1, 3, 5, -2, 3),
        (16, 8, 2, 0, 1),
        (24, 5, 1, 3, 2),
    ],
)
def test_attend_equals_loops(mesh, queries, keys, memories, offset, each):
    q, k, v, mask, w_r, u, w = example(queries, keys, memories, each=each)
    table = table_of(distances(queries, keys, offset, causal=False), w_r)
    got, _ = attend(*f32(q, k, v), jnp.asarray(mask), tuple(f32(table, u, w)))
    expected = attend_by_loops(q, k, v, mask, by_distance(w_r), u, w, offset)
    np.testing.assert_allclose(got, expected, rtol=2e-5, atol=2e-5)
    assert not np.any(np.asarray(got)[0, 0])  # no key at all


@pytest.mark.parametrize("block", [16, 5, 4, 1])
@pytest.mark.parametrize("relative", [True, False])
def test_blockwise_self_attention_equals_the_whole(mesh, block, relative):
    """13 queries: one block; 3 blocks, the last not full; 4; and 13, more than there are segments."""
    q, k, v, mask, w_r, u, w = example(13, 13, 1, groups=1)
    table = table_of(self_distances(13, block), w_r)
    given = tuple(f32(table, u, w)) if relative else None

    def total(q, k, v):
        return attend_causal(q, k, v, jnp.asarray(mask), given, block)

    got = jax.jit(total)(*f32(q, k, v))
    r, u, w = (by_distance(w_r), u, w) if relative else (lambda d: 0 * u, 0 * u, 0 * w)
    expected = attend_by_loops(q, k, v, mask, r, u, w, offset=0, causal=True)
    np.testing.assert_allclose(got, expected, rtol=2e-5, atol=2e-5)


def test_blockwise_self_attention_has_the_gradient_of_the_whole(mesh):
    q, k, v, mask, w_r, u, w = example(13, 13, 1, groups=1)

    def gradient(block):
        def total(q, k, v, w_r, u, w):
            table = jnp.einsum("sd,dnah->snah", sinusoid(self_distances(13, block), 6), w_r)
            y = attend_causal(q, k, v, jnp.asarray(mask), (table, u, w), block)
            return (y * jnp.asarray(q, jnp.float32)[..., ::-1]).sum()

        return jax.jit(jax.grad(total, argnums=range(6)))(*f32(q, k, v, w_r, u, w))

    for whole, blocks in zip(gradient(13), gradient(3)):
        np.testing.assert_allclose(blocks, whole, rtol=2e-4, atol=2e-5)


def test_memory_of_blockwise_self_attention_grows_with_the_length_not_its_square(mesh):
    def bytes_of(length, block):
        q = jnp.zeros((1, 1, length, 1, 1, 8))
        kv = jnp.zeros((1, 1, 1, length, 1, 8))
        mask = jnp.ones((1, 1, 1, length), bool)

        def total(q, k, v, m):
            return attend_causal(q, k, v, m, None, block).sum()

        compiled = jax.jit(jax.grad(total)).lower(q, kv, kv, mask).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert bytes_of(4096, 128) < 3 * bytes_of(2048, 128)
    assert bytes_of(4096, 128) < bytes_of(4096, 4096) / 8


def test_shift_puts_every_distance_at_its_key():
    for queries, keys, causal in ((4, 4, True), (4, 4, False), (3, 7, False), (7, 3, False)):
        steps = distances(queries, keys, 5, causal)
        x = jnp.broadcast_to(jnp.asarray(steps), (queries, len(steps)))
        got = np.asarray(shift(x, keys))
        for i, j in np.ndindex(queries, keys):
            if not causal or j <= i:
                assert got[i, j] == i - j + 5


def test_ranges_of_distances_are_the_papers():
    # Appendix B.1.2 at m = 64, r = 128.
    for shape, farthest, nearest in (((64, 128, 63), 126, -64), ((128, 64, 0), 127, -63)):
        steps = distances(*shape, causal=False)[1:]  # entry 0 is of no pair
        assert (steps.max(), steps.min(), len(steps)) == (farthest, nearest, 191)


def test_sinusoid_is_exact_at_long_distances_and_odd_in_sign():
    steps = np.array([2047, -2047, 1])
    table = np.asarray(sinusoid(steps, 64), np.float64)
    frequencies = 10000.0 ** (-np.arange(0, 64, 2) / 64)
    np.testing.assert_allclose(table[0, :32], np.sin(2047 * frequencies), atol=1e-6)
    np.testing.assert_allclose(table[1, :32], -table[0, :32], atol=1e-6)


def test_positions_of_a_bfloat16_model_tell_long_distances_apart(mesh):
    """The table in bfloat16 is the exact one rounded once: 2047 is not taken for 2048 (trap 34)."""
    steps = np.arange(2040, 2048)
    heads = Heads(d=64, memory=64, heads=1, kv_heads=1, size=64, positions="relative", cross=False)
    config = ModelConfig(decoder=DecoderConfig(d=64), dtype="bfloat16")
    attention = Attention(config, heads, nnx.Param, 1.0)
    attention.position = nnx.Param(jnp.eye(64).reshape(64, 1, 1, 64))
    table = attention.relative(steps, jnp.bfloat16)[0]
    angles = steps[:, None] * 10000.0 ** (-np.arange(0, 64, 2) / 64)
    exact = np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)
    assert table.dtype == jnp.bfloat16
    got = np.asarray(table.astype(jnp.float32)).reshape(8, 64)
    np.testing.assert_allclose(got, exact, rtol=2**-8, atol=1e-5)


@pytest.mark.parametrize("share", [1.0, 0.25])
def test_rotary_logits_depend_on_the_distance_alone(share):
    rng = np.random.default_rng(0)
    q, k = (np.broadcast_to(rng.normal(size=8), (1, 9, 8)) for _ in range(2))
    turn = rotations(DecoderConfig(head_size=8, rotary_share=share), np.arange(9))
    q, k = (np.asarray(rotate(jnp.asarray(x, jnp.float32), *turn))[0] for x in (q, k))
    logits = q @ k.T
    for distance in range(-8, 9):
        diagonal = np.diagonal(logits, -distance)
        np.testing.assert_allclose(diagonal, diagonal[0], atol=1e-5)
    assert np.abs(logits[:, 0] - logits[0, 0]).max() > 1e-3
    np.testing.assert_array_equal(
        q[:, int(8 * share) :], np.broadcast_to(q[0], q.shape)[:, int(8 * share) :]
    )


def test_positions_are_told_apart_for_every_query(mesh):
    """With content silenced, each attending position has its own attention pattern (trap 7)."""
    m, retrieved = 4, 8
    rng = np.random.default_rng(0)
    table = table_of(distances(m, retrieved, m - 1, False), rng.normal(size=(8, 1, 1, 8)))
    q = np.zeros((1, 1, m, 1, 1, 8))
    k = np.zeros((1, 1, 1, retrieved, 1, 8))
    v = np.eye(retrieved)[None, None, None, :, None, :]
    u, w = np.zeros((1, 1, 8)), np.ones((1, 1, 8))
    mask = jnp.ones((1, 1, 1, retrieved), bool)
    y, _ = attend(*f32(q, k, v), mask, tuple(f32(table, u, w)))
    patterns = np.asarray(y)[0, 0, :, 0, 0]  # [m, retrieved]
    for i in range(1, m):
        assert np.abs(patterns[i] - patterns[i - 1]).max() > 1e-3
    # logits depend on the distance alone: one step of the query shifts the pattern by one key
    ratio = patterns[1:, 1:] / patterns[:-1, :-1]
    np.testing.assert_allclose(ratio, np.broadcast_to(ratio[:, :1], ratio.shape), rtol=1e-4)


def test_one_softmax_over_all_neighbours(mesh):
    """A neighbour whose keys fit far better takes all the weight (not softmax per neighbour)."""
    q = jnp.ones((1, 1, 1, 1, 1, 4))
    k = jnp.stack([jnp.full((3, 1, 4), 50.0), jnp.zeros((3, 1, 4))])[None, None]
    v = jnp.stack([jnp.ones((3, 1, 4)), jnp.zeros((3, 1, 4))])[None, None]
    out, mass = attend(q, k, v, jnp.ones((1, 1, 2, 3), bool), statistics=True)
    np.testing.assert_allclose(out, 1.0, atol=1e-6)
    np.testing.assert_allclose(np.asarray(mass)[0, 0, 0].sum(-1), [1, 0], atol=1e-6)


def test_attention_mass_is_the_softmax_summed_over_each_half_of_a_neighbour(mesh):
    q, k, v, mask, *_ = example(4, 6, 3, heads=2, each=2)
    _, mass = attend(*f32(q, k, v), jnp.asarray(mask), statistics=True)
    for half, keys in enumerate((slice(0, 3), slice(3, 6))):
        # The mass on some keys is what is read from values that are 1 there and 0 elsewhere.
        ones = np.zeros_like(v)
        for memory in range(3):
            ones[:], ones[:, :, memory, keys] = 0, 1
            read = attend_by_loops(q, k, ones, mask, lambda d: np.zeros(q.shape[3:]), 0 * q[0, 0, 0],
                                   0 * q[0, 0, 0], 0)  # fmt: skip
            np.testing.assert_allclose(
                mass[..., memory, half], read[..., 0].mean((-2, -1)), atol=1e-5
            )
    # With "values" each key counts as long as its value is.
    _, weighed = attend(*f32(q, k, v), jnp.asarray(mask), statistics="values")
    long = np.broadcast_to(np.linalg.norm(v, axis=-1, keepdims=True), v.shape)
    read = attend_by_loops(q, k, long, mask, lambda d: np.zeros(q.shape[3:]), 0 * q[0, 0, 0],
                           0 * q[0, 0, 0], 0)  # fmt: skip
    np.testing.assert_allclose(weighed.sum((-2, -1)), read[..., 0].mean((-2, -1)), atol=1e-5)


def test_attention_mass_is_what_nothing_leaves(mesh):
    q, k, v, mask, *_ = example(4, 6, 3)
    mask[0, 0] = False  # no key: nothing is all there is
    for logit, left in ((-1e4, 1.0), (1e4, 0.0)):
        nothing = jnp.full(q.shape[:-1], logit)
        y, mass = attend(*f32(q, k, v), jnp.asarray(mask), statistics=True, nothing=nothing)
        total = mass.sum((-2, -1))  # [B, G, I]
        expected = np.where(mask.any((-2, -1)), left, 0)[:, :, None]
        np.testing.assert_allclose(total, np.broadcast_to(expected, total.shape), atol=1e-6)
        alone, _ = attend(*f32(q, k, v), jnp.asarray(mask))
        np.testing.assert_allclose(y, left * alone, atol=1e-6)


def equations(jaxpr):
    """All equations of a traced program, those of its inner programs too."""
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in jaxprs_in_params(eqn.params):
            yield from equations(inner)


@pytest.mark.parametrize("causal", [True, False])
def test_no_array_has_queries_keys_and_width_together(mesh, causal):
    """Relative positions without a [I, J, D] tensor and without a gather (they are shifted), forward
    and backward."""
    q, k, v, mask, w_r, u, w = example(64, 32 if not causal else 64, 1, groups=1, size=16)
    steps = self_distances(64, 64) if causal else distances(64, 32, 0, False)

    def total(q, k, v, table, u, w):
        given = (jnp.asarray(mask), (table, u, w))
        if causal:
            return attend_causal(q, k, v, *given, 64).sum()
        return attend(q, k, v, *given)[0].sum()

    traced = jax.make_jaxpr(jax.grad(total, argnums=range(6)))(
        *f32(q, k, v, table_of(steps, w_r), u, w)
    )
    found = list(equations(traced.jaxpr))
    assert "dot_general" in {eqn.primitive.name for eqn in found}
    assert "gather" not in {eqn.primitive.name for eqn in found}
    largest = max(np.prod(out.aval.shape) for eqn in found for out in eqn.outvars)
    assert largest <= 2 * 2 * 64 * 66  # batch x heads x queries x distances


@pytest.mark.parametrize("null", [False, True])
def test_the_gradient_is_that_of_the_definition(mesh, null):
    """Of every input, several windows and memories, heads that share keys, one more key of value 0:
    against JAX's own."""
    q, k, v, mask, w_r, u, w = example(16, 8, 2, each=2, groups=2)
    steps, rng = distances(16, 8, 3, causal=False), np.random.default_rng(1)
    weights, nothing = rng.normal(size=q.shape), rng.normal(size=q.shape[:-1])

    def plain(q, k, v, table, u, w, nothing):
        at = np.array([[list(steps).index(i - j + 3) for j in range(8)] for i in range(16)])
        logits = jnp.einsum("bginah,bgmjnh->bginamj", q + u, k)
        logits += jnp.einsum("bginah,ijnah->bginaj", q + w, table[at])[..., None, :]
        logits = jnp.where(mask[:, :, None, None, None], logits / 2, -1e30)  # H = 4
        flat = logits.reshape(*logits.shape[:-2], -1)
        if null:
            flat = jnp.concatenate([flat, nothing[..., None]], axis=-1)
        read = jax.nn.softmax(flat)[..., :16].reshape(logits.shape)
        read *= mask.any((-2, -1))[:, :, None, None, None, None, None]
        return (jnp.einsum("bginamj,bgmjnh->bginah", read, v) * weights).sum()

    def ours(q, k, v, table, u, w, nothing):
        given = (jnp.asarray(mask), (table, u, w))
        y, _ = attend(q, k, v, *given, nothing=nothing if null else None)
        return (y * weights).sum()

    given = f32(q, k, v, table_of(steps, w_r), u, w, nothing)
    expected = jax.jit(jax.grad(plain, argnums=range(7)))(*given)
    for got, truth in zip(jax.jit(jax.grad(ours, argnums=range(7)))(*given), expected):
        np.testing.assert_allclose(got, truth, rtol=1e-4, atol=1e-4)
