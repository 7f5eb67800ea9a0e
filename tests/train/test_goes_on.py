"""A run whose learning rate is constant is given more steps, and ends as if it had had them from the start."""

import dataclasses

import jax
import numpy as np
import pytest
from conftest import altered, make_mesh, small_experiment, write_corpus

from retro_jax.cli import main as cli
from retro_jax.config import TrainConfig
from retro_jax.errors import UserError
from retro_jax.methods.method import method_of
from retro_jax.pipeline import prepare
from retro_jax.store.workdir import WorkDir
from retro_jax.train import loop, optimizer, restore


def test_the_rate_rises_stays_and_falls_over_the_last_steps():
    config = TrainConfig(
        steps=100, warmup=10, schedule="constant", decay=0.2, learning_rate=2e-4, final=0.1
    )
    rate = optimizer.schedule(config)
    assert optimizer.decay_begins(config) == 80
    np.testing.assert_allclose([rate(10), rate(50), rate(80)], 2e-4, rtol=1e-5)
    np.testing.assert_allclose(rate(100), 2e-5, rtol=1e-4)
    assert rate(5) < rate(10) > rate(90) > rate(100)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """(experiment of 12 steps, directory that was given more steps, directory that had them at once)."""
    root = tmp_path_factory.mktemp("runs")
    write_corpus(root / "corpus", 30)
    e = small_experiment(
        root / "corpus", ("language_model",), steps=8, schedule="constant", decay=0.25
    )
    e = altered(e, train={"checkpoint_every": 3})
    longer = altered(e, train={"steps": 12})
    for name, first in (("twice", e), ("once", longer)):
        prepare.prepare(WorkDir(root / name, first))
        for experiment in dict.fromkeys((first.train.steps, 12)):
            of = altered(e, train={"steps": experiment})
            loop.train(WorkDir(root / name, of), method_of(of, "language_model"))
    return longer, root / "twice", root / "once"


def test_a_finished_run_goes_on_from_before_its_rate_fell(runs):
    e, *roots = runs
    mesh = make_mesh(1, 4, 2)
    with jax.set_mesh(mesh):
        twice, once = (
            restore.restore_trained(WorkDir(root, e), method_of(e, "language_model"), mesh)
            for root in roots
        )
    for name, value in once.items():
        # Two programs, of which each knows its number of steps, round otherwise; where a gradient is near
        # 0, Adam makes of that a share of the learning rate. Most weights are the same.
        difference = np.abs(np.asarray(twice[name]) - np.asarray(value))
        assert np.median(difference) < 1e-6, (name, np.median(difference))


def test_fewer_steps_than_it_has_are_refused_and_other_fields_too(runs):
    e, root, _ = runs
    for changed, message in (
        ({"steps": 5}, "can be given more steps, not fewer"),
        ({"learning_rate": 1.0}, r"train\.learning_rate was"),
    ):
        other = dataclasses.replace(e, train=dataclasses.replace(e.train, **changed))
        with pytest.raises(UserError, match=message):
            loop.train(WorkDir(root, other), method_of(other, "language_model"))
    before = (root / "config.json").read_bytes()
    assert cli.main(["train", str(root), "--config.train.steps=5"]) == 2
    assert (root / "config.json").read_bytes() == before  # what is refused is not stored
    same = altered(e, train={"log_every": 5, "keep": 7, "validate": 3, "checkpoint_every": 2})
    # It is complete: these never count.
    loop.train(WorkDir(root, same), method_of(same, "language_model"))
