"""The parts of the network, each against NumPy."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import drawn
from flax import nnx
from scipy.special import erf

from retro_jax.config import DecoderConfig, ModelConfig
from retro_jax.model.attention import Attention, Heads
from retro_jax.model.layers import FeedForward, Norm
from retro_jax.model.positions import rotations

D, INNER = 6, 10
rng = np.random.default_rng(0)


def filled(module: nnx.Module) -> dict[str, np.ndarray]:
    """Gives a module random weights, and returns them by name."""
    flat = nnx.to_flat_state(nnx.state(module))
    shapes = {".".join(map(str, path)): x.shape for path, x in flat}
    values = drawn(ModelConfig(DecoderConfig(heads=2, head_size=4)), shapes)
    for (_, leaf), value in zip(flat, values.values()):
        leaf[...] = value
    nnx.update(module, nnx.from_flat_state(flat))
    return {name: np.asarray(x) for name, x in values.items()}


@pytest.mark.parametrize("kind", ["rms", "layer"])
@pytest.mark.parametrize("offset", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_norms(mesh, kind, offset, bias):
    config = DecoderConfig(norm=kind, norm_unit_offset=offset, norm_bias=bias, norm_eps=0.1)
    norm = Norm(config, D, nnx.Param)
    assert norm.scale.fill == (0.0 if offset else 1.0)  # which `init` starts it with
    p, x = filled(norm), rng.normal(size=(2, 3, D)).astype(np.float32)
    centred = x - x.mean(-1, keepdims=True) * (kind == "layer")
    expected = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 0.1)
    expected = expected * (p["scale"] + offset) + (p["shift_bias"] if bias else 0)
    np.testing.assert_allclose(norm(jnp.asarray(x)), expected, atol=1e-5)


ACTIVATIONS = {
    "gelu": lambda x: x * 0.5 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    "gelu_exact": lambda x: x * 0.5 * (1 + erf(x / np.sqrt(2))),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "relu": lambda x: np.maximum(x, 0),
}


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("gated", "bias"), [(False, False), (True, False), (False, True)])
def test_feed_forward(mesh, activation, gated, bias):
    config = DecoderConfig(activation=activation, gated=gated, ffw_bias=bias)
    layer = FeedForward(config, D, INNER, nnx.Param, 1.0)
    p, x = filled(layer), rng.normal(size=(2, 3, D)).astype(np.float32)
    up, act = x @ p["up"] + (p["up_bias"] if bias else 0), ACTIVATIONS[activation]
    expected = (up * act(x @ p["gate"]) if gated else act(up)) @ p["down"]
    expected = expected + (p["down_bias"] if bias else 0)
    np.testing.assert_allclose(layer(jnp.asarray(x)), expected, atol=1e-4)


def test_biases_and_norms_of_an_attention(mesh):
    """Of two heads of keys for four of queries."""
    decoder = DecoderConfig(qkv_bias=True, out_bias=True)
    heads = Heads(D, D, 4, 2, 4, "none", cross=False, qk_norm=True)
    layer = Attention(ModelConfig(decoder), heads, nnx.Param, 1.0)
    p, x = filled(layer), rng.normal(size=(1, 1, 3, D)).astype(np.float32)

    def normed(y, name):
        return y / np.sqrt((y**2).mean(-1, keepdims=True) + 1e-6) * p[f"{name}_norm.scale"]

    q = np.einsum("bgid,dnah->bginah", x, p["query"]) + p["query_bias"]
    k = np.einsum("bgid,dnh->bginh", x, p["key"]) + p["key_bias"]
    v = np.einsum("bgid,dnh->bginh", x, p["value"]) + p["value_bias"]
    q, k = normed(q, "query"), normed(k, "key")
    np.testing.assert_allclose(layer.queries(jnp.asarray(x)), q, atol=1e-5)
    for got, expected in zip(layer.keys_values(jnp.asarray(x)), (k, v)):
        np.testing.assert_allclose(got, expected, atol=1e-5)
    weights = np.exp(np.einsum("bginah,bgjnh->bgnaij", q, k) / np.sqrt(4))
    weights[..., 2] = 0  # a key that the mask leaves out
    weights /= weights.sum(-1, keepdims=True)
    read = np.einsum("bgnaij,bgjnh->bginah", weights, v)
    expected = np.einsum("bginah,nahd->bgid", read, p["out"]) + p["out_bias"]
    mask = jnp.array([[[[True, True, False]]]])
    given = jnp.asarray(x)
    np.testing.assert_allclose(layer(given, given[:, :, None], mask)[0], expected, atol=1e-5)
    nothing = layer(given, given[:, :, None], mask & False)[0]
    assert not jnp.any(nothing)  # no bias either


def test_only_what_the_config_asks_for_has_weights(mesh):
    plain = {"query", "key", "value", "out"}
    for changes, heads, added in (
        ({}, {}, set()),
        ({}, {"positions": "relative"}, {"position", "content_bias", "position_bias"}),
        ({}, {"qk_norm": True}, {"query_norm", "key_norm"}),
        ({"qkv_bias": True}, {}, {"query_bias", "key_bias", "value_bias"}),
        ({"out_bias": True}, {}, {"out_bias"}),
    ):
        of = Heads(**{"d": D, "memory": D, "heads": 2, "kv_heads": 2, "size": 4, "positions": "none",
                      "cross": False} | heads)  # fmt: skip
        layer = Attention(ModelConfig(DecoderConfig(**changes)), of, nnx.Param, 1.0)
        assert {path[0] for path, _ in nnx.to_flat_state(nnx.state(layer))} == plain | added


def test_rotary_angles_of_a_context_that_was_made_longer():
    c = DecoderConfig(positions="rotary", head_size=16, rotary_base=100.0)
    at, pair = np.arange(50.0), np.arange(8)
    speed = 100.0 ** (-pair / 8)
    low, high, length, factor = 1.0, 4.0, 24.0, 8.0
    turns = length * speed / (2 * np.pi)
    assert turns[0] < high
    assert turns[-1] < low < turns[1]
    llama = [
        s / factor if t < low else s if t > high
        else (share := (t - low) / (high - low)) * s + (1 - share) * s / factor
        for s, t in zip(speed, turns)
    ]  # fmt: skip
    for scaling, expected in (((), speed), ((3.0,), speed / 3), ((8.0, low, high, length), llama)):
        sin, cos = rotations(dataclasses.replace(c, rotary_scaling=scaling), at)
        angles = at[:, None] * np.array(expected)
        np.testing.assert_allclose(sin, np.sin(angles), atol=1e-5)
        np.testing.assert_allclose(cos, np.cos(angles), atol=1e-5)
    # What turns often within the old context keeps its speed.
    sin, _ = rotations(dataclasses.replace(c, rotary_scaling=(8.0, 0.1, 0.2, 24.0)), at)
    np.testing.assert_allclose(sin[:, 0], np.sin(at), atol=1e-5)
