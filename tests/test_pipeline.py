"""From text to a generated continuation, on a small corpus: what runs and results hold, and resume."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import make_mesh, small_experiment, write_corpus

from retro_jax import prepare, workdir
from retro_jax.config import to_config_dict
from retro_jax.corpus import collect
from retro_jax.errors import UserError
from retro_jax.evaluate import evaluate, rows
from retro_jax.generate import stage
from retro_jax.model import functional
from retro_jax.train import loop
from retro_jax.train.checkpoint import Checkpoints


def test_a_second_run_does_nothing_and_says_so(finished, small, capfd):
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file()}
    prepare.prepare(small, finished)
    loop.train(small, finished, retrieval=True)
    evaluate.evaluate(small, finished)
    assert {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file()} == before
    assert "train/retro: complete" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("corpus", "vocab", 330),
        ("model", "d", 32),
        ("train", "steps", 7),
        ("evaluate", "stride", 48),
    ],
)
def test_a_directory_of_another_config_is_refused_by_field(finished, small, section, field, value):
    part = dataclasses.replace(getattr(small, section), **{field: value})
    other = dataclasses.replace(small, **{section: part})

    def run():
        prepare.prepare(other, finished)
        loop.train(other, finished, retrieval=True)

    with pytest.raises(UserError, match=rf"{section}\.{field} was .*another --workdir"):
        run()


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("corpus", "vocab", 330),
        ("retrieval", "dim", 8),
        ("model", "d", 32),
        ("train", "length", 32),
    ],
)
def test_a_stage_run_alone_refuses_what_another_config_prepared(
    finished, small, section, field, value
):
    part = dataclasses.replace(getattr(small, section), **{field: value})
    if field == "length":
        small = dataclasses.replace(small, evaluate=dataclasses.replace(small.evaluate, stride=16))
    other = dataclasses.replace(small, **{section: part})
    for run in (evaluate.evaluate, stage.generate):
        with pytest.raises(UserError, match=rf"{section}\.{field} was .*another --workdir"):
            run(other, finished)


@pytest.mark.parametrize(("settings", "found"), [({"a": 1}, True), ({"a": 2}, False)])
def test_an_interrupted_step_is_no_artefact_and_is_built_on_if_it_is_to_be_the_same(
    tmp_path, settings, found
):
    def fails(out):
        (out / "half.npy").write_bytes(b"x")
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match=r"step: cannot be written .*No space"):
        workdir.build(tmp_path / "step", {"a": 1}, [], fails)
    assert workdir.check(tmp_path / "step", {"a": 1}, []) is None
    again = lambda out: {"found": (out / "half.npy").exists()}  # noqa: E731
    workdir.build(tmp_path / "step", settings, [], again)
    assert workdir.read_manifest(tmp_path / "step")["counts"] == {"found": found}
    assert [p.name for p in tmp_path.iterdir()] == ["step"]


def test_a_step_that_the_input_made_fail_leaves_nothing(tmp_path):
    def refuses(out):
        (out / "half.npy").write_bytes(b"x")
        raise UserError("x.txt: the document is empty")

    with pytest.raises(UserError, match=r"x\.txt"):
        workdir.build(tmp_path / "step", {}, [], refuses)
    assert not list(tmp_path.iterdir())


def test_the_summary_holds_what_was_measured(finished):
    summary = json.loads((finished / "summary.json").read_text())
    assert {"on", "off", "random", "self", "baseline"} < set(summary["bits_per_byte"])
    assert summary["violations"] == 0
    assert set(summary["stages"]) == {"prepare", "train", "evaluate", "generate"}
    assert summary["tokens_per_second"] > 0
    assert summary["peak_memory_bytes"] > 100e6
    found = rows.load(finished / "evaluate" / "heldout" / "tokens.parquet")
    for name, value in summary["bits_per_byte"].items():
        bits = found.nats[name].sum() / np.log(2) / found["bytes"].sum()
        np.testing.assert_allclose(bits, value, rtol=1e-5)
    texts = [d.text for d in collect.read(finished / "prepare" / "corpus", "heldout")]
    assert found["bytes"].sum() == sum(len(t.encode()) for t in texts)
    state = Checkpoints(finished / "train" / "retro" / "checkpoints")
    assert state.latest() == 6
    assert summary["parameters"] == functional.count(
        functional.shapes(small_experiment(Path()).model, 320)
    )


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_training_continues_to_the_same_weights(tmp_path, how):
    """Stopped in the middle, by request or outright; the same command again gives, bit for bit, the
    uninterrupted run."""
    corpus = tmp_path / "corpus"
    write_corpus(corpus)
    experiment = small_experiment(corpus, steps=40, checkpoint_every=5, models=("retro",))
    config = tmp_path / "config.py"
    config.write_text(
        "import json, ml_collections\n"
        f"fields = json.loads({to_config_dict(experiment).to_json()!r})\n"
        "def get_config():\n    return ml_collections.ConfigDict(fields)\n"
    )
    prepare.prepare(experiment, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    loop.train(experiment, tmp_path / "whole", retrieval=True)
    directory = tmp_path / "resumed" / "train" / "retro"
    command = [sys.executable, "-m", "retro_jax.cli", "train", f"--config={config}",
               f"--workdir={tmp_path}/resumed"]  # fmt: skip
    env = os.environ | {"JAX_NUM_CPU_DEVICES": "8"}
    log = directory / "metrics.jsonl"
    with subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.time() + 200
        while time.time() < deadline and not (log.exists() and log.read_text().count("\n") >= 14):
            time.sleep(0.01)
        process.send_signal(how)
        error = process.communicate(timeout=200)[1]
    if how == signal.SIGTERM:
        assert process.returncode == 75, error
        assert "run the same command to continue" in error
    stopped = Checkpoints(directory / "checkpoints").latest()
    assert 5 <= stopped < 40
    with log.open("a") as file:
        file.write('{"step": 4')  # as a crash in the middle of a line leaves it
    loop.train(experiment, tmp_path / "resumed", retrieval=True)
    mesh = make_mesh(1, 4, 2)
    with jax.set_mesh(mesh):
        whole, resumed = (
            loop.restore_trained(experiment, tmp_path / name, True, mesh)
            for name in ("whole", "resumed")
        )
    for name in whole:
        np.testing.assert_array_equal(whole[name], resumed[name])
    rows = map(json.loads, log.read_text().splitlines())
    steps = [row["step"] for row in rows if "loss" in row]
    assert steps == list(range(1, 41))


def test_a_checkpoint_restores_on_another_mesh(finished, small):
    restored = []
    for shape in ((1, 1, 1), (2, 2, 2)):
        mesh = make_mesh(*shape)
        with jax.set_mesh(mesh):
            params = loop.restore_trained(small, finished, True, mesh)
        assert params["stacks.0.0.feed_forward.up"].sharding.mesh.shape == mesh.shape
        restored.append({n: np.asarray(p) for n, p in params.items()})
    for name in restored[0]:
        np.testing.assert_array_equal(restored[0][name], restored[1][name])


def test_a_damaged_checkpoint_is_named_with_the_remedy(finished, small, tmp_path, mesh):
    root = tmp_path / "w"
    shutil.copytree(finished, root)
    step = root / "train" / "retro" / "checkpoints" / "6" / "state"
    for file in step.rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    with pytest.raises(UserError, match=r"checkpoints/6: the checkpoint is damaged"):
        loop.restore_trained(small, root, True, mesh)


def test_a_missing_or_unfinished_checkpoint_is_named_with_the_remedy(finished, small, tmp_path):
    root = tmp_path / "w"
    shutil.copytree(finished, root)
    shutil.rmtree(root / "train" / "retro" / "checkpoints")
    with pytest.raises(
        UserError, match=r"checkpoints holds no checkpoint: delete .* `retro train`"
    ):
        stage.generate(small, root)
    shutil.rmtree(root / "train" / "retro")
    with pytest.raises(UserError, match=r"train/retro is missing.*`retro train`"):
        stage.generate(small, root)
