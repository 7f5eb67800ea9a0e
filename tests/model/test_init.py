"""How weights start: of what spread, which ones alike, and no two of them by accident."""

import itertools

import jax
import numpy as np
import pytest
from conftest import altered, make_mesh

from retro_jax.methods.ngram_memory import NGramMemory
from retro_jax.model import functional
from retro_jax.model.retro import stacks

VOCAB = 300


@pytest.fixture(scope="module")
def wide(tiny):
    """Wide enough that a spread can be measured; groups of layers that are stacked several times; an encoder of the
    decoder's width."""
    return altered(
        tiny,
        decoder={"d": 64, "layers": 6, "heads": 4, "head_size": 32},
        encoder={"d": 64, "layers": 2, "heads": 4, "head_size": 32},
        reading={"cca_layers": (3, 5)},
    )


@pytest.fixture(scope="module")
def params(wide):
    with jax.set_mesh(make_mesh(1, 1, 1)):
        return {n: np.asarray(x) for n, x in functional.init(wide, VOCAB, 0).items()}


def test_spreads_are_those_of_the_fan_in_and_of_the_depth(params, wide):
    d, inner, ffw = 64, 4 * 32, 4 * 64
    depth, encoder_depth = (2 * 6) ** -0.5, (2 * 2) ** -0.5
    found, expected = {}, {}
    for name, x in params.items():
        last, shrunk = name.rpartition(".")[2], encoder_depth if "encoder" in name else depth
        std = {
            "embedding": d**-0.5, "query": d**-0.5, "key": d**-0.5, "value": d**-0.5, "position": d**-0.5,
            "position_bias": 1.5, "content_bias": 0, "up": d**-0.5, "down": ffw**-0.5 * shrunk,
            # as large as if it were drawn for its own inputs, though it is the transpose of W_v
            "out": inner**-0.5 * shrunk,
        }  # fmt: skip
        if last == "scale":
            assert (x == 1).all(), name
        else:
            found[name], expected[name] = x.std(), std[last]
    for name, value in expected.items():
        # (The position bias has 128 numbers, and its sample's spread a twelfth of error.)
        assert found[name] == pytest.approx(value, rel=0.3 if "bias" in name else 0.05), name
    assert params["stacks.0.0.feed_forward.up"].shape[-1] == ffw


def test_an_attention_gives_back_what_it_finds(params):
    """W_o is the transpose of W_v, everywhere; W_k is W_q in cross-attention, and nowhere else."""
    for name in (n for n in params if n.endswith(".query")):
        of = name.removesuffix("query")
        value, out = params[of + "value"], params[of + "out"]
        transposed = np.moveaxis(value, -3, -1)[..., None, :, :]
        np.testing.assert_allclose(out / out.std(), transposed / value.std(), rtol=1e-3, atol=1e-3)
        alike = np.array_equal(params[of + "key"], params[name][..., 0, :])
        assert alike == ("cca" in name or "cross" in name), name


def test_no_two_weights_are_alike(params):
    """Each name and each layer is drawn for itself."""
    drawn = {}
    for name, x in params.items():
        if name.endswith((".query", ".value", ".position", ".up", ".down", "embedding")):
            layers = x if name.startswith("stacks.") else [x]
            drawn |= {(name, i): layer.ravel()[:512] for i, layer in enumerate(layers)}
    for (a, x), (b, y) in itertools.combinations(drawn.items(), 2):
        assert abs(np.corrcoef(x, y)[0, 1]) < 0.3, (a, b)


def test_a_seed_gives_the_same_and_another_others(params, wide, mesh):
    again = functional.init(wide, VOCAB, 0)
    other = functional.init(wide, VOCAB, 1, but=frozenset({"embedding"}))
    assert "embedding" not in other
    name = "stacks.0.0.attention.query"
    np.testing.assert_array_equal(params[name], again[name])
    assert not np.array_equal(params[name], other[name])


def test_a_memory_of_n_grams_starts_as_deep_as_other_layers_do(wide, mesh):
    memory = NGramMemory(wide)
    params = memory.init(VOCAB, 0)
    joined = params["memory.value"].shape[0]
    expected = joined**-0.5 * (2 * 6) ** -0.5
    assert np.std(params["memory.value"]) == pytest.approx(expected, rel=0.05)


def test_layers_of_equal_build_stand_in_one_stack(tiny):
    plain, reads = (False,), (True,)
    for layers, cca, expected in (
        (12, (6, 9, 12), [(plain, 5), (reads, 1), ((False, False, True), 2)]),
        (8, (1, 3, 4, 5), [(reads, 1), ((False, True), 1), (reads, 2), (plain, 3)]),
        (4, (2,), [(plain, 1), (reads, 1), (plain, 2)]),
    ):
        config = altered(tiny, decoder={"layers": layers}, reading={"cca_layers": cca})
        assert stacks(config) == expected
