"""A study's runs share what is prepared, are scored on the same tokens, and do not fall together."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import small_experiment, write_corpus

from retro_jax.cli import study as command
from retro_jax.cli.config_file import load as load_experiment
from retro_jax.cli.main import main
from retro_jax.cli.study_processes import HELD
from retro_jax.config import Study
from retro_jax.databases.database import Databases
from retro_jax.errors import UserError
from retro_jax.methods.method import method_of
from retro_jax.pipeline.prepared import Prepared
from retro_jax.store.lock import lock
from retro_jax.store.workdir import WorkDir
from retro_jax.study import page, rows
from retro_jax.study.runs import Runs
from retro_jax.study.sums import load, write

NAMES = {"lm": "language_model", "reader": "retro"}

FILE = """
from conftest import small_experiment
from retro_jax.config import Study

def get_study(corpus):
    curves = {"language_model": ["lm"], "retro": ["reader"]}
    runs = {name: {"methods": (method,)} for method, (name,) in curves.items()}
    runs["broken"] = {"methods": ("language_model",), "train.seed": 1, "mesh.data": 3}  # of one device
    more = {"unseen": f"text:{corpus}/../more/*.txt"}
    return Study("small", small_experiment(corpus, steps=2), runs, more, curves)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """corpus: what is trained on. more: its documents under other names, and as many others."""
    root = tmp_path_factory.mktemp("study")
    (root / "corpus").mkdir()
    (root / "more").mkdir()
    write_corpus(root / "corpus")
    for path in (root / "corpus").iterdir():
        text = path.read_text()
        (root / "more" / f"copy of {path.name}").write_text(text)
        (root / "more" / f"other {path.name}").write_text(text[::-1])
    (root / "small.py").write_text(FILE)
    return root


@pytest.fixture(scope="module")
def runs(folder):
    """The study's runs, of which the first two are done."""
    found = Runs(command.load(f"{folder / 'small.py'}:{folder / 'corpus'}"), folder / "work")
    for name in NAMES:
        found.prepare(name)
        found.run(name)
    return found


def test_text_is_prepared_once_and_not_copied(runs):
    assert len(list((runs.root / "prepared").iterdir())) == 1
    for name in NAMES:
        assert not (runs.work(name).root / "prepare").exists()
        assert WorkDir(runs.work(name).root).prepared_in == runs.prepared(name)
    assert runs.done("reader")
    assert not runs.done("broken")


def test_another_database_holds_nothing_that_is_held_out(runs):
    prepared = Prepared(WorkDir(runs.prepared("reader")))
    parts = Databases(prepared).state("unseen")["parts"]
    table = Databases(prepared).open("unseen", parts[0]["number"]).table
    held = set(map(bytes, prepared.table("heldout").texts))
    assert held
    assert not held & set(map(bytes, table.texts))
    assert len(table.documents) > len(held)


def test_rows_are_what_the_evaluations_say(runs):
    sums = load(rows.collect(runs))
    assert sums.facts["curves"] == {m: [n] for n, m in NAMES.items()}
    for split in ("heldout", "heldout-unseen"):
        result = json.loads((runs.work("reader").evaluated(split) / "result.json").read_text())
        for condition in ("on", "off", "random"):
            of = sums.of(run="reader", split=split, part="all", condition=condition)
            bits = of["nats"].sum() / of["bytes"].sum() / np.log(2)
            assert bits == pytest.approx(result["bits_per_byte"][condition], rel=1e-6)
        # Both methods have the same tokens in every part, though the language model was scored without neighbours.
        for part in ("all", "filtered", "far"):
            count = [sums.of(run=n, split=split, part=part, condition=c)["tokens"].tolist()
                     for n, c in (("reader", "on"), ("lm", "language_model"))]  # fmt: skip
            assert count[0] == count[1]
    tokens = runs.work("reader").evaluated("heldout-unseen") / "tokens.parquet"
    sources = {name for row in pq.read_table(tokens)["sources"].to_pylist() for name in row} - {""}
    assert sources
    assert all(name.startswith(("copy of", "other")) for name in sources)
    assert {split: len(shares) for split, shares in sums.facts["contained"].items()} == {
        split: len(ids) for split, ids in sums.facts["documents"].items()
    }
    of = sums.facts["runs"]["reader"]["methods"]["retro"]
    # A chunk of 16 tokens: its vector, a search of every vector of the database, and nothing to order.
    e, prepared = runs.work("reader").experiment, Prepared(runs.work("reader"))
    vectors, method = prepared.searched("train"), method_of(e, "retro")
    looked_up = 2 * 128 * vectors.shape[1] + 2 * vectors.size
    assert sums.facts["runs"]["reader"]["search_flops"] == looked_up * len(vectors)
    reading = method.flops(prepared.tokenizer.vocab, e.train.length) / e.train.length
    assert of["flops_per_token"] == pytest.approx(reading + looked_up / 16)
    assert (
        of["parameters"]
        > of["layers"]
        == sums.facts["runs"]["lm"]["methods"]["language_model"]["layers"]
    )


