"""A step that is not finite: stopped with what reproduces it, or skipped."""

import json

import jax
import numpy as np
import pytest
from conftest import small_experiment, write_corpus

from retro_jax.cli import main as cli
from retro_jax.config import to_config_dict
from retro_jax.methods.method import method_of
from retro_jax.pipeline import prepare
from retro_jax.store.workdir import WorkDir
from retro_jax.train import failure, loop


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    corpus = tmp_path_factory.mktemp("corpus")
    write_corpus(corpus)
    root = tmp_path_factory.mktemp("prepared")
    prepare.prepare(WorkDir(root, small_experiment(corpus)))
    return corpus, root


def exploding(corpus, **more):
    """A learning rate that no weight survives."""
    given = {"learning_rate": 1e30, "warmup": 0, "clip": 1e30, "steps": 12}
    given["methods"] = ("language_model",)
    return small_experiment(corpus, **given | more)


def replay(e, root):
    return failure.replay(WorkDir(root, e), lambda name: method_of(e, name))


def linked(root, to):
    to.mkdir()
    (to / "prepare").symlink_to(root / "prepare")
    return to


def test_it_stops_with_step_records_and_a_dump_that_reproduces_it(prepared, tmp_path, capfd):
    corpus, root = prepared
    root, e = linked(root, tmp_path / "w"), exploding(corpus)
    with pytest.raises(failure.NotFinite, match=r"step (\d+): loss .* on records \d+, .*replay"):
        loop.train(WorkDir(root, e), method_of(e, "language_model"))
    (found,) = root.glob("train/language_model/failure-*")
    about = json.loads((found / "failure.json").read_text())
    assert len(about["records"]) == e.train.batch
    assert found.name == f"failure-{about['step']}"
    assert not any((root / "train/language_model/checkpoints").glob("[0-9]*"))
    again = replay(e, root)
    assert again["step"] == about["step"]
    assert not np.isfinite(again["loss"]) or again["gradients"]
    assert not again["parameters"]  # the state is the one before the step, not after
    assert "step" in capfd.readouterr().err


def test_the_command_ends_with_status_1_and_one_line(prepared, tmp_path, capfd):
    corpus, root = prepared
    root, config = linked(root, tmp_path / "w"), tmp_path / "c.py"
    config.write_text(
        "import json, ml_collections\n"
        f"fields = json.loads({to_config_dict(exploding(corpus)).to_json()!r})\n"
        "def get_config():\n    return ml_collections.ConfigDict(fields)\n"
    )
    arguments = [f"--config={config}", f"--workdir={root}"]
    assert cli.main(["train", *arguments]) == 1
    assert "train.nonfinite=skip" in capfd.readouterr().err.splitlines()[-1]
    assert cli.main(["replay", *arguments]) == 0
    assert "that are not finite" in capfd.readouterr().err


def test_with_skip_it_goes_on_and_says_so_but_not_for_ever(prepared, tmp_path, capfd):
    corpus, root = prepared
    e = exploding(corpus, nonfinite="skip", steps=30)
    with pytest.raises(failure.NotFinite, match=r"step 10: loss"):  # after one that was finite
        loop.train(WorkDir(linked(root, tmp_path / "w"), e), method_of(e, "language_model"))
    assert capfd.readouterr().err.replace("\n", " ").count("skipped step ") == 9


def test_nothing_to_replay_is_said(prepared, tmp_path, capfd):
    corpus, root = prepared
    with pytest.raises(failure.UserError, match="no training step has failed here"):
        replay(exploding(corpus), linked(root, tmp_path / "w"))
    assert jax.device_count() == 8
