"""The page of a study is made from its rows alone, and says what they say."""

import json
import re

import numpy as np
import pytest

from retro_jax.study import page
from retro_jax.study.sums import Sums

SIZES = (40_000, 100_000, 220_000, 530_000)
DOCUMENTS, BYTES = 30, 1000


def made(worth: float) -> Sums:
    """Rows of language models, and of readers each as good as a language model of `worth` times its size; two seeds."""
    rng, facts, columns = np.random.default_rng(0), {}, []
    easy = rng.normal(1, 0.1, DOCUMENTS)

    def loss(n):
        return 0.8 + 60 * n**-0.35

    for n in SIZES:
        for seed in range(2):
            for method, size in (("language_model", n), ("retro", n * worth)):
                name = f"{method}-{n}-{seed}"
                of = {
                    "layers": n,
                    "parameters": n + 50_000,
                    "training_flops": 6e7 * n,
                    "flops_per_token": 2 * n,
                    "seconds": 60.0,
                }
                facts[name] = {
                    "fields": {"train.seed": seed},
                    "database_chunks": 9000,
                    "search_flops": 3e12,
                    "chunk": 64,
                    "what": {
                        "train.steps": n,
                        "train.batch": 4,
                        "train.length": 256,
                        "corpus.source": "text:a",
                    },
                    "methods": {method: of},
                }
                bits = (loss(size) + 0.002 * rng.standard_normal()) * easy
                conditions = (
                    ("language_model",)
                    if method == "language_model"
                    else ("on", "off", "random", "database_10")
                )
                for condition in conditions:
                    more = {"off": 0.1, "random": 0.12, "database_10": 0.05}.get(condition, 0)
                    for part in ("all", "filtered", "novel", "far"):
                        columns.append(
                            (name, "heldout", part, condition, (bits + more) * BYTES * np.log(2))
                        )
    names = ("run", "split", "part", "condition")
    arrays = {n: np.repeat([c[i] for c in columns], DOCUMENTS) for i, n in enumerate(names)}
    arrays["document"] = np.tile(np.arange(DOCUMENTS), len(columns))
    arrays |= {
        n: np.full(len(columns) * DOCUMENTS, v) for n, v in (("tokens", 300), ("bytes", BYTES))
    }
    arrays["nats"] = np.concatenate([c[4] for c in columns])
    curves = {m: [n for n in facts if n.startswith(m)] for m in ("language_model", "retro")}
    documents = {"heldout": [f"{i % 2}/{i}" for i in range(DOCUMENTS)]}
    contained = {"heldout": np.linspace(0, 1, DOCUMENTS).tolist()}
    whole = {
        "name": "made",
        "runs": facts,
        "missing": [],
        "curves": curves,
        "documents": documents,
        "contained": contained,
    }
    return Sums(whole, arrays)


@pytest.mark.parametrize(
    ("worth", "word", "size"),
    # The largest that is worth more than itself is worth more than was trained: the one before it is the headline.
    [(2.0, "helps", "220,000"), (0.5, "hurts", "530,000")],
)
def test_the_page_says_what_a_database_is_worth(tmp_path, monkeypatch, worth, word, size):
    monkeypatch.setattr(page, "load", lambda file: made(worth))
    said = json.loads(page.write(tmp_path / "rows.parquet").with_suffix(".json").read_text())
    assert said["verdict"]["word"] == word
    assert f"RETRO with a decoder of {size} parameters is as good as a" in said["verdict"]["head"]
    found = said["figures"]["heldout"]["all"]["multipliers"]["layers"]
    assert [m["value"] for m in found] == pytest.approx([worth] * 4, rel=0.15)
    assert all(m["low"] < 1.1 * worth and m["high"] > 0.9 * worth for m in found)
    titles = [s["title"] for s in said["evidence"]]
    assert titles == [
        "Loss by size: all", "Loss by size: little overlap", "Loss by size: no copy", "Loss by size: far",
        "What RETRO gains", "What a database is worth", "By other sizes", "The laws", "What else is repeated",
        "By source", "How large a database", "The runs",
    ]  # fmt: skip
    shares = {
        tuple(r[:2]): r for s in said["evidence"] if s["name"] == "databases" for r in s["rows"]
    }
    assert re.fullmatch(
        r"[+-]\d\.\d{4} \[[+-]\d\.\d{4}, [+-]\d\.\d{4}\]", shares["530,000", "10.0 %"][3]
    )
    assert shares["530,000", "10.0 %"][2] == "0.1087"  # tokens of the database, for each parameter
    for name in ("losses-all", "gains", "multipliers", "databases"):
        for suffix in (".svg", ".png"):
            assert (tmp_path / "plots" / f"{name}{suffix}").stat().st_size > 1000


