"""The rows of the scaling study that are kept are those of the study as it is, and its page is made of them."""

from pathlib import Path

import numpy as np

from retro_jax.config import experiment_beside
from retro_jax.study import figures
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
