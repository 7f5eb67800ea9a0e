"""From text to a generated continuation, on a small corpus: what runs and results hold, and resume."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import altered, make_mesh, small_experiment, write_corpus

from retro_jax.cli import experiment
from retro_jax.config import to_config_dict
from retro_jax.corpus import collect
from retro_jax.errors import UserError
from retro_jax.evaluate import evaluate, rows
from retro_jax.generate import stage
from retro_jax.methods.method import method_of
from retro_jax.model import functional
from retro_jax.pipeline import prepare
from retro_jax.store import artefact
from retro_jax.store.workdir import WorkDir
from retro_jax.train import loop, restore
from retro_jax.train.checkpoint import Checkpoints


def test_a_second_run_does_nothing_and_says_so(finished, small, capfd):
    def times():
        found = (p for p in finished.rglob("*") if p.is_file() and ".locks" not in p.parts)
        return {p: p.stat().st_mtime_ns for p in found}

    before = times()
    prepare.prepare(WorkDir(finished, small))
    loop.train(WorkDir(finished, small), method_of(small, "retro"))
    evaluate.evaluate(WorkDir(finished, small))
    assert times() == before
    assert "train/retro: complete" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("corpus.vocab", {"corpus": {"vocab": 330}}),
        ("model.decoder.d", {"model": {"decoder": {"d": 32}}}),
        ("train.steps", {"train": {"steps": 7}}),
        ("evaluate.stride", {"evaluate": {"stride": 48}}),
    ],
)
def test_a_directory_of_another_config_is_refused_by_field(finished, small, name, changes):
    other = altered(small, **changes)

    def run():
        prepare.prepare(WorkDir(finished, other))
        loop.train(WorkDir(finished, other), method_of(other, "retro"))

    with pytest.raises(UserError, match=rf"{re.escape(name)} was .*another working directory"):
        run()


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("corpus.vocab", {"corpus": {"vocab": 330}}),
        ("retrieval.settings.tfidf.dim", {"retrieval": {"settings": {"tfidf": {"dim": 8}}}}),
        ("model.decoder.d", {"model": {"decoder": {"d": 32}}}),
        ("train.length", {"train": {"length": 32}, "evaluate": {"stride": 16}}),
    ],
)
def test_a_stage_run_alone_refuses_what_another_config_prepared(finished, small, name, changes):
    other = altered(small, **changes)
    for run in (evaluate.evaluate, stage.generate):
        with pytest.raises(UserError, match=rf"{re.escape(name)} was .*another working directory"):
            run(WorkDir(finished, other))


def test_all_that_was_trained_with_another_config_is_named_at_once(finished, small):
    """So that who deletes it does it once."""
    trained = " and ".join(
        re.escape(str(finished / "train" / n)) for n in ("language_model", "retro")
    )
    with pytest.raises(UserError, match=rf"^{trained} were made .*train.steps was .*delete what"):
        experiment.keep(WorkDir(finished, altered(small, train={"steps": 7})))


@pytest.mark.parametrize(("settings", "found"), [({"a": 1}, True), ({"a": 2}, False)])
def test_an_interrupted_step_is_no_artefact_and_is_built_on_if_it_is_to_be_the_same(
    tmp_path, settings, found
):
    def fails(out):
        (out / "half.npy").write_bytes(b"x")
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match=r"step: cannot be written .*No space"):
        artefact.build(tmp_path / "step", {"a": 1}, [], fails)
    assert artefact.check(tmp_path / "step", {"a": 1}, []) is None

    def again(out):
        return {"found": (out / "half.npy").exists()}

    artefact.build(tmp_path / "step", settings, [], again)
    assert artefact.read(tmp_path / "step")["counts"] == {"found": found}
    assert [p.name for p in tmp_path.iterdir()] == ["step"]


def test_a_step_that_the_input_made_fail_leaves_nothing(tmp_path):
    def refuses(out):
        (out / "half.npy").write_bytes(b"x")
        raise UserError("x.txt: the document is empty")

    with pytest.raises(UserError, match=r"x\.txt"):
        artefact.build(tmp_path / "step", {}, [], refuses)
    assert not list(tmp_path.iterdir())


def test_the_summary_holds_what_was_measured(finished):
    summary = json.loads((finished / "summary.json").read_text())
    assert {"on", "off", "random", "self", "language_model"} < set(summary["bits_per_byte"])
    assert summary["violations"] == 0
    assert set(summary["stages"]) == {"prepare", "train", "evaluate", "generate"}
    assert summary["methods"]["retro"]["tokens_per_second"] > 0
    assert summary["peak_memory_bytes"] > 100e6
    found = rows.load(finished / "evaluate" / "heldout" / "tokens.parquet")
    for name, value in summary["bits_per_byte"].items():
        bits = found.nats[name].sum() / np.log(2) / found["bytes"].sum()
        np.testing.assert_allclose(bits, value, rtol=1e-5)
    texts = [d.text for d in collect.read(finished / "prepare" / "corpus", "heldout")]
    assert found["bytes"].sum() == sum(len(t.encode()) for t in texts)
    state = Checkpoints(finished / "train" / "retro" / "checkpoints")
    assert state.latest() == 6
    assert summary["methods"]["retro"]["parameters"] == functional.count(
        functional.shapes(small_experiment(Path()).model, 320)
    )


# `retro`, to which SIGTERM comes when it writes line 14 of the log.
STOPPED = """
import os, signal, sys
from pathlib import Path
from lives import nth, watch
from retro_jax.cli.main import main

