"""What every method of the table promises: its ways to predict say the same."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import drawn, small_experiment
from toys.cautious import Cautious

from retro_jax.config import DecoderConfig, EncoderConfig, ModelConfig, ReadingConfig
from retro_jax.errors import UserError
from retro_jax.methods import method
from retro_jax.methods.method import METHODS

VOCAB, LENGTH, PROMPT = 50, 11, 6


@pytest.mark.parametrize("name", METHODS)
def test_scores_and_steps_say_what_logprobs_says(name, tiny, mesh):
    """Of texts for which nothing was retrieved. (With neighbours: model/test_decode.py.)"""
    m = METHODS[name](tiny, 2)
    params = drawn(tiny, METHODS[m.trained_as](tiny, 2).shapes(VOCAB))
    tokens = np.random.default_rng(0).integers(1, VOCAB, (2, LENGTH)).astype(np.int32)
    given = jax.device_put(tokens, jax.P(("replica", "data")))
    expected = np.asarray(jax.jit(lambda p, t: m.logprobs(p, t, None))(params, given))
    scored, best, top = jax.jit(lambda p, t: m.scores(p, t, None, ()))(params, given)
    np.testing.assert_allclose(scored, expected, atol=1e-5)

    def put(x):
        return jax.device_put(np.asarray(x, np.int32), jax.P(("replica", "data")))

    net, every = m.decoder(dict(params)), tiny.reading.chunk
    none = np.zeros((2, -(-PROMPT // every), 0, tiny.reading.retrieved))
    state = m.start(net, 2, LENGTH + 1, 0)
    read = jax.jit(m.prefill)
    logits, state = read(
        net, state, put(tokens[:, :PROMPT]), put([PROMPT] * 2), method.Retrieved(put(none))
    )
    step = jax.jit(lambda net, state, t: m.step(net, state, t))
    for t in range(PROMPT, LENGTH):
        said = np.asarray(jax.nn.log_softmax(jnp.asarray(logits)))
        np.testing.assert_allclose(said[range(2), tokens[:, t]], expected[:, t], atol=1e-4)
        np.testing.assert_array_equal(said.argmax(1), np.asarray(best)[:, t])
        np.testing.assert_allclose(said.max(1), np.asarray(top)[:, t], atol=1e-4)
        logits, state = step(net, state, put(tokens[:, t]))


SIZES = {
    "as small as the quickstart": (
        {"d": 128, "layers": 4, "heads": 4, "head_size": 32}, {"d": 128, "layers": 1, "heads": 4, "head_size": 32},
        (2,), 768, 4096,
    ),
    "rotary, gated, grouped heads": (
        {"d": 96, "layers": 6, "heads": 6, "head_size": 16, "kv_heads": 2, "positions": "rotary", "gated": True},
        {"d": 64, "layers": 2, "heads": 4, "head_size": 16}, (3, 6), 1536, 1000,
    ),
}  # fmt: skip


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", METHODS)
def test_the_formula_gives_what_the_traced_program_has(name, size):
    """Within a tenth: the closed form leaves out what is filled up."""
    decoder, encoder, cca, length, vocab = SIZES[size]
    config = ModelConfig(
        DecoderConfig(**decoder), EncoderConfig(**encoder), ReadingConfig(cca_layers=cca)
    )
    m = METHODS[name](config, 2, None, length)
    assert m.formula(vocab, length) == pytest.approx(m.flops(vocab, length), rel=0.1)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("toys.cautios:Cautious", "methods 'careful' is to be toys.cautios:Cautious: No module"),
        ("toys.cautious:Cautios", "is to be toys.cautious:Cautios: .*no attribute 'Cautios'"),
        ("toys.cautious:Cautious", "is toys.cautious:Cautious, whose own name is 'cautious'"),
    ],
)
def test_a_wrong_line_of_the_table_is_named(line, message, monkeypatch):
    monkeypatch.setitem(METHODS._entries, "careful", line)
    with pytest.raises(UserError, match=message):
        METHODS["careful"]


def test_weights_of_a_method_that_there_is_not_are_refused_first(monkeypatch):
    monkeypatch.setitem(METHODS._entries, "cautious", "toys.cautious:Cautious")
    monkeypatch.setattr(Cautious, "weights_of", "languagemodel")
    with pytest.raises(UserError, match=r"'languagemodel'.*did you mean language_model"):
        method.check(small_experiment(Path("x"), ("retro", "cautious")))
