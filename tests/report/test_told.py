"""The sentences at the end of a run say what its figures say."""

import dataclasses
import json

import pytest

from retro_jax.report.told import told
from retro_jax.store.workdir import WorkDir


def effect(value, spread=0.01, documents=20):
    return {
        "value": value,
        "low": value - spread,
        "high": value + spread,
        "documents": documents,
    }


@pytest.fixture(scope="module")
def summary(finished):
    return json.loads((finished / "summary.json").read_text())


@pytest.mark.parametrize(
    ("word", "early", "value", "content", "documents", "expected"),
    [
        ("helps", False, 0.2, 0.3, 20, ["10.0% fewer bits", "+9.5% to +10.5%", "so it reads", "helps here"]),
        ("hurts", False, -0.2, 0.3, 20, ["10.0% more bits", "so it reads", "hurts here"]),
        ("neutral", False, 0.001, 0.0, 20, ["does not show that it reads", "cannot be told"]),
        ("neutral", True, 0.2, 0.3, 20, ["0.25 tokens for each parameter are too short"]),
        ("neutral", False, 0.2, 0.3, 4, ["Of so few documents"]),
    ],
)  # fmt: skip
def test_what_is_said_of_figures(
    summary, finished, small, word, early, value, content, documents, expected
):
    bits = {"language_model": 2.0, "on": 2.0 - value, "random": 2.0 - value + content}
    s = summary | {
        "bits_per_byte": bits,
        "effects": {"content": effect(content)},
        "verdict": {"word": word, "early": early, "effect": effect(value, documents=documents)},
        "training": {"retro": {"tokens_per_parameter": 0.25, "base": False}},
    }
    said = " ".join(told(WorkDir(finished, small), s))
    for text in expected:
        assert text in said
    assert f"Without retrieval 2.000, with it {2 - value:.3f}" in said


def test_what_reads_no_better_than_nothing_is_not_praised(summary, finished, small):
    s = summary | {
        "bits_per_byte": {"language_model": 2.0, "on": 1.9, "off": 1.89, "random": 1.95},
        "effects": {"content": effect(0.05)},
        "verdict": {"word": "helps", "early": False, "effect": effect(0.1)},
    }
    said = " ".join(told(WorkDir(finished, small), s))
    assert "so it tells them from others, but with none it is as good (1.890)" in said


def test_a_run_is_told_with_what_to_do_next(summary, finished, small):
    said = told(WorkDir(finished, small), summary)
    assert "looks up 2 similar ones in a database of" in said[0]
    assert "language_model is the same model without that" in said[0]
    assert f"{summary['heldout']['documents']} documents that neither has seen" in said[1]
    assert any(f"retro report {finished}" in line for line in said)
    alone = dataclasses.replace(small, methods=("retro",))
    less = summary | {"methods": {"retro": summary["methods"]["retro"]}}
    less["bits_per_byte"] = {n: summary["bits_per_byte"][n] for n in ("on", "off")}
    assert "language_model" not in " ".join(told(WorkDir(finished, alone), less)[:4])