def test_with_too_few_sizes_the_page_says_so(runs):
    made = page.write(rows.collect(runs))
    text = made.read_text()
    assert "2 of 3 runs are done. Not done: broken." in text
    assert "With a decoder of " in text
    assert (made.parent / "plots/losses-all.png").stat().st_size > 1000


def test_one_that_fails_does_not_stop_the_others(runs, folder, capfd, monkeypatch):
    """Each is a process of its own; what is done is not done again."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # for the study's file
    words = ["study", f"{folder / 'small.py'}:{folder / 'corpus'}", f"--workdir={runs.root}"]
    done = runs.work("lm").root / "done.json"
    done.unlink()
    assert main(words) == 1
    said = capfd.readouterr().err
    assert re.search(
        r"broken: FAILED, exit status 2; \S+/runs/broken/log: .*does not multiply",
        said.replace("\n", " "),
    )
    assert "lm: done" in said
    assert "reader: begins" not in said
    assert done.exists()
    assert main([*words, "--list"]) == 0
    listed = capfd.readouterr().out.splitlines()
    assert len(listed) == 1 + len(runs.names)  # a run is a line, however narrow the terminal
    assert {line.split()[0]: line.split()[3] for line in listed[1:]}["broken"] == "no"
    # What another process has under way is left to it, and is no failure.
    done.unlink()
    with lock(runs.work("lm").root / ".locks", "run"):
        assert main([*words, "--only=lm"]) == HELD
        assert "another retro, pid" in capfd.readouterr().err
        assert main([*words, "--only=lm,reader"]) == 0
    said = capfd.readouterr().err
    assert "lm: left to another process" in said
    assert "not done: lm; run the same command when that process has ended" in said
    assert main([*words, "--only=lm"]) == 0
    assert main([*words, "--only="]) == 2  # a job array whose variable is empty
    assert "names no run" in capfd.readouterr().err


def test_a_run_on_other_text_is_refused_before_that_is_prepared(runs, folder, capfd, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    (runs.root / "runs" / "lm" / "done.json").rename(folder / "kept.json")
    try:
        words = [f"{folder / 'small.py'}:{folder}/./corpus", f"--workdir={runs.root}", "--only=lm"]
        before = sorted((runs.root / "prepared").iterdir())
        assert main(["study", *words]) == 2
        said = capfd.readouterr().err.replace("\n", " ")
        assert re.search(
            r"runs/lm was begun on text that was prepared with other fields \(.*source", said
        )
        assert sorted((runs.root / "prepared").iterdir()) == before
    finally:
        (folder / "kept.json").rename(runs.root / "runs" / "lm" / "done.json")


@pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux tells a process that its parent died"
)
def test_what_a_study_began_ends_with_it_even_if_that_is_killed():
    """An orphan would hold its run's lock while the same command is given again."""
    script = (
        "import sys, time; from retro_jax.cli.study_processes import ends_with_its_parent as e; "
    )
    script += "assert e(); print('ready', flush=True); time.sleep(60)"
    begin = "import os, subprocess, sys, time; from retro_jax.cli.study_processes import _with_parent as p; "
    begin += f"subprocess.Popen([sys.executable, '-c', {script!r}], env=p(), start_new_session=True); time.sleep(60)"
    parent = subprocess.Popen([sys.executable, "-c", begin], stdout=subprocess.PIPE, text=True)
    assert parent.stdout.readline() == "ready\n"
    parent.kill()
    assert parent.stdout.read() == ""  # the other end of the pipe is closed: the child has ended
    parent.wait()


def test_a_study_that_cannot_be_meant_is_refused(tmp_path, folder):
    base = small_experiment(tmp_path)
    for runs, more, message in (
        ({}, {}, "has no run"),
        ({"a/b": {}}, {}, "'a/b' names a directory"),
        (
            {"a": {"train.stepz": 3}},
            {},
            "study s, run a: config has no field train.stepz: did you mean",
        ),
        ({"a": {"train.steps.x": 3}}, {}, "train.steps.x is no field"),
        ({"a": {}}, {"curves": {"retro": ["b"]}}, "curves of retro: there is no run 'b'"),
        ({"a": {}}, {"curves": {"lm": ["a"]}}, "curves of lm: run a has another method, retro"),
        ({"a": {}}, {"databases": {"prepared": "python:"}}, "cannot be called prepared"),
    ):
        with pytest.raises(UserError, match=re.escape(message)):
            Study("s", base, runs, **more)
    with pytest.raises(
        UserError, match=r"^study nowhere\.py: no such file, nor one of the installed"
    ):
        command.load("nowhere.py")
    empty = tmp_path / "empty.py"
    for text, message in (
        ("", "has no get_study"),
        ("def get_study(): return 3", "gives int, must give a Study"),
        ("1 / 0", "ZeroDivisionError"),
        ("def get_study(texts): pass", f"give {empty}:ARGUMENT"),
    ):
        empty.write_text(text)
        with pytest.raises(UserError, match=message):
            command.load(str(empty))
    empty.write_text("def get_study(): return 3")
    with pytest.raises(UserError, match="takes no argument"):
        command.load(f"{empty}:x")
    assert main(["study", f"{folder / 'small.py'}:{folder / 'corpus'}", "--only=nothing"]) == 2


