"""What to deploy: what was measured, and what the user states, to one answer."""

import pytest

from retro_jax.report.decision import BASE, Stated, decide, warn


def effect(value: float, spread: float = 0.01) -> dict:
    return {"value": value, "low": value - spread, "high": value + spread}


def summary(documents: int = 30, **methods) -> dict:
    """Of methods name=(gain, content or None, gain where little overlaps, ms)."""
    made = {BASE: {"all": {}, "filtered": {}, "ms_per_token": {"1": 1.0}}}
    for name, (gain, content, few, ms) in methods.items():
        made[name] = {
            "all": {"gain": effect(gain)} | ({"content": effect(content)} if content else {}),
            "filtered": {"gain": effect(few), "content": effect(few - 0.02)},
            "ms_per_token": {"1": ms},
        }
    gains = {n: m[0] for n, m in methods.items()}
    pairs = {a: {b: effect(gains[b] - gains[a]) for b in gains} for a in gains}
    return {"methods": made, "documents": documents, "pairs": pairs}


ALL = {
    "retro": (0.08, 0.06, 0.03, 4.0),
    "rag": (0.05, 0.05, 0.0, 9.0),
    "replug": (0.055, 0.05, -0.03, 20.0),
    "knn_lm": (0.10, 0.2, 0.04, 30.0),
}


@pytest.mark.parametrize(
    ("stated", "chosen", "said"),
    [
        ({}, "knn_lm", "gains"),
        ({"latency_ms": 10.0}, "retro", "knn_lm would gain more"),
        ({"database_changes": "daily"}, "retro", "knn_lm would gain more"),
        # rag and replug cannot be told apart: the one that takes less time.
        ({"may": "logits"}, "rag", "cannot tell it from replug"),
        ({"may": "none"}, "rag", "retro would gain more"),
    ],
)
def test_the_best_of_what_is_allowed_is_chosen(stated, chosen, said):
    d = decide(summary(**ALL), Stated(**stated))
    assert (d.word, d.method) == ("deploy", chosen)
    assert said in " ".join([*d.why, *d.changes])


def test_what_only_copies_is_said():
    only = {"replug": ALL["replug"]}
    assert "it loses" in decide(summary(**only), Stated()).why[-1]
    assert "cannot be told from 0" in decide(summary(rag=ALL["rag"]), Stated()).why[-1]
    assert (
        "random neighbours would do as well"
        in decide(summary(retro=ALL["retro"]), Stated()).why[-1]
    )
    assert "too" in decide(summary(retro=(0.08, 0.06, 0.06, 4.0)), Stated()).why[-1]


@pytest.mark.parametrize(
    ("of", "word"),
    [
        ({"retro": (0.005, 0.05, 0.0, 4.0)}, "cannot_tell"),  # its interval holds 0
        ({"retro": (-0.05, 0.05, 0.0, 4.0)}, "language_model"),
        ({"retro": (0.08, 0.001, 0.0, 4.0)}, "cannot_tell"),  # better, but by what it reads?
        ({"retro": (0.08, -0.02, 0.0, 4.0)}, "cannot_tell"),  # surely not
        ({"retro": (0.08, 0.06, 0.0, 4.0), "documents": 9}, "cannot_tell"),
        ({"language_model_longer": (0.08, None, 0.08, 1.0)}, "deploy"),  # reads nothing
    ],
)
def test_what_does_not_help_is_not_deployed(of, word):
    d = decide(summary(**of), Stated())
    assert d.word == word
    assert (d.method == BASE) == (word != "deploy")


def test_a_language_model_that_is_too_slow_is_not_deployed():
    d = decide(summary(retro=(-0.05, 0.05, 0.0, 4.0)), Stated(latency_ms=0.5))
    assert (d.word, d.head) == (
        "cannot_tell", "Nothing here takes 0.5 ms a token: language_model takes the least, 1.0",
    )  # fmt: skip
    d = decide(summary(retro=(0.08, 0.001, 0.0, 4.0)), Stated())
    assert "may be its training" in d.why[0]


def test_nothing_that_is_allowed_helps_but_something_else_would():
    d = decide(summary(**ALL), Stated(may="none", latency_ms=2.0))
    assert d.word == "language_model"
    assert set(d.out) == set(ALL)
    assert len(d.changes) == len(ALL)


def test_every_reason_is_named():
    stated = Stated(may="logits", latency_ms=10.0, database_changes="daily")
    out = decide(summary(**ALL), stated).out["knn_lm"]
    for part in ("needs --may=train", "takes 30.0 ms a token", "only by training or by a pass"):
        assert part in out


def test_too_few_documents_are_said_before_and_after(capfd):
    warn({"heldout": 6, "peps": 10})
    said = capfd.readouterr().err
    assert (
        "WARNING: heldout has 6 documents, and with fewer than 10 nothing will be decided" in said
    )
    assert "peps" not in said
    made = summary(**ALL) | {"documents": 9}
    d = decide(made, Stated(may="none"))
    assert d.word == "cannot_tell"
    assert "retro would gain more" in " ".join(d.changes)
    assert "10 held-out documents or more" in d.changes[-1]