def of_some(sums: Sums, curves: dict) -> Sums:
    """As if only the runs of these curves were done."""
    named = {n for own in curves.values() for n in own}
    kept = [n for n in sums.facts["runs"] if n in named]
    facts = {
        "runs": {n: sums.facts["runs"][n] for n in kept},
        "missing": [n for n in sums.facts["runs"] if n not in kept],
        "curves": curves,
    }
    rows = np.isin(sums.columns["run"].astype(str), kept)
    return Sums(sums.facts | facts, {n: x[rows] for n, x in sums.columns.items()})


def test_while_only_language_models_are_done_the_page_shows_their_curve(tmp_path, monkeypatch):
    """The cheapest runs come first, and other databases are scored by what reads alone."""
    whole = made(2.0)
    sums = of_some(whole, whole.facts["curves"] | {"retro": []})
    sums.facts["contained"] |= {"heldout-unseen": [0.0] * DOCUMENTS}
    monkeypatch.setattr(page, "load", lambda file: sums)
    text = page.write(tmp_path / "rows.parquet").read_text()
    assert "Not enough runs yet" in text
    assert "Loss by size: all" in text
    assert "8 of 16 runs are done. Not done: retro-40000-0" in text


@pytest.mark.parametrize(("worth", "word"), [(2.0, "helps"), (0.5, "hurts"), (1.0, "neutral")])
def test_two_sizes_are_enough_for_a_gain(tmp_path, monkeypatch, worth, word):
    """A law wants three; whether RETRO is better can be said before that."""
    whole = made(worth)
    curves = {m: names[:4] for m, names in whole.facts["curves"].items()}
    monkeypatch.setattr(page, "load", lambda file: of_some(whole, curves))
    said = json.loads(page.write(tmp_path / "rows.parquet").with_suffix(".json").read_text())
    assert said["verdict"]["word"] == word
    assert said["verdict"]["head"].startswith("With a decoder of 100,000 parameters, RETRO ")
    assert "; " in said["verdict"]["sentences"][0]  # both sizes
    table = next(x for x in said["evidence"] if x["name"] == "gains")
    assert [row[:3] for row in table["rows"][:2]] == [
        ["all", "40,000", "2"],
        ["all", "100,000", "2"],
    ]
    assert "worth" not in json.dumps([x["title"] for x in said["evidence"]])


def test_a_study_that_names_no_curves_is_told_how(tmp_path, monkeypatch):
    monkeypatch.setattr(
        page, "load", lambda file: Sums(made(1.0).facts | {"curves": {}}, made(1.0).columns)
    )
    text = page.write(tmp_path / "rows.parquet").read_text()
    assert "names no runs of language_model and retro" in text


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({}, "1.80 [1.50, 2.10]"),
        ({"beyond": True}, "≥ 1.40 (by the law 1.80 [1.50, 2.10])"),
        # Its interval holds less than what was measured: then nothing is sure.
        ({"beyond": True, "low": 0.9}, "1.80 [0.90, 2.10], beyond the largest"),
        ({"below": True}, "1.80 [1.50, 2.10], below the smallest"),
    ],
)
def test_a_multiplier_claims_no_more_than_was_measured(more, words):
    m = {"value": 1.8, "low": 1.5, "high": 2.1, "at_least": 1.4, "beyond": False, "below": False}
    assert page.worth(m | more) == words


def test_one_seed_against_two_is_said_and_too_short_a_training_is_no_verdict(tmp_path, monkeypatch):
    """How seeds differ is as large as many a gain; and what is trained for a minute can tell nothing."""
    whole = made(2.0)
    curves = {m: names[:4] for m, names in whole.facts["curves"].items()}
    sums = of_some(whole, curves | {"language_model": curves["language_model"][:3]})
    monkeypatch.setattr(page, "load", lambda file: sums)
    text = page.write(tmp_path / "rows.parquet").read_text()
    assert "At 100,000 parameters the seeds are of language_model 1, RETRO 2" in text
    for run in sums.facts["runs"].values():
        run["what"] = run["what"] | {"train.steps": 10}
    verdict = json.loads(page.write(tmp_path / "rows.parquet").with_suffix(".json").read_text())[
        "verdict"
    ]
    assert (verdict["head"], verdict["word"]) == ("Not trained enough to tell", "neutral")
    assert "language_model-100000-0 saw 0.068 tokens of training for each" in verdict["advice"][0]


def test_the_page_names_the_method_without_several_seeds(tmp_path, monkeypatch):
    sums = made(2.0)
    sums.facts["curves"]["retro"] = [n for n in sums.facts["curves"]["retro"] if n.endswith("-0")]
    monkeypatch.setattr(page, "load", lambda file: sums)
    text = page.write(tmp_path / "rows.parquet").read_text()
    assert "No size of retro has several seeds" in text
    assert "No size of language_model" not in text
