"""The rows of the scaling study that are kept are those of the study as it is, and its page is made of them."""

from pathlib import Path

import numpy as np

from retro_jax.config import experiment_beside
from retro_jax.report.numbers import bits
from retro_jax.study import evidence, figures
from retro_jax.study.runs import Runs
from retro_jax.study.sums import load

FILE = Path(__file__).parents[2] / "experiments" / "scaling.parquet"


def test_what_is_kept_are_runs_of_the_study_as_it_is(tmp_path):
    study = experiment_beside(str(FILE), "scaling").get_study("anywhere")
    runs, kept = Runs(study, tmp_path), load(FILE)
    assert study.rows == str(FILE)
    for name, run in kept.facts["runs"].items():
        assert run["what"] == runs.what(name), name
        assert runs.done(name)


def test_larger_models_have_lower_losses_in_them():
    of = figures.curves(load(FILE), "heldout", "all", only=("language_model", "on"))
    for condition, curve in of.items():
        assert len(curve.losses) >= 3, condition
        assert (np.diff(curve.losses) < 0).all(), condition


def test_the_table_in_the_docs_is_what_they_say():
    """Of all text: the page of a study writes the others in the same way."""
    lines = (FILE.parents[1] / "docs" / "study.md").read_text().splitlines()
    told = {}
    for line in lines:
        name, *cells = (cell.strip(" *") for cell in line.strip("|").split("|"))
        if name not in told:  # rows of all text stand before those of parts with the same names
            told[name] = cells
    sums = load(FILE)
    found = figures.curves(sums, "heldout", "all")
    base, reader = found["language_model"], found["on"]
    assert told["bits per byte: language model"] == list(map(bits, base.losses))
    assert told["RETRO"] == list(map(bits, reader.losses))
    assert told["RETRO with random neighbours"] == list(map(bits, found["random"].losses))
    for name, size in {
        "M, all text": "layers",
        "by all parameters (embeddings, encoder, cross-attention)": "parameters",
        "by FLOPs of training": "training_flops",
        "by FLOPs of training, search of its text included": "searched_flops",
        "by FLOPs of a token, search included": "flops_per_token",
    }.items():
        assert told[name] == [evidence.worth(m) for m in figures.multipliers(base, reader, size)]
