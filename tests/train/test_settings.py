"""Which fields of a config a trained model depends on."""

from conftest import altered

from retro_jax.config import Experiment
from retro_jax.methods.method import method_of
from retro_jax.train.restore import settings_of


def differing(method: str, **changes) -> set[str]:
    """Names of the settings that changes of an experiment change."""
    before, after = (
        settings_of(e, method_of(e, method))
        for e in (Experiment(), altered(Experiment(), **changes))
    )
    assert before.keys() == after.keys()
    return {name for name in before if before[name] != after[name]}


def test_a_language_model_depends_on_nothing_that_retrieval_adds():
    for part, values, name in (
        ("encoder", {"d": 64}, "model.encoder.d"),
        ("encoder", {"final_norm": False}, "model.encoder.final_norm"),
        ("reading", {"null_key": True}, "model.reading.null_key"),
        ("reading", {"positions": "none"}, "model.reading.positions"),
    ):
        assert differing("retro", model={part: values}) == {name}
        assert differing("language_model", model={part: values}) == set()
    for values, name in (({"d": 64}, "model.decoder.d"), ({"norm": "layer"}, "model.decoder.norm")):
        assert differing("retro", model={"decoder": values}) == {name}
        assert differing("language_model", model={"decoder": values}) == {name}
    assert differing("language_model", model={"dtype": "bfloat16"}) == {"model.dtype"}
    # By these the weights of its layers are stacked: with others its checkpoint cannot be read.
    layers = {"reading": {"cca_layers": (6,)}}
    assert differing("language_model", model=layers) == {"model.reading.cca_layers"}
    taught = {"method_settings": {"retro": {"own_continuation": 0.5}}}
    assert differing("retro", **taught) == {"method_settings.retro.own_continuation"}
    assert differing("language_model", **taught) == set()
    kept = {"own_continuation_kept": 0.5, "own_continuation_kept_steps": 400}
    assert differing("retro", method_settings={"retro": kept}) == {
        f"method_settings.retro.{name}" for name in kept
    }


def test_a_run_whose_rate_is_constant_may_be_given_more_steps():
    assert differing("retro", train={"steps": 7}) == {"train.steps"}
    before, after = (
        altered(Experiment(), train={"schedule": "constant", "steps": n}) for n in (5, 7)
    )
    assert settings_of(before, method_of(before, "retro")) == settings_of(
        after, method_of(after, "retro")
    )


def test_how_it_is_computed_kept_and_told_may_change():
    for changes in (
        {"model": {"remat": "full", "attention_block": 64}},
        {"train": {"accumulate": 2, "nonfinite": "skip", "keep": 5, "validate": 0, "log_every": 1}},
    ):
        assert differing("retro", **changes) == differing("language_model", **changes) == set()
