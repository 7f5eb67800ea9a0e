"""What must hold on a GPU or a TPU: `pytest -m accelerator -n0` where there is one. Elsewhere these are not run.

Tolerances are wider than those of the CPU's tests. A chip multiplies float32 matrices by default in fewer bits (a GPU
in TF32, 10 bits of mantissa; a TPU in bfloat16, 7), and adds up in another order; with precision `highest` only the
order differs.
"""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from conftest import altered, drawn, small_experiment, write_corpus
from whole import Whole

from retro_jax.cli.training import run_all
from retro_jax.config import MeshConfig, TrainConfig
from retro_jax.generate.generator import Generator
from retro_jax.methods.method import METHODS, Retrieved
from retro_jax.methods.retro import Retro
from retro_jax.model.layers import AXES, ROWS
from retro_jax.store.workdir import WorkDir
from retro_jax.train.step import init_state, make_train_step

pytestmark = pytest.mark.accelerator

VOCAB, M = 64, 4
# Of a relative difference (norms): bits that are left of a product, with room for a few layers. In bfloat16 two
# attentions of one CPU are up to 0.043 apart here.
TOLERANCE = {"highest": 1e-4, "default": 3e-2, "bfloat16": 0.1}


def mesh_of(platform: str | None):
    """A mesh of one device: of the accelerator, or of a platform."""
    return jax.make_mesh((1, 1, 1), AXES, devices=jax.devices(platform)[:1])