line = nth(14, "write", path="metrics.jsonl".__eq__)
watch(Path(sys.argv[1]), line, lambda what, path: os.kill(os.getpid(), signal.SIGTERM))
sys.exit(main(sys.argv[2:]))
"""


def test_a_stopped_training_continues_to_the_same_weights(tmp_path):
    """Stopped in the middle by request; the same command again gives, bit for bit, the uninterrupted run.
    (Stopped outright: faults/test_kills.py.)"""
    corpus = tmp_path / "corpus"
    write_corpus(corpus)
    experiment = small_experiment(corpus, steps=24, checkpoint_every=5, methods=("retro",))
    config = tmp_path / "config.py"
    config.write_text(
        "import json, ml_collections\n"
        f"fields = json.loads({to_config_dict(experiment).to_json()!r})\n"
        "def get_config():\n    return ml_collections.ConfigDict(fields)\n"
    )
    prepare.prepare(WorkDir(tmp_path / "whole", experiment))
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    loop.train(WorkDir(tmp_path / "whole", experiment), method_of(experiment, "retro"))
    directory = tmp_path / "resumed" / "train" / "retro"
    command = [sys.executable, "-c", STOPPED, str(directory), "train", f"--config={config}",
               f"--workdir={tmp_path}/resumed"]  # fmt: skip
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        command, env=os.environ | {"JAX_NUM_CPU_DEVICES": "8", "PYTHONPATH": paths},
        stderr=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 75, done.stderr
    assert "run the same command to continue" in done.stderr
    stopped = Checkpoints(directory / "checkpoints").latest()
    assert 10 <= stopped < 20
    log = directory / "metrics.jsonl"
    with log.open("a") as file:
        file.write('{"step": 4')  # as a crash in the middle of a line leaves it
    loop.train(WorkDir(tmp_path / "resumed", experiment), method_of(experiment, "retro"))
    mesh = make_mesh(1, 4, 2)
    with jax.set_mesh(mesh):
        whole, resumed = (
            restore.restore_trained(
                WorkDir(tmp_path / name, experiment), method_of(experiment, "retro"), mesh
            )
            for name in ("whole", "resumed")
        )
    for name in whole:
        np.testing.assert_array_equal(whole[name], resumed[name])
    rows = map(json.loads, log.read_text().splitlines())
    steps = [row["step"] for row in rows if "loss" in row]
    assert steps == list(range(1, 25))


def test_a_checkpoint_restores_on_another_mesh(finished, small):
    restored = []
    for shape in ((1, 1, 1), (2, 2, 2)):
        mesh = make_mesh(*shape)
        with jax.set_mesh(mesh):
            params = restore.restore_trained(
                WorkDir(finished, small), method_of(small, "retro"), mesh
            )
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
        restore.restore_trained(WorkDir(root, small), method_of(small, "retro"), mesh)


def test_a_missing_or_unfinished_checkpoint_is_named_with_the_remedy(finished, small, tmp_path):
    root = tmp_path / "w"
    shutil.copytree(finished, root)
    shutil.rmtree(root / "train" / "retro" / "checkpoints")
    with pytest.raises(
        UserError, match=r"checkpoints holds no checkpoint: delete .* `retro train`"
    ):
        stage.generate(WorkDir(root, small))
    shutil.rmtree(root / "train" / "retro")
    with pytest.raises(UserError, match=r"train/retro is missing.*`retro train`"):
        stage.generate(WorkDir(root, small))
