"""What a machine that is not here would need: counted, and compiled by the TPU's own compiler."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import altered, make_mesh, small_experiment

from retro_jax.cli import main as cli
from retro_jax.config import (
    DecoderConfig,
    EncoderConfig,
    EvaluateConfig,
    MeshConfig,
    ModelConfig,
    ReadingConfig,
    TrainConfig,
    experiment_beside,
    from_config_dict,
)
from retro_jax.errors import UserError
from retro_jax.methods.method import method_of
from retro_jax.methods.retro import Retro
from retro_jax.model import functional
from retro_jax.plan import count, hlo, plan, topology
from retro_jax.train.log import step_flops
from retro_jax.train.step import make_train_step

VOCAB = 320


def needs(e, vocab, mesh, method="retro"):
    return count.needs(e, vocab, mesh, method_of(e, method))


@pytest.fixture
def experiment(tmp_path):
    return dataclasses.replace(small_experiment(tmp_path), mesh=MeshConfig(data=4, model=2))


def test_bytes_a_chip_are_those_that_training_holds(experiment):
    mesh = make_mesh(1, 4, 2)
    needed = needs(experiment, VOCAB, mesh.abstract_mesh)
    from retro_jax.train.step import init_state

    with jax.set_mesh(mesh):
        state = init_state(Retro(experiment.model), experiment.train, VOCAB)

    def held(tree):
        return sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(tree))

    assert needed["parameters"] == held(state.params)
    assert needed["optimizer"] == held(state.opt_state)


def test_activations_follow_the_batch_and_remat_trades_them_for_flops(experiment):
    mesh = make_mesh(1, 4, 2).abstract_mesh
    found = {}
    for name, model, batch in (("none", "none", 8), ("full", "full", 8), ("more", "none", 16)):
        e = dataclasses.replace(
            experiment,
            model=dataclasses.replace(experiment.model, remat=model),
            train=dataclasses.replace(experiment.train, batch=batch),
        )
        found[name] = needs(e, VOCAB, mesh)
    assert 1.8 < found["more"]["activations"] / found["none"]["activations"] < 2.2
    assert found["full"]["activations"] < found["none"]["activations"]
    assert found["full"]["recomputed"] > found["none"]["recomputed"]
    halves = dataclasses.replace(
        experiment, train=dataclasses.replace(experiment.train, batch=16, accumulate=2)
    )
    assert needs(halves, VOCAB, mesh)["activations"] == found["none"]["activations"]


def test_collectives_are_read_off_the_program_and_loops_count_as_often_as_they_run(experiment):
    """A longer stack of equal layers is a loop that runs more often, not a longer program."""
    sent = {}
    for layers in (4, 7):
        model = altered(
            experiment.model, decoder={"layers": layers}, reading={"cca_layers": (layers,)}
        )
        mesh = make_mesh(1, 4, 2)
        with jax.set_mesh(mesh):
            step = count.shapes(
                dataclasses.replace(experiment, model=model), VOCAB, mesh, Retro(model, 2)
            )
            made = make_train_step(Retro(model), experiment.train)
            lowered = made.lower(step.state, step.batch)
            sent[layers] = hlo.collectives(lowered.compile().as_text())["all-gather"]
    assert sent[7]["count"] > sent[4]["count"]
    assert sent[7]["bytes"] > sent[4]["bytes"]


TEXT = """HloModule step

%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %a = f32[8,4]{1,0} all-gather(%x), dimensions={0}
  ROOT %t = (s32[], f32[8]) tuple(%i, %y)
}

%cond (p: (s32[], f32[8])) -> pred[] {
  %c = s32[]{:T(128)} constant(5)
  ROOT %lt = pred[] compare(%i, %c), direction=LT
}

%called (p: f32[2]) -> f32[2] {
  ROOT %r = bf16[16]{0} reduce-scatter(%p), replica_groups=[2,4]<=[8], to_apply=%sum
}

