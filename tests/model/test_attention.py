"""The fast attention against plain loops written from the paper's equations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from retro_jax.model.attention import Attention, RetroParam, attend, distances, shift, sinusoid
from retro_jax.model.retro import CrossAttention, chunked_cross_attention


def attend_by_loops(q, k, v, r, u, w, mask, offset):
    """Equation 3 with Transformer-XL positions, one (query, memory, key) at a time, in float64.

    q [B, G, I, N, H], k and v [B, G, K, J, N, H], mask [B, G, I, K, J]; r(distance) -> [N, H].
    """
    batch, groups, queries, heads, size = q.shape
    memories, keys = k.shape[2:4]
    out = np.zeros(q.shape)
    for b, g, i, n in np.ndindex(batch, groups, queries, heads):
        logits = np.full((memories, keys), -np.inf)
        for m, j in np.ndindex(memories, keys):
            if mask[b, g, i, m, j]:
                content = (q[b, g, i, n] + u[n]) @ k[b, g, m, j, n]
                position = (q[b, g, i, n] + w[n]) @ r(i - j + offset)[n]
                logits[m, j] = (content + position) / np.sqrt(size)
        if np.isfinite(logits).any():
            weights = np.exp(logits - logits.max())
            weights /= weights.sum()
            out[b, g, i, n] = np.einsum("mj,mjh->h", weights, v[b, g, :, :, n])
    return out


@pytest.mark.parametrize("shape", [(5, 5, 1, 0), (4, 8, 2, 3), (8, 4, 1, 0), (1, 3, 5, -2)])
def test_attend_equals_loops(mesh, shape):
    queries, keys, memories, offset = shape
    rng = np.random.default_rng(0)
    heads, size, width = 2, 4, 6
    q = rng.normal(size=(2, 3, queries, heads, size))
    k, v = rng.normal(size=(2, 2, 3, memories, keys, heads, size))
    u, w = rng.normal(size=(2, heads, size))
    w_r = rng.normal(size=(width, heads, size))
    mask = rng.random((2, 3, queries, memories, keys)) < 0.6
    mask[0, 0] = False  # a group whose every key is masked

    def r(distance):
        angles = distance * 10000.0 ** (-np.arange(0, width, 2) / width)
        return np.einsum("d,dnh->nh", np.concatenate([np.sin(angles), np.cos(angles)]), w_r)

    steps = distances(queries, keys, offset, causal=False)
    table = np.einsum("sd,dnh->snh", np.asarray(sinusoid(steps, width)), w_r)
    f32 = [jnp.asarray(a, jnp.float32) for a in (q, k, v, table, u, w)]
    got = attend(*f32, jnp.asarray(mask))
    np.testing.assert_allclose(
        got, attend_by_loops(q, k, v, r, u, w, mask, offset), rtol=2e-5, atol=2e-5
    )
    assert not np.any(np.asarray(got)[0, 0])


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


def _cross(mesh):
    cross = CrossAttention(8, 6, 2, 4, jax.random.key(1), RetroParam, 1.0)
    biases = jax.random.normal(jax.random.key(2), (2, 2, 4))
    cross.attention.content_bias[...], cross.attention.position_bias[...] = biases
    return cross


def test_chunked_cross_attention_equals_loops_over_tokens(mesh):
    """Token t attends what chunk floor((t + 1) / m) - 1 retrieved, at distance t - c m - j."""
    m, retrieved, k = 4, 8, 3
    cross = _cross(mesh)
    a = cross.attention
    rng = np.random.default_rng(0)
    for length in (1, 3, 4, 5, 8, 11, 12):
        chunks = -(-length // m)
        h = rng.normal(size=(2, length, 8)).astype(np.float32)
        memory = rng.normal(size=(2, chunks, k, retrieved, 6)).astype(np.float32)
        mask = rng.random((2, chunks, k, retrieved)) < 0.7
        got = np.asarray(chunked_cross_attention(cross, h, memory, jnp.asarray(mask), m))
        x = np.asarray(cross.norm(h), np.float64)
        wq, wk, wv, wr, wo, u, w = (
            np.asarray(p[...], np.float64)
            for p in (a.query, a.key, a.value, a.position, a.out, a.content_bias, a.position_bias)
        )

        def r(distance):
            angles = distance * 10000.0 ** (-np.arange(0, 8, 2) / 8)
            return np.einsum("d,dnh->nh", np.concatenate([np.sin(angles), np.cos(angles)]), wr)  # noqa: B023

        for b, t in np.ndindex(2, length):
            c = (t + 1) // m - 1
            if c < 0:
                assert not got[b, t].any()
                continue
            q = np.einsum("d,dnh->nh", x[b, t], wq)[None, None, None]
            keys, values = (np.einsum("kjd,dnh->kjnh", memory[b, c], p) for p in (wk, wv))
            out = attend_by_loops(
                q, keys[None, None], values[None, None], r, u, w,
                mask[b, c][None, None, None], offset=t - c * m,
            )  # fmt: skip
            np.testing.assert_allclose(
                got[b, t], np.einsum("nh,nhd->d", out[0, 0, 0], wo), rtol=1e-4, atol=1e-5
            )


def test_positions_are_told_apart_for_every_query(mesh):
    """With content silenced, each attending position has its own attention pattern (trap 7)."""
    m, retrieved = 4, 8
    attention = Attention(8, 6, 1, 8, jax.random.key(0), RetroParam, 1.0, cross=True)
    steps = distances(m, retrieved, m - 1, False)
    table = jnp.einsum("sd,dnh->snh", sinusoid(steps, 8), attention.position[...])
    q = jnp.zeros((1, 1, m, 1, 8))
    k = jnp.zeros((1, 1, 1, retrieved, 1, 8))
    v = jnp.eye(retrieved)[None, None, None, :, None, :]
    u, w = jnp.zeros((1, 8)), jnp.full((1, 8), 2.0)
    mask = jnp.ones((1, 1, m, 1, retrieved), bool)
    patterns = np.asarray(attend(q, k, v, table, u, w, mask))[0, 0, :, 0]  # [m, retrieved]
    for i in range(1, m):
        assert np.abs(patterns[i] - patterns[i - 1]).max() > 1e-3
    # logits depend on the distance alone: one step of the query shifts the pattern by one key
    ratio = patterns[1:, 1:] / patterns[:-1, :-1]
    np.testing.assert_allclose(ratio, np.broadcast_to(ratio[:, :1], ratio.shape), rtol=1e-4)


def test_one_softmax_over_all_neighbours(mesh):
    """A neighbour whose keys fit far better takes all the weight (not softmax per neighbour)."""
    q = jnp.ones((1, 1, 1, 1, 4))
    k = jnp.stack([jnp.full((3, 1, 4), 50.0), jnp.zeros((3, 1, 4))])[None, None]
    v = jnp.stack([jnp.ones((3, 1, 4)), jnp.zeros((3, 1, 4))])[None, None]
    table = jnp.zeros((4, 1, 4))
    zero = jnp.zeros((1, 4))
    out = attend(q, k, v, table, zero, zero, jnp.ones((1, 1, 1, 2, 3), bool))
    np.testing.assert_allclose(out, 1.0, atol=1e-6)
