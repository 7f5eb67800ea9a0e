"""A working directory is an experiment: every command takes it alone, and fields given on top are said."""

import argparse
import json
import re
import shutil

import pytest

from retro_jax.cli import main as cli
from retro_jax.cli.config_file import find, load
from retro_jax.cli.experiment import open_work
from retro_jax.errors import UserError
from retro_jax.store.workdir import WorkDir


@pytest.fixture
def root(finished, tmp_path):
    """A copy of the finished working directory, under another name."""
    shutil.copytree(finished, tmp_path / "moved")
    return tmp_path / "moved"


def test_what_is_complete_stays_so_in_a_directory_that_was_moved(root, capfd):
    before = (root / "config.json").read_bytes()
    for command in ("prepare", "train", "evaluate"):
        assert cli.main([command, str(root)]) == 0
    said = capfd.readouterr().err
    for stage in (
        "prepare",
        "train/retro",
        "train/language_model",
        "evaluate/heldout",
    ):
        assert f"{stage}: complete" in said
    assert (root / "config.json").read_bytes() == before


def test_free_fields_hold_for_the_command_and_are_said(root, capfd):
    stored = WorkDir(root).experiment
    fields = ["--config.generate.tokens=3", "--config.train.log_every=9", "--prompt=kara lopo"]
    assert cli.main(["generate", str(root), *fields]) == 0
    said = capfd.readouterr().err
    assert "config: generate.tokens = 3 (stored: 40)" in said
    assert "config: train.log_every = 9 (stored: 1)" in said
    assert len(json.loads((root / "generate.json").read_text())["tokens"]) == 3
    assert WorkDir(root).experiment == stored


def test_a_field_is_refused_only_by_a_stage_that_depends_on_it(root, capfd):
    field = "--config.corpus.heldout=0.4"
    for command in ("prepare", "train", "evaluate"):
        assert cli.main([command, str(root), field]) == 2
        assert "corpus.heldout was 0.2, is now 0.4" in capfd.readouterr().err
    assert cli.main(["generate", str(root), field, "--config.generate.tokens=2"]) == 0
    assert WorkDir(root).experiment.corpus.heldout == 0.2


def test_what_is_refused_is_not_stored(root, capfd):
    before = (root / "config.json").read_bytes()
    for command, field, message in (
        ("evaluate", "evaluate.conditions=('radnom',)", "no condition 'radnom' here; there are on"),
        ("run", "evaluate.conditions=('radnom',)", "no condition 'radnom' here; there are on"),
        ("train", "train.steps=3", "train.steps was 6, is now 3"),
    ):
        assert cli.main([command, str(root), f"--config.{field}"]) == 2
        (said,) = [line for line in capfd.readouterr().err.splitlines() if "retro:" in line]
        assert message in said
        assert (root / "config.json").read_bytes() == before


def test_another_evaluation_is_made_again_and_kept_in_the_config(root, capfd):
    assert cli.main(["evaluate", str(root), "--conditions=random"]) == 0
    assert "evaluate/heldout: made again" in capfd.readouterr().err
    result = json.loads((root / "evaluate" / "heldout" / "result.json").read_text())
    assert set(result["bits_per_byte"]) == {"on", "off", "random", "language_model"}
    assert WorkDir(root).experiment.evaluate.conditions == ("random",)
    assert cli.main(["evaluate", str(root), "--conditions=,"]) == 2
    assert "--conditions=,: name some, with commas, or all" in capfd.readouterr().err
    both = ["evaluate", str(root), "--conditions=self", "--config.evaluate.conditions=('self',)"]
    for given, message in (
        (both, "which is given too"),
        (
            ["evaluate", str(root), "--conditions=self", "--task=lambada:x"],
            "--conditions=self: a task is answered with its neighbours and without",
        ),
        (
            ["evaluate", str(root), "--conditions=language_model"],
            "leave it out: it is a method",
        ),
    ):
        assert cli.main(given) == 2
        assert message in capfd.readouterr().err
    assert cli.main(["evaluate", str(root), "--conditions=all"]) == 0
    result = json.loads((root / "evaluate" / "heldout" / "result.json").read_text())
    assert {"self", "permuted", "n_only"} < set(result["bits_per_byte"])


def test_an_experiment_is_a_file_or_the_name_of_an_installed_one(tmp_path, monkeypatch):
    by_file = load("experiments/retro.py:172m")
    monkeypatch.chdir(tmp_path)
    assert load("retro:172m") == by_file
    assert find("quickstart").name == "quickstart.py"
    with pytest.raises(UserError, match="quickstrat: no such file, nor one of the installed"):
        find("quickstrat")


def test_a_run_is_called_as_its_directory_if_nothing_else_was_said(tmp_path):
    for given, name in (([], "mine"), (["--config.name=other"], "other")):
        args = argparse.Namespace(
            workdir=None, workdir_flag=f"{tmp_path}/mine/", config="quickstart"
        )
        assert open_work(args, given).experiment.name == name
    here = argparse.Namespace(workdir=None, workdir_flag=".", config="quickstart")
    assert open_work(here, []).experiment.name == "quickstart"


@pytest.mark.parametrize(
    ("field", "message"),
    [
        (
            "train.steps=abc",
            "train.steps=abc: must be a whole number; it is 420 where it is not given",
        ),
        ("train.learning_rate=", "must be a number; it is 0.003"),
        ("model.reading.null_key=maybe", "must be True or False; it is True"),
    ],
)
def test_a_value_of_another_type_is_refused_by_an_example(field, message):
    with pytest.raises(UserError, match=re.escape(message)):
        load("experiments/quickstart.py", [f"--config.{field}"])


def test_settings_of_a_table_can_be_given_by_flag():
    fields = [
        "--config.retrieval.settings.tfidf.dim=7",
        "--config.method_settings.retro.own_continuation=0.5",
    ]
    e = load("experiments/quickstart.py", fields)
    assert e.retrieval.settings["tfidf"] == {"dim": 7}
    assert e.method_settings["retro"]["own_continuation"] == 0.5
    with pytest.raises(UserError, match=r"settings\.tfidf\.dmi: did you mean dim"):
        load("experiments/quickstart.py", ["--config.retrieval.settings.tfidf.dmi=7"])


def test_config_lists_every_field_with_its_meaning_and_what_it_decides(root, capfd):
    assert cli.main(["config", str(root), "--config.train.steps=7"]) == 0
    lines = capfd.readouterr().out.splitlines()
    for field, step in (
        ("corpus.source", "corpus"),
        ("corpus.vocab", "tokenizer"),
        ("retrieval.settings.tfidf.dim", "embedder"),
        ("train.length", "neighbours/train"),
        ("retrieval.source", "corpora/database"),
        ("corpus.heldout_sources", "corpora/name"),
        ("train.steps", None),
        ("model.decoder.d", None),
    ):
        (line,) = [text for text in lines if text.startswith(f"{field} = ")]
        assert line.endswith(f"[decides {step} and what is made of it]") == (step is not None)
    assert cli.main(["config"]) == 0
    assert "learning_rate" in capfd.readouterr().out
