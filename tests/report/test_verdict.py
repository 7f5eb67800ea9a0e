"""What the verdict makes of a short training, one seed, and effects that nobody would notice."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_report import write

from retro_jax.report import numbers, report


def trained(tokens_per_parameter, base=False, heldout=((10, 3.0), (20, 2.9))):
    """What is known of two models that were trained so."""
    one = {
        "seed": 3, "steps": 20, "tokens": 4e6, "parameters": 1000, "epochs": 0.4, "base": base,
        "tokens_per_parameter": tokens_per_parameter, "heldout": [list(x) for x in heldout],
    }  # fmt: skip
    return {"retro": one | {"seconds": 30.0}, "language_model": one | {"seconds": 10.0}}


def told(tmp_path, **how) -> dict:
    return json.loads(report(write(tmp_path, **how)).with_suffix(".json").read_text())


@pytest.mark.parametrize(
    ("models", "head"),
    [
        (trained(0.2), "Not trained enough to tell"),
        (trained(3.0), "Retrieval helps"),
        (trained(0.2, base=True), "Not trained enough to tell"),  # of what retrieval adds to a base
        (trained(None, base=True), "Retrieval helps"),
        (None, "Retrieval helps"),
    ],
)
def test_of_too_short_a_training_nothing_is_concluded(tmp_path, models, head):
    v = told(tmp_path, models=models)["verdict"]
    assert v["head"] == head
    every = " ".join([*v["sentences"], *v["advice"]])
    assert ("Train longer before anything is concluded" in every) == head.startswith("Not")
    assert ("of models trained so shortly" in every) == head.startswith("Not")
    if models:
        assert "20 steps, 4 M tokens" in every
        assert "0.4 epochs" in every
        assert "still falling (by 3.3 % since step 10)" in every
        assert "train.seed 3" in every
        assert ("from given weights" in every) == models["retro"]["base"]
    assert "bits per byte without retrieval" in v["effect"]


def test_a_loss_that_has_come_to_rest_is_not_said_to_fall(tmp_path):
    models = trained(3.0, heldout=((10, 3.0), (20, 2.999)))
    assert "still falling" not in " ".join(told(tmp_path, models=models)["verdict"]["sentences"])


def test_what_nobody_would_notice_is_no_effect(tmp_path):
    """60 steps once gave random - on = +0.0005, and the page said that the model reads."""
    v = told(tmp_path, gain=0.0002)["verdict"]
    assert v["word"] == "neutral"
    assert not any(s.startswith("It reads its neighbours") for s in v["sentences"])


def test_the_page_has_the_curves_and_the_time(tmp_path):
    made = told(tmp_path, models=trained(3.0))
    section = next(s for s in made["evidence"] if s["name"] == "training")
    assert "A step of retro took 3 times as long as one of language_model" in section["caption"]
    assert [row[0] for row in section["rows"]] == ["retro", "language_model"]


def test_what_retrieval_costs_is_that_of_the_run(finished, tmp_path):
    """The search, too, and against the language model."""
    shutil.copy(finished / "evaluate/heldout/tokens.parquet", tmp_path)
    page = report(tmp_path)
    every = json.loads(page.with_suffix(".json").read_text())
    costs = next(s for s in every["evidence"] if s["name"] == "costs")
    trained = every["figures"]["training"]
    more = trained["retro"]["flops_per_token"] + trained["retro"]["search_flops_per_token"]
    assert (
        trained["retro"]["search_flops_per_token"]
        > 0
        == trained["language_model"]["search_flops_per_token"]
    )
    times = more / trained["language_model"]["flops_per_token"]
    assert times > 1
    assert f"it is {numbers.plain(times)} times the language model's FLOPs" in costs["caption"]
    assert [row[0] for row in costs["rows"]] == ["retro, on", "retro, off", "language_model"]


def test_documents_are_ranked_by_what_they_gain(tmp_path):
    """The first two of 20 have all the gain."""
    file = write(tmp_path, gain=0.0, documents=20)
    table = pq.read_table(file)
    gain = np.where(np.array(table["document"]) < 2, 1.0, -0.01)
    column = pa.array(
        np.array(table["logp_language_model"]) + gain, table.schema.field("logp_on").type
    )
    place = table.schema.get_field_index("logp_on")
    pq.write_table(table.set_column(place, table.schema.field("logp_on"), column), file)
    made = json.loads(report(file).with_suffix(".json").read_text())
    section = next(s for s in made["evidence"] if s["name"] == "documents")
    assert "18 of 20 lose (90.0 %)" in section["caption"]
    assert "half of all that is gained is gained by 1 (5.0 %)" in section["caption"]
    assert {row[0][:2] for row in section["rows"][:2]} == {"0/", "1/"}
    assert len(section["rows"]) == 16


def test_what_rounds_to_nothing_has_no_sign():
    said = [numbers.change(x) for x in (-0.00001, 0.00001, -0.0001, 0.02)]
    assert said == ["0.0000", "0.0000", "-0.0001", "+0.0200"]
    assert [numbers.total(x) for x in (-0.2, 5363.4)] == ["0", "+5,363"]
    assert numbers.nats(-0.0004) == "0.000"
