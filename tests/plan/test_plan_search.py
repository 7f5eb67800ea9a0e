"""The search takes what is fastest by count of what fits, on a machine that is not here."""

import dataclasses

import pytest
from conftest import altered, small_experiment

from retro_jax.cli import main as cli
from retro_jax.errors import UserError
from retro_jax.methods.method import method_of
from retro_jax.plan import plan, search, topology

VOCAB = 320


@pytest.fixture
def experiment(tmp_path, monkeypatch):
    """Two heads, so that two devices along `model` are the most; nothing else is tried."""
    monkeypatch.setattr(search, "REMATS", ("none",))
    monkeypatch.setattr(search, "BLOCKS", (32,))
    return altered(small_experiment(tmp_path), model={"attention_block": 32})


def test_the_best_comes_first_and_is_one_that_the_machine_has(experiment):
    method, on = method_of(experiment, "retro"), topology.parse("h100:2")
    found = search.search(experiment, on, VOCAB, method)
    meshes = {tuple(r["mesh"].values()) for r in found}
    assert meshes == {(1, 2, 1), (2, 1, 1), (1, 1, 2)}
    assert all(r["fits"] and not r["compiled"] and r["chips"] == 2 for r in found)
    worst = [r["seconds_per_step"][1] for r in found]
    assert worst == sorted(worst)
    best = found[0]
    again = dataclasses.replace(
        experiment, mesh=plan.parse_mesh("x".join(map(str, best["mesh"].values())))
    )
    assert plan.estimate(again, on, VOCAB, method) == best


def test_parts_are_taken_only_as_many_as_memory_wants(experiment, monkeypatch):
    method, on = method_of(experiment, "retro"), topology.parse("h100:1")
    whole = plan.estimate(
        dataclasses.replace(experiment, mesh=plan.parse_mesh("1x1x1")), on, VOCAB, method
    )
    memory = whole["bytes_per_chip"]
    tight = memory["total"] - memory["activations"] // 3
    small = dataclasses.replace(topology.CHIPS["h100"], memory=int(tight / plan._USABLE))
    monkeypatch.setitem(topology.CHIPS, "h100", small)
    best = search.search(experiment, on, VOCAB, method)[0]
    assert whole["fits"]
    assert best["accumulate"] == 2
    monkeypatch.setitem(topology.CHIPS, "h100", dataclasses.replace(small, memory=10_000))
    with pytest.raises(UserError, match="nothing fits; take more chips"):
        search.search(experiment, on, VOCAB, method)


def test_what_is_computed_again_and_the_blocks_are_those_of_its_network(experiment, monkeypatch):
    """Of one mesh: each has its own products and bytes."""
    monkeypatch.setattr(search, "REMATS", ("none", "full"))
    monkeypatch.setattr(search, "BLOCKS", (16, 32))
    found = search.search(
        experiment, topology.parse("h100:1"), VOCAB, method_of(experiment, "retro")
    )
    again = {(r["remat"], r["attention_block"]): r["recomputed"] for r in found}
    assert len(again) == 4
    assert again["full", 32] > again["none", 32]
    assert len({r["seconds_per_step"][1] for r in found}) == 4


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--mesh=1x4x1", "--search"), "the search is for the mesh"),
        (("--search", "--compile=-1"), "--compile=-1: must be a number of configurations"),
        (("--compile=1",), "give --search too"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(flags, message, capfd):
    words = ["plan", "--config=experiments/quickstart.py", "--topology=v5e:2x2", *flags]
    assert cli.main(words) == 2
    assert message in capfd.readouterr().err


def test_nothing_is_compiled_where_nothing_is_asked_for(experiment):
    """For a TPU too, whose compiler may be here: counts alone take a search's minutes, and no more."""
    method, on = method_of(experiment, "retro"), topology.parse("v5e:1x1")
    found = search.search(experiment, on, VOCAB, method, compiled=0)
    assert [r["compiled"] for r in found] == [False]