%all-reduce-scatter.1 (p: bf16[64,2]) -> (bf16[16,2], bf16[4]) {
  %r = (bf16[64,2]{1,0}, bf16[16]{0}) all-reduce(%p, %q), channel_id=9, to_apply=%sum
  ROOT %t = (bf16[16,2], bf16[4]) tuple(%i, %y)
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %w = (s32[], f32[8]) while(%init), condition=%cond, body=%body
  %s = (f32[4]{0}, f32[32]{0}) all-gather-start(%p), channel_id=3, dimensions={0}
  %b = f32[32]{0} all-gather(%p), channel_id=3, dimensions={0}
  %d = f32[32]{0} all-gather-done(%s)
  %g = (bf16[16,2]{1,0}, bf16[4]{0}) fusion(%p), kind=kCustom, calls=%all-reduce-scatter.1
  ROOT %f = f32[2] fusion(%p), kind=kLoop, calls=%called
}
"""


def test_collectives_of_a_known_program():
    assert hlo.collectives(TEXT) == {
        "all-gather": {"count": 6, "bytes": 5 * 8 * 4 * 4 + 32 * 4},
        "reduce-scatter": {"count": 2, "bytes": 4 * 16 * 2 + (64 * 2 + 16) * 2},
    }


@pytest.fixture(scope="module")
def model():
    """Small, and of widths that a TPU has: it compiles in seconds."""
    return ModelConfig(
        decoder=DecoderConfig(d=128, layers=1, heads=2, head_size=64),
        encoder=EncoderConfig(d=128, layers=1, heads=2, head_size=64),
        reading=ReadingConfig(cca_layers=(1,)),
        dtype="bfloat16",
        remat="full",
    )


def test_the_tpu_compiler_says_what_slices_need(experiment, model):
    on = "v5e:2x2*2"
    e = dataclasses.replace(
        experiment,
        model=model,
        train=TrainConfig(length=256, batch=16),
        evaluate=EvaluateConfig(stride=128),
        mesh=plan.parse_mesh("2x2x2"),
    )
    made = plan.plan(e, topology.parse(on), VOCAB, method_of(e, "retro"))
    assert made["compiled"]
    assert made["fits"]
    assert made["chips"] == 8
    memory = made["bytes_per_chip"]
    parts = sum(memory[k] for k in ("parameters", "optimizer", "activations", "temporaries"))
    assert 0 <= memory["total"] - parts < 2**26  # the program itself, and the batch
    assert made["collectives"]["all-gather"]["bytes"] > 0
    assert made["smallest_that_fits"] == "v5e:2x2 (estimated)"  # two chips, for model=2
    assert json.loads(json.dumps(made)) == made
    estimated = plan.estimate(e, topology.parse(on), VOCAB, method_of(e, "retro"))
    assert not estimated["compiled"]
    assert estimated["bytes_per_chip"]["parameters"] == memory["parameters"]


def test_a_language_model_is_planned_without_retrieval():
    """Of an experiment of RETRO it is that of the experiment of the language model alone."""
    root, found = Path(__file__).parents[2] / "experiments", []
    for name, size in (("retro", "172m"), ("baseline", "132m")):
        e = from_config_dict(experiment_beside(root / "baseline.py", name).get_config(size))
        few = altered(e.model, decoder={"layers": 3}, reading={"cca_layers": (3,)})
        e = dataclasses.replace(e, model=few)
        mesh = topology.abstract_mesh(topology.parse("h100:8"), e.mesh)
        found.append(needs(e, plan.vocab_of(e), mesh, "language_model"))
    assert found[0] == found[1]


def test_a_gpu_is_estimated_and_marked_so(capfd):
    config = "--config=experiments/quickstart.py"
    mesh = "--config.train.batch=8"
    assert cli.main(["plan", config, mesh, "--topology=h100:8", "--json"]) == 0
    made = json.loads(capfd.readouterr().out)
    assert (made["compiled"], made["collectives"], made["fits"]) == (False, None, True)
    assert cli.main(["plan", config, mesh, "--topology=h100:8", "--method=language_model"]) == 0
    told = capfd.readouterr().err
    assert "ESTIMATE" in told
    assert "language_model" in told


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--topology is missing"),
        (["--topology=v9:2x2"], "no chip 'v9'; known: v4, v5e"),
        (["--topology=v5e:16"], "write it as v5e:4x4"),
        (["--topology=v5e:2x4", "--mesh=8"], "REPLICAxDATAxMODEL"),
        (["--topology=v5e:2x4", "--mesh=1x4x1"], "does not multiply to the 8 device(s)"),
        (["--topology=v5e:2x4*2", "--mesh=1x16x1"], "must be a multiple of the 2 slices"),
        (["--topology=v5e:2x4", "--rebuild"], "not understood: --rebuild"),
    ],
)
def test_what_cannot_be_planned_is_said_in_one_line(capfd, flags, message):
    status = cli.main(["plan", "--config=experiments/quickstart.py", *flags])
    error = capfd.readouterr().err
    assert (status, error.count("\n")) == (2, 1), error
    assert message in error


def test_peaks_and_memories_are_of_the_kind_that_jax_names():
    from types import SimpleNamespace

    from retro_jax.train.hardware import peak_flops

    def named(kind):
        return [SimpleNamespace(device_kind=kind)] * 2

    assert peak_flops(named("TPU v5 lite")) == 2 * 197e12
    assert peak_flops(named("TPU v5")) == 2 * 459e12
    assert peak_flops(named("NVIDIA H100 80GB HBM3")) == 2 * 989e12
    assert peak_flops(named("cpu")) is None
    assert np.isfinite(topology.CHIPS["v4"].flops)


def test_a_mesh_that_is_not_written_as_one_is_refused():
    with pytest.raises(UserError, match="REPLICAxDATAxMODEL"):
        plan.parse_mesh("a")


def test_what_cannot_be_counted_is_refused(experiment):
    by_cudnn = dataclasses.replace(experiment, model=altered(experiment.model, attention="cudnn"))
    with pytest.raises(
        UserError, match=r"model.attention = 'cudnn'.* not counted; plan with reference"
    ):
        plan.estimate(by_cudnn, topology.parse("h100:8"), VOCAB, Retro(experiment.model, 2))


def test_a_frozen_base_needs_no_gradients_no_moments_and_half_the_bytes(monkeypatch):
    """RETROfit of Llama 3 8B's shape, of which only a config.json is here, against training all of it."""
    monkeypatch.chdir(Path(__file__).parent.parent.parent)
    retrofit = experiment_beside("experiments/baseline.py", "retrofit")
    e = from_config_dict(retrofit.get_config("experiments/bases/llama-3-8b"))
    on = topology.parse("v5p:2x2x1")
    vocab = plan.vocab_of(e)
    assert 8.0e9 < functional.count(functional.shapes(e.model, vocab, retrieval=False)) < 8.1e9
    few = altered(e.model, decoder={"layers": 8}, reading={"cca_layers": (6, 8)})
    e = dataclasses.replace(e, model=few)
    thawed = dataclasses.replace(e, train=dataclasses.replace(e.train, freeze=False))
    frozen, whole = (needs(x, vocab, topology.abstract_mesh(on, x.mesh)) for x in (e, thawed))
    base = functional.count(functional.shapes(e.model, vocab, retrieval=False))
    assert whole["optimizer"] - frozen["optimizer"] == pytest.approx(8 * base / 4, rel=1e-3)
    assert whole["parameters"] - frozen["parameters"] == pytest.approx(2 * base / 4, rel=1e-3)
    assert frozen["gradients"] < whole["gradients"] / 5
    assert frozen["flops"] < 0.75 * whole["flops"]
    # The base's own gradients, which a product's rule computes too, are no work of the step.
    for x, of in ((frozen, e), (whole, thawed)):
        again = step_flops(Retro(of.model, 2), of.train, vocab) / 3  # remat=full: the forward pass
        assert x["recomputed"] < 1.2 * again
