"""Methods side by side: from one command to one table."""

import json

import numpy as np
import pytest
from conftest import altered

from retro_jax.cli import main as cli
from retro_jax.evaluate import rows
from retro_jax.store.workdir import WorkDir

READS = ("rag", "replug")


@pytest.fixture(scope="module")
def compared(small, finished, tmp_path_factory):
    """(working directory, rows, summary) of a comparison; the trained models are those of `finished`."""
    root = tmp_path_factory.mktemp("compared")
    for stage in ("prepare", "train"):
        (root / stage).symlink_to(finished / stage)
    longer = {name: {"budget": "longer"} for name in READS}
    work = WorkDir(root, altered(small, method_settings=small.method_settings | longer))
    work.save()
    assert cli.main(["compare", str(root), "--methods=retro,rag,replug"]) == 0
    found = root / "compare" / "heldout"
    return (
        work,
        rows.load(found / "tokens.parquet"),
        json.loads((found / "summary.json").read_text()),
    )


def test_all_methods_score_the_tokens_that_evaluate_scores(compared, finished):
    _, found, summary = compared
    own = rows.load(finished / "evaluate" / "heldout" / "tokens.parquet")
    np.testing.assert_array_equal(found["target"], own["target"])
    assert set(found.nats) == {"language_model", "retro", "retro random"} | {
        f"{m}{c}" for m in READS for c in ("", " random")
    }
    for name, condition in (("retro", "on"), ("retro random", "random"), ("language_model",) * 2):
        np.testing.assert_allclose(found.nats[name], own.nats[condition], atol=1e-4)
    for name, of in summary["methods"].items():
        bits = found.nats[name].sum() / np.log(2) / found["bytes"].sum()
        assert of["all"]["bits_per_byte"] == pytest.approx(bits)
        assert of["gflops_per_token"] > 0


def test_before_anything_was_retrieved_they_are_the_language_model(compared):
    _, found, _ = compared
    nothing = found["position"] < found.facts["chunk"]
    for name in READS:
        same = found.nats[name][nothing], found.nats["language_model"][nothing]
        np.testing.assert_allclose(*same, atol=1e-4)
        assert (found.nats[name] != found.nats["language_model"])[~nothing].mean() > 0.9


def test_a_second_time_nothing_is_made(compared, capfd):
    work, _, _ = compared
    file = work.root / "compare" / "heldout" / "tokens.parquet"
    before = file.stat().st_mtime_ns
    assert cli.main(["compare", str(work.root), "--methods=retro,rag,replug"]) == 0
    assert file.stat().st_mtime_ns == before
    said = capfd.readouterr()
    assert "compare/heldout: complete" in said.err
    assert "replug" in said.out


def test_what_cannot_be_compared_is_said_first(compared, capfd):
    work, _, _ = compared
    for flags, message in (
        (["--methods=rag,rug"], "'rug': must be one of"),
        (["--methods=rag", "--config.method_settings.rag.budget=window"], "leave no room"),
    ):
        assert cli.main(["compare", str(work.root), *flags]) == 2
        assert message in capfd.readouterr().err.splitlines()[-1]