def batch(seed: int = 0, rows: int = 4, length: int = 16) -> dict:
    """Tokens and neighbours, of which some are missing."""
    rng = np.random.default_rng(seed)
    near = rng.integers(1, VOCAB, (rows, length // M, 2, 2 * M))
    near *= rng.random((rows, length // M, 2, 1)) < 0.8
    tokens = rng.integers(1, VOCAB, (rows, length))
    return {"tokens": tokens.astype(np.int32), "neighbours": near.astype(np.int32)}


def apart(a, b) -> float:
    """The norm of a difference over that of b."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return float(np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-9))


def on_both(function, *given):
    """What a function of weights and arrays gives on the accelerator and on the CPU."""
    out = []
    for platform in (None, "cpu"):
        mesh = mesh_of(platform)
        with jax.set_mesh(mesh):
            params, *arrays = given  # arrays have rows
            where = [jax.sharding.NamedSharding(mesh, spec) for spec in (jax.P(), ROWS)]
            placed = jax.device_put(params, where[0]), *jax.device_put(arrays, where[1])
            out.append(jax.device_get(jax.jit(function)(*placed)))
    return out


@pytest.mark.parametrize(
    ("precision", "attention"),
    [
        ("highest", "reference"),
        ("default", "reference"),
        ("highest", "flash"),
        ("default", "cudnn"),
    ],
)
def test_loss_and_gradients_are_those_of_the_cpu(precision, attention, tiny):
    platform = {"flash": "tpu", "cudnn": "gpu"}.get(attention)
    if platform not in (None, jax.default_backend()):
        pytest.skip(f"the kernels are for a {platform}")
    dtype = "bfloat16" if attention == "cudnn" else "float32"  # cuDNN has no other
    tolerance = TOLERANCE.get(dtype, TOLERANCE[precision])
    m, given = Retro(altered(tiny, attention=attention, dtype=dtype), 2), batch()
    params = jax.device_get(drawn(tiny, m.shapes(VOCAB)))
    with jax.default_matmul_precision(precision):
        (loss, grads), (expected, right) = on_both(
            jax.value_and_grad(lambda p, b: m.loss(p, b)[0]), params, given
        )
    assert apart(loss, expected) < tolerance / 10
    # A parameter whose gradient is nearly 0 has no direction to compare.
    top = max(np.linalg.norm(g) for g in right.values())
    large = [n for n in grads if np.linalg.norm(right[n]) > 1e-3 * top]
    assert len(large) > len(grads) / 2
    far = {n: apart(grads[n], right[n]) for n in large}
    assert max(far.values()) < tolerance, far


@pytest.mark.parametrize("name", METHODS)
def test_a_method_says_what_it_says_on_the_cpu(name, tiny):
    m, given = METHODS[name](tiny, 2, None, 32), batch(length=32)
    params = jax.device_get(drawn(tiny, METHODS[m.trained_as](tiny, 2).shapes(VOCAB)))
    far = np.random.default_rng(1).random(given["neighbours"].shape[:3]).astype(np.float32)
    read = Retrieved(given["neighbours"], far) if m.reads else None
    with jax.default_matmul_precision("highest"):
        said, right = on_both(m.logprobs, params, given["tokens"], read)
    np.testing.assert_allclose(said, right, atol=1e-3)


def test_bfloat16_learns_as_float32_does(tiny):
    """The same loss, a bit noisier: to 2 % after 30 steps on one batch, which is learned by heart."""
    train = TrainConfig(length=16, batch=4, steps=30, learning_rate=3e-2, warmup=3)
    losses = {}
    for dtype in ("float32", "bfloat16"):
        m = Retro(altered(tiny, dtype=dtype), 2)
        with jax.set_mesh(mesh_of(None)):
            state, step = init_state(m, train, VOCAB), make_train_step(m, train)
            losses[dtype] = []
            for _ in range(train.steps):
                state, metrics = step(state, jax.device_put(batch()))
                losses[dtype].append(float(metrics["loss"]))
    assert losses["float32"][-1] < 0.8 * losses["float32"][0]
    np.testing.assert_allclose(losses["bfloat16"], losses["float32"], rtol=0.05)


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """An experiment on one device, and a directory in which every stage has run on the accelerator."""
    root = tmp_path_factory.mktemp("accelerator")
    write_corpus(root / "corpus")
    e = small_experiment(root / "corpus", schedule="constant", decay=0.25, steps=8)
    e = altered(e, mesh=MeshConfig(), train={"checkpoint_every": 4})
    run_all(WorkDir(root / "run", e))
    return e, root


def test_live_generation_is_what_one_pass_over_the_text_gives(here):
    e, root = here
    with Generator.open(WorkDir(root / "run", e), rows=4, length=160) as generator:
        whole = Whole(e, root / "run", generator)
        with jax.default_matmul_precision("highest"):
            said = generator.generate("kara lopo minel tenis ", tokens=50, temperature=0)
            right = whole.of(said, whole.neighbours(whole.ids(said)))
    assert sum(len(c["neighbours"]) for c in said.chunks) > 0
    np.testing.assert_allclose(said.logprobs, right, atol=2e-2)


def losses(root) -> dict[int, float]:
    """Of each step, as logged."""
    rows = map(json.loads, (root / "train" / "retro" / "metrics.jsonl").read_text().splitlines())
    return {r["step"]: r["loss"] for r in rows if "loss" in r}


def test_a_checkpoint_goes_from_the_cpu_to_the_accelerator_and_back(here):
    """Every restore compares all bits with the checkpoint's fingerprint; one that differs is called damaged."""
    config = here[1] / "experiment.py"
    config.write_text(
        "import json, pathlib\n"
        "from retro_jax.config import from_config_dict, to_config_dict\n"
        "def get_config():\n"
        "    file = pathlib.Path(__file__).parent / 'run' / 'config.json'\n"
        "    return to_config_dict(from_config_dict(json.loads(file.read_text())['config']))\n"
    )

    def retro(command: str, name: str, platforms: str, steps: int = 8):
        words = [command, f"--config={config}", f"--workdir={config.with_name(name)}"]
        words += ["--config.methods=('retro',)", f"--config.train.steps={steps}"]
        # (This process holds a part of the accelerator's memory.)
        env = os.environ | {
            "JAX_PLATFORMS": platforms,
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        }
        done = subprocess.run(
            [sys.executable, "-m", "retro_jax.cli", *words], env=env, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-2000:]
        assert "damaged" not in done.stderr

    chip = {"gpu": "cuda,cpu", "tpu": "tpu,cpu"}.get(jax.default_backend(), "cpu")
    for name, middle in (("mixed", chip), ("cpu", "cpu")):
        retro("prepare", name, "cpu")
        for steps, platforms in ((8, "cpu"), (12, middle), (16, "cpu")):
            retro("train", name, platforms, steps)
    mixed, cpu = losses(config.with_name("mixed")), losses(config.with_name("cpu"))
    assert mixed.keys() == cpu.keys()
    assert max(cpu) == 16
    np.testing.assert_allclose([mixed[s] for s in cpu], list(cpu.values()), rtol=1e-2)
