"""Checkpoints: the newest and the best stay, and what is damaged is never trained on."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest
from conftest import make_mesh

from retro_jax.config import TrainConfig
from retro_jax.errors import UserError
from retro_jax.methods.retro import Retro
from retro_jax.train import checkpoint
from retro_jax.train.step import init_state

VOCAB, TRAIN = 64, TrainConfig(length=16, batch=8, steps=10)


@pytest.fixture
def state(tiny, mesh):
    return init_state(Retro(tiny), TRAIN, VOCAB)


@pytest.fixture
def like(tiny, mesh):
    return jax.eval_shape(lambda: init_state(Retro(tiny), TRAIN, VOCAB))


def saved(directory, state, scores: dict, settings=None):
    """Checkpoints of changing states, {step: held-out nats}."""
    made = checkpoint.Checkpoints(directory, settings, keep=2)
    for step, nats in scores.items():
        params = {n: p + step for n, p in state.params.items()}
        made.save(dataclasses.replace(state, params=params), step, nats)
    made.close()
    return checkpoint.Checkpoints(directory, settings, keep=2)


def test_the_newest_two_and_the_best_stay(state, tmp_path):
    made = saved(tmp_path, state, {1: 3.0, 2: 1.0, 3: 2.0, 4: 2.5, 5: 2.6})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["2", "4", "5"]
    assert made.latest() == 5
    assert made.best() == (2, 1.0)


def test_without_scores_the_newest_two_stay_and_none_is_the_best(state, tmp_path):
    made = saved(tmp_path, state, {1: None, 2: None, 3: None})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["2", "3"]
    assert made.best() is None


@pytest.mark.parametrize("how", ["emptied", "bit", "lost"])
def test_a_damaged_newest_is_reported_and_the_one_before_is_used(
    state, like, mesh, tmp_path, capfd, how
):
    saved(tmp_path, state, {1: 1.0, 2: 2.0})
    files = [f for f in (tmp_path / "2" / "state").rglob("*") if f.is_file()]
    if how == "lost":
        shutil.rmtree(tmp_path / "2" / "state")
    elif how == "emptied":
        for file in files:
            file.write_bytes(b"")
    else:
        for file in files:  # a bit in every thousand bytes
            content = bytearray(file.read_bytes())
            for at in range(500, len(content), 1000):
                content[at] ^= 1
            file.write_bytes(content)
    found, step = checkpoint.Checkpoints(tmp_path).restore_newest(like, mesh)
    assert step == 1
    for name, value in found.params.items():
        np.testing.assert_array_equal(value, state.params[name] + 1)
    assert "/2: the checkpoint is damaged" in (error := capfd.readouterr().err.replace("\n", " "))
    assert "going back to the one before" in error
    assert (tmp_path / "damaged-2").exists()


def test_where_none_can_be_read_nothing_is_moved_and_training_does_not_begin_anew(
    state, like, mesh, tmp_path
):
    saved(tmp_path, state, {1: None, 2: None})
    for step in "12":
        shutil.rmtree(tmp_path / step / "state")
    with pytest.raises(UserError, match=r"no checkpoint can be read; the newest: .*/2"):
        checkpoint.Checkpoints(tmp_path).restore_newest(like, mesh)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "2"]


def test_a_damaged_score_is_named_with_the_remedy(state, like, mesh, tmp_path):
    saved(tmp_path, state, {1: 2.0, 2: 1.0})
    score = tmp_path / "2" / "metrics" / "metrics"
    score.write_bytes(b"")
    with pytest.raises(UserError, match=r"2/metrics/.*: the score of a checkpoint is damaged"):
        checkpoint.Checkpoints(tmp_path)
    shutil.rmtree(score.parent)  # the remedy
    assert checkpoint.Checkpoints(tmp_path).restore_newest(like, mesh)[1] == 2


def test_a_score_that_is_no_number_is_none(state, tmp_path):
    assert saved(tmp_path, state, {1: 2.0, 2: float("nan")}).best() == (1, 2.0)


def test_the_best_is_also_the_one_that_is_just_being_written(state, tmp_path):
    made = checkpoint.Checkpoints(tmp_path)
    made.save(state, 1, 2.0)
    made.save(state, 2, 1.0)
    assert made.best() == (2, 1.0)
    made.close()


def test_another_config_is_refused_with_the_fields(state, like, mesh, tmp_path):
    saved(tmp_path, state, {1: None}, {"train.batch": 8, "train.seed": 0})
    other = checkpoint.Checkpoints(tmp_path, {"train.batch": 16, "train.seed": 0})
    with pytest.raises(UserError, match=r"train\.batch was 8, is now 16"):
        other.restore_newest(like, mesh)
    assert (tmp_path / "1").exists()


def test_a_fingerprint_is_the_same_on_every_mesh_and_another_for_other_numbers(tiny):
    prints, first = set(), None
    for shape in ((1, 1, 1), (2, 2, 2)):
        mesh = make_mesh(*shape)
        with jax.set_mesh(mesh):
            drawn = init_state(Retro(tiny), TRAIN, VOCAB)
            first = first or jax.tree.map(np.asarray, drawn)
            jax.tree.map(  # each mesh draws the same, but for the rounding of different programs
                lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), drawn, first
            )
            state = jax.tree.map(lambda x, a: jax.device_put(a, x.sharding), drawn, first)
            prints.add(int(checkpoint.fingerprint(state)))
            scale = state.params["norm.scale"].at[0].add(1e-7)
            changed = dataclasses.replace(state, params=state.params | {"norm.scale": scale})
            assert int(checkpoint.fingerprint(changed)) not in prints
    assert len(prints) == 1
