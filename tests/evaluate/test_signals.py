import numpy as np

from retro_jax.evaluate import signals


def rows():
    rng = np.random.default_rng(0)
    n = 3000
    on = rng.random(n)
    return {
        "document": np.repeat(np.arange(30), 100),
        "bytes": rng.integers(1, 8, n),
        "overlap": rng.random(n),
        "on": on,
        "off": on + 0.1 + 0.2 * rng.normal(size=n),
        "random": on + 0.2 * rng.normal(size=n),
    }


def test_bits_per_byte_is_total_bits_over_total_bytes():
    r = rows()
    got = signals.bits_per_byte(r)
    assert set(got) == {"on", "off", "random"}
    np.testing.assert_allclose(got["on"], r["on"].sum() / np.log(2) / r["bytes"].sum())
    keep = r["overlap"] < 0.5
    part = signals.bits_per_byte(r, keep)["off"]
    np.testing.assert_allclose(part, r["off"][keep].sum() / np.log(2) / r["bytes"][keep].sum())
    assert signals.bits_per_byte(r, np.zeros(3000, bool))["on"] is None


def test_an_effect_has_its_value_and_an_interval_that_tells_it_from_none():
    r = rows()
    bits = signals.bits_per_byte(r)
    real = signals.effect(r, "off", "on")
    np.testing.assert_allclose(real["value"], bits["off"] - bits["on"])
    assert 0 < real["low"] < real["value"] < real["high"]
    none = signals.effect(r, "random", "on")
    assert none["low"] < 0 < none["high"]


def test_the_interval_is_over_documents_and_not_tokens():
    """One document carries the whole gain: its tokens are many, but the evidence is one document."""
    r = rows()
    r["off"] = r["on"] + np.where(r["document"] == 0, 5.0, 0.0)
    assert signals.effect(r, "off", "on")["low"] <= 0.0
