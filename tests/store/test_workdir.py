"""A working directory: its experiment, its locks, and damage that is named."""

import argparse
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
from conftest import small_experiment
from upath import UPath

from retro_jax.cli import experiment
from retro_jax.config.fields import binding
from retro_jax.errors import UserError
from retro_jax.pipeline import prepare
from retro_jax.pipeline.beam import run as beam
from retro_jax.store import artefact, files
from retro_jax.store.workdir import WorkDir

HOLDER = """
import sys
from retro_jax.store.workdir import WorkDir

with WorkDir(sys.argv[1]).lock(sys.argv[2], shared=sys.argv[3] == "shared"):
    print("held", flush=True)
    sys.stdin.read()
"""


def hold(root: Path, stage: str, how: str = "alone") -> subprocess.Popen:
    """A process that holds a stage until it is ended."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(root), stage, how],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_process_is_told_who_is_there_and_a_kill_frees_the_stage(tmp_path):
    work = WorkDir(tmp_path / "w")
    holder = hold(work.root, "train")
    with pytest.raises(UserError, match=rf"w: another retro, pid {holder.pid} on .*, is training"):
        work.lock("train").__enter__()
    with work.lock("prepare"):  # another stage
        pass
    holder.kill()
    holder.wait()
    with work.lock("train"):
        assert str(os.getpid()) in (work.root / ".locks" / "train.lock").read_text()


def test_those_who_only_read_share_a_stage(tmp_path):
    work = WorkDir(tmp_path / "w")
    reader = hold(work.root, "prepare", "shared")
    with work.lock("prepare", shared=True):
        pass
    with pytest.raises(UserError, match="is preparing here, or reads what is there"):
        work.lock("prepare").__enter__()
    reader.kill()
    reader.wait()
    with work.lock("prepare"):
        pass


def test_in_a_bucket_the_lock_is_a_file_that_is_made_only_if_it_is_absent():
    work = WorkDir(UPath(f"memory://{uuid.uuid4()}/w"))
    with (
        work.lock("prepare"),
        pytest.raises(UserError, match=r"pid .* is preparing .*if it was killed, delete"),
    ):
        work.lock("prepare").__enter__()
    with work.lock("prepare"):  # freed at the end
        pass


def test_the_experiment_is_stored_and_comes_back(tmp_path):
    e = small_experiment(tmp_path / "corpus")
    WorkDir(tmp_path / "w", e).save()
    assert WorkDir(tmp_path / "w").experiment == e
    (tmp_path / "w").rename(tmp_path / "moved")
    assert WorkDir(tmp_path / "moved").experiment == e
    with pytest.raises(UserError, match=r"w: is no working directory .*retro run --config"):
        _ = WorkDir(tmp_path / "w").experiment


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"config": {', "config.json: is damaged, no JSON"),
        ("[]", "config.json: holds no config"),
        ('{"config": {"train": {"stepz": 3}}}', "no field train.stepz: did you mean train.steps"),
        ('{"config": {"train": {"steps": -3}}}', "train.steps = -3"),
    ],
)
def test_a_damaged_experiment_is_named(tmp_path, text, message):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=message):
        _ = WorkDir(tmp_path).experiment


@pytest.fixture
def made(tmp_path) -> Path:
    """An artefact of two files."""

    def make(out: Path) -> dict:
        (out / "part").mkdir()
        (out / "part" / "a.bin").write_bytes(b"abcdef")
        (out / "b.json").write_text("[1, 2]")
        return {"n": 2}

    artefact.build(tmp_path / "step", {"x": 1}, [], make)
    return tmp_path / "step"


def test_of_many_fields_that_differ_a_few_are_told(made):
    """First those that have another value now, and not those that another version had."""
    settings = {"x": 2} | {f"a{i}": i for i in range(9)}
    with pytest.raises(
        UserError, match=r"\(x was 1, is now 2; a0 was None, is now 0; .*; and 6 more\)"
    ):
        artefact.check(made, settings, [])


def test_a_file_of_another_size_is_named_whenever_the_artefact_is_opened(made):
    assert artefact.check(made, {"x": 1}, [])["counts"] == {"n": 2}
    for change, words in (
        (lambda p: p.write_bytes(b"abc"), "a.bin has 3 bytes, and had 6"),
        (lambda p: p.write_bytes(b"abcdefg"), "a.bin has 7 bytes, and had 6"),
        (Path.unlink, "a.bin is missing"),
    ):
        change(made / "part" / "a.bin")
        with pytest.raises(UserError, match=f"{words}.*delete .*step, and run"):
            artefact.check(made, {"x": 1}, [])
        with pytest.raises(UserError, match=words):
            artefact.require(made, "prepare", {"x": 1}, [])


def test_other_bytes_of_the_same_size_are_named_by_their_checksum(made):
    (made / "part" / "a.bin").write_bytes(b"abcdeF")
    manifest = artefact.check(made, {"x": 1}, [])  # sizes only
    assert list(artefact.damaged(made, manifest)) == []
    (wrong,) = artefact.damaged(made, manifest, checksums=True)
    assert "part/a.bin holds other bytes" in wrong


@pytest.mark.parametrize("text", ["", "{", "[]", '{"settings": {}}', "\0"])
def test_a_damaged_manifest_is_named_with_the_remedy(made, text):
    (made / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=r"manifest\.json: is .*delete .*step, and run"):
        artefact.check(made, {"x": 1}, [])


def test_nothing_in_a_manifest_says_where_it_lies(tmp_path, made):
    artefact.build(tmp_path / "next", {}, [made], lambda out: {})
    text = (tmp_path / "next" / "manifest.json").read_text()
    assert str(tmp_path) not in text
    assert json.loads(text)["inputs"].keys() == {"step"}


def test_free_fields_are_no_other_config():
    e = small_experiment(Path("x"))
    before = binding(e)
    free = dataclasses.replace(
        e,
        mesh=dataclasses.replace(e.mesh, data=2),
        generate=dataclasses.replace(e.generate, tokens=7),
        train=dataclasses.replace(e.train, log_every=7, keep=9, validate=0),
    )
    assert binding(free) == before


def test_files_that_belong_together_are_all_replaced_or_none(tmp_path):
    first, second = tmp_path / "a", tmp_path / ("b" * 255)  # whose name aside is too long
    first.write_bytes(b"before")
    with pytest.raises(OSError, match="too long"):
        files.write_together({first: b"after", second: b"after"})
    assert first.read_bytes() == b"before"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_kill_before_the_last_rename_costs_nothing(tmp_path, monkeypatch):
    made = []

    def make(out: Path) -> dict:
        made.append(out)
        (out / "a").write_bytes(b"abc")
        return {"n": len(made)}

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        replace = files.replace
        patch.setattr(
            files, "replace", lambda a, b: killed() if b == tmp_path / "step" else replace(a, b)
        )
        with pytest.raises(KeyboardInterrupt):
            artefact.build(tmp_path / "step", {"x": 1}, [], make)
    assert artefact.build(tmp_path / "step", {"x": 1}, [], make)["counts"] == {"n": 1}
    assert sorted(p.name for p in (tmp_path / "step").iterdir()) == ["a", "manifest.json"]
    assert len(made) == 1


def test_what_is_prepared_elsewhere_is_read_and_not_made_there(finished, small, tmp_path):
    """`--prepared`: the directory is remembered, held while it is read, and changed by nobody else."""
    args = argparse.Namespace(
        workdir=None, workdir_flag=tmp_path / "mine", config=None, prepared=str(finished)
    )
    WorkDir(tmp_path / "mine", small).save()
    work = experiment.open_work(args, [])
    assert work.prepared_in == finished
    assert prepare.prepare(work).keys() == prepare.check_prepared(WorkDir(finished)).keys()
    assert not work.root.joinpath("prepare").exists()
    again = WorkDir(work.root)
    assert os.path.samefile(again.prepared(), finished / "prepare")
    with again.reading(), pytest.raises(UserError, match="is preparing here, or reads what is"):
        WorkDir(finished).lock("prepare").__enter__()
    for change in (lambda: prepare.prepare(again, rebuild=True), lambda: beam.run(again)):
        with pytest.raises(UserError, match=rf"mine uses what is prepared in .*{finished.name}"):
            change()
    other = dataclasses.replace(small, corpus=dataclasses.replace(small.corpus, vocab=330))
    with pytest.raises(UserError, match=r"corpus\.vocab was 320, is now 330"):
        prepare.prepare(WorkDir(tmp_path / "other", other, finished))
    assert not (tmp_path / "other").exists()
    for given, message in (
        (tmp_path / "nothing", "is no working directory"),
        (work.root, "is itself prepared in"),
    ):
        args.prepared = str(given)
        with pytest.raises(UserError, match=message):
            experiment.open_work(args, [])
    WorkDir(tmp_path / "fourth", other).save()
    args = argparse.Namespace(workdir=tmp_path / "fourth", workdir_flag=None, config=None)
    args.prepared = str(finished)
    with pytest.raises(UserError, match=r"give it these too: --config\.corpus\.vocab=320$"):
        experiment.open_work(args, [])
    args = argparse.Namespace(workdir=finished, workdir_flag=None, config=None, prepared=None)
    args.prepared = str(tmp_path / "third")
    WorkDir(tmp_path / "third", small).save()
    with pytest.raises(UserError, match="reads what is prepared in"):
        experiment.open_work(args, [])


def test_what_is_prepared_and_was_copied_alone_gets_its_experiment_back(finished, small, tmp_path):
    """`train` and `evaluate` went on from such a directory, and then it was no working directory."""
    shutil.copytree(finished / "prepare", tmp_path / "prepare")
    prepare.prepare(WorkDir(tmp_path, small))
    assert WorkDir(tmp_path).experiment == small
