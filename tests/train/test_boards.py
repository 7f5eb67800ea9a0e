"""What is told beside metrics.jsonl: TensorBoard, Weights & Biases, a trace."""

import json
import struct
import sys
from pathlib import Path

import pytest
from conftest import small_experiment, write_corpus

from retro_jax.cli.main import main
from retro_jax.config import TrainConfig
from retro_jax.errors import UserError
from retro_jax.pipeline.prepare import prepare
from retro_jax.store.workdir import WorkDir
from retro_jax.train.boards import boards

pytest.importorskip("wandb", reason="it is optional: pip install 'retro_jax[wandb]'")
event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The directory of a language model that was trained with all of them, stopped and continued."""
    root = tmp_path_factory.mktemp("boards")
    write_corpus(root / "corpus", 30)
    e = small_experiment(root / "corpus", ("language_model",), steps=6, schedule="constant")
    work = WorkDir(root / "w", e)
    work.save()
    prepare(work)
    told = ["--config.train.tensorboard=True", "--config.train.wandb=own"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        assert main(["train", str(work.root), *told, "--profile=2"]) == 0
        assert main(["train", str(work.root), *told, "--config.train.steps=8"]) == 0
    return work.trained("language_model")


def losses(events: Path) -> dict[int, float]:
    """{step: loss} of a file of events, which are TFRecords."""
    data, at, found = events.read_bytes(), 0, {}
    while at < len(data):
        size = struct.unpack_from("<Q", data, at)[0]
        event = event_pb2.Event.FromString(data[at + 12 : at + 12 + size])
        at += 16 + size
        for value in event.summary.value:
            if value.tag == "loss":
                found[event.step] = value.simple_value
    return found


def test_boards_are_told_what_the_log_says(trained):
    rows = map(json.loads, (trained / "metrics.jsonl").read_text().splitlines())
    expected = {row["step"]: row["loss"] for row in rows if "loss" in row}
    told = {}
    for events in sorted((trained / "tensorboard").iterdir()):
        told |= losses(events)
    assert told == pytest.approx(expected)
    assert set(expected) == set(range(1, 9))
    # One that is continued is the same run there.
    runs = list((trained / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(runs) == 2
    assert {run.stem for run in runs} == {f"run-{(trained / 'wandb-id').read_text()}"}
    assert all(b"heldout_loss" in run.read_bytes() for run in runs)


def test_a_trace_has_the_steps_that_were_asked_for(trained):
    traces = list((trained / "profile").rglob("*.xplane.pb"))
    assert len(traces) == 1
    assert traces[0].stat().st_size > 1000


def test_what_is_missing_is_named(tmp_path, monkeypatch, capsys):
    for fields, name, library in (
        ({"tensorboard": True}, "tensorboard", "tensorboardX"),
        ({"wandb": "own"}, "wandb", "wandb"),
    ):
        monkeypatch.setitem(sys.modules, library, None)
        message = rf"train\.{name}: pip install 'retro_jax\[{name}\]', or set it to"
        with pytest.raises(UserError, match=message):
            boards(TrainConfig(**fields), tmp_path, 0)
    assert main(["train", str(tmp_path), "--profile=-1"]) == 2
    assert "--profile=-1: must be a number of steps" in capsys.readouterr().err