def test_what_cannot_be_run_is_refused_before_anything_is_prepared(tmp_path):
    base = small_experiment(tmp_path)
    for run, more, message in (
        ({"methods": ("knn_lm",)}, {}, "run a: methods"),
        ({"methods": ("language_model_longer",)}, {}, "run a: methods"),
        (
            {"methods": ("retro",)},
            {"databases": {"b": "text:nowhere/*"}},
            r"study s, databases\.b.*no file",
        ),
        (
            {"methods": ("retro",), "method_settings.retro.read_from": 6},
            {},
            "must be below train.steps = 6",
        ),
    ):
        with pytest.raises(UserError, match=message):
            Runs(Study("s", base, {"a": run}, **more), tmp_path).check()
    missing = Study("s", base, {"a": {}}, rows=str(tmp_path / "typo.parquet"))
    with pytest.raises(UserError, match=r"typo\.parquet: no rows of a study"):
        Runs(missing, tmp_path).done("a")


def test_rows_that_a_study_keeps_stand_for_runs_that_are_done(runs, tmp_path):
    """So it goes on where its working directory is gone; not for a run that has other fields now."""
    kept = Path(shutil.copy(rows.collect(runs), tmp_path / "kept.parquet"))
    study = dataclasses.replace(runs.study, rows=str(kept))
    elsewhere = Runs(study, tmp_path / "elsewhere")
    assert [n for n in study.runs if elsewhere.done(n)] == list(NAMES)
    before, after = load(kept), load(rows.collect(elsewhere))
    assert after.facts["runs"].keys() == before.facts["runs"].keys() & NAMES.keys()
    for name in NAMES:
        for a, b in zip(before.of(run=name).values(), after.of(run=name).values()):
            np.testing.assert_array_equal(a, b)
    # The same documents with other text, which a later clone may have, are not taken for the same.
    before.columns["bytes"] = before.columns["bytes"] + 1
    write(kept, before)
    part = Runs(study, runs.root)
    part.done_here = lambda name: name == "reader"
    with pytest.raises(
        UserError, match=r"kept\.parquet: its runs were scored on other text of heldout"
    ):
        rows.collect(part)
    # Nor are other documents, before anything is trained.
    before.facts["documents"]["heldout"][0] = "another"
    write(kept, before)
    with pytest.raises(UserError, match=r"kept\.parquet: .* other documents of heldout than \S+"):
        Runs(study, runs.root).prepare("lm")
    other = dataclasses.replace(
        study, runs={**study.runs, "lm": {**study.runs["lm"], "train.seed": 7}}
    )
    assert [n for n in study.runs if Runs(other, tmp_path / "elsewhere").done(n)] == ["reader"]


def test_a_run_is_the_same_wherever_its_text_lies(tmp_path):
    def what(folder):
        config = small_experiment(Path(folder) / "corpus")
        more = {"more": f"0.5*text:{folder}/a/*.md + text:{folder}/b/*.md"}
        return Runs(Study("s", config, {"a": {}}, more, folder=folder), tmp_path).what("a")

    assert what("/here") == what("../there")
    assert what("/here")["databases"] == {"more": "0.5*text:a/*.md + text:b/*.md"}


def test_the_papers_study_has_its_eight_models():
    study = command.load("experiments/scaling.py:paper")
    runs = Runs(study, Path("nowhere"))
    assert len({runs.prepared(name) for name in study.runs}) == 1
    for name, config in (("retro-1.5b", "retro:1.5b"), ("baseline-368m", "baseline:368m")):
        own = load_experiment(f"experiments/{config.replace(':', '.py:')}")
        conditions = study.base.evaluate.conditions
        evaluate = dataclasses.replace(own.evaluate, conditions=tuple(conditions))
        assert study.experiment(name) == dataclasses.replace(own, evaluate=evaluate)
    assert [len(names) for names in study.curves.values()] == [4, 4]
