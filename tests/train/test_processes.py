"""Two real processes of four devices each: they train, stop together, and go on as one."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from conftest import altered, small_experiment, write_corpus

from retro_jax.config import to_config_dict
from retro_jax.methods.method import method_of
from retro_jax.pipeline import prepare
from retro_jax.store.workdir import WorkDir
from retro_jax.train import loop
from retro_jax.train.checkpoint import Checkpoints

STEPS = 25


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """(experiment, config file, prepared directory, losses of a run in one process)."""
    corpus, root = tmp_path_factory.mktemp("corpus"), tmp_path_factory.mktemp("whole")
    write_corpus(corpus)
    e = small_experiment(
        corpus, steps=STEPS, checkpoint_every=5, methods=("language_model",), validate=1
    )
    e = altered(
        e,
        model={"decoder": {"layers": 1}, "reading": {"cca_layers": (1,)}},
        mesh={"cpu_devices": 4},
    )
    config = root / "config.py"
    config.write_text(
        "import json, ml_collections\n"
        f"fields = json.loads({to_config_dict(e).to_json()!r})\n"
        "def get_config():\n    return ml_collections.ConfigDict(fields)\n"
    )
    prepare.prepare(WorkDir(root, e))
    loop.train(WorkDir(root, e), method_of(e, "language_model"))
    return e, config, root, losses(root)


def losses(root: Path) -> dict[int, float]:
    rows = map(json.loads, (root / "train/language_model/metrics.jsonl").read_text().splitlines())
    return {row["step"]: row["loss"] for row in rows if "loss" in row}


# `retro`, which before it writes line sys.argv[2] of the log says so, and waits for an answer.
PAUSED = """
import sys
from pathlib import Path
from lives import nth, watch
from retro_jax.cli.main import main

def pause(what, path):
    print("here", flush=True)
    sys.stdin.readline()

line = nth(int(sys.argv[2]), "write", path="metrics.jsonl".__eq__)
watch(Path(sys.argv[1]), line, pause)
sys.exit(main(sys.argv[3:]))
"""


def start(config: Path, root: Path, line: int = 0) -> list[subprocess.Popen]:
    """`retro train --distributed` in two processes, which see the prepared data of `config`'s folder; the
    first, which writes the log, pauses before it writes this line (from 1)."""
    root.mkdir(exist_ok=True)
    if not (root / "prepare").exists():
        (root / "prepare").symlink_to(config.parent / "prepare")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    tests = Path(__file__).parents[1]
    env = {k: v for k, v in os.environ.items() if k != "JAX_NUM_CPU_DEVICES"}
    env |= {
        "JAX_PLATFORMS": "cpu",
        "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
        "JAX_NUM_PROCESSES": "2",
        "PYTHONPATH": os.pathsep.join([str(tests), os.environ.get("PYTHONPATH", "")]),
    }
    command = [sys.executable, "-c", PAUSED, str(root / "train/language_model"), str(line), "train",
               "--distributed", f"--config={config}", f"--workdir={root}"]  # fmt: skip
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    processes = [
        subprocess.Popen(command, env=env | {"JAX_PROCESS_ID": str(i)}, text=True, **pipes)
        for i in (0, 1)
    ]
    if line and "here\n" not in iter(processes[0].stdout.readline, ""):  # after what JAX prints
        raise AssertionError(ended(processes))
    return processes


def ended(processes) -> list[str]:
    """What they have said, when they have ended. (Both are read at once: who is not read may block.)"""
    with ThreadPoolExecutor() as pool:
        return [said[1] for said in pool.map(lambda p: p.communicate("\n"), processes)]


def test_two_processes_stop_together_and_go_on_as_one_or_as_two(undisturbed, tmp_path):
    """As two, from a newest checkpoint that is damaged where only process 1 reads: both go back to the one
    before, end well, and one speaks."""
    e, config, whole, expected = undisturbed
    root, alone = tmp_path / "w", tmp_path / "alone"
    # Step 16 is logged after the save of step 15 has begun, which has waited for that of step 10.
    processes = start(config, root, line=20)
    for process in processes:
        process.send_signal(signal.SIGTERM)
    errors = ended(processes)
    assert [p.returncode for p in processes] == [75, 75], errors
    assert "run the same command to continue" in errors[0]
    checkpoints = root / "train/language_model/checkpoints"
    stopped = Checkpoints(checkpoints).latest()
    assert 10 <= stopped < STEPS

    shutil.copytree(root, alone, symlinks=True)  # and here, in one process of eight devices
    loop.train(WorkDir(alone, e), method_of(e, "language_model"))
    same(losses(alone), expected)

    (written,) = (checkpoints / str(stopped)).glob("state/ocdbt.process_1")
    for file in written.rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    processes = start(config, root)
    errors = ended(processes)
    assert [p.returncode for p in processes] == [0, 0], errors
    said = f"/{stopped}: the checkpoint is damaged (another process cannot read it)"
    assert said in errors[0].replace("\n", " ")
    assert (checkpoints / f"damaged-{stopped}").exists()
    same(losses(root), expected)
    assert "parameters" in errors[0]
    assert "step" not in errors[1]
    manifests = [
        json.loads((r / "train/language_model/manifest.json").read_text()) for r in (root, whole)
    ]
    assert manifests[0]["counts"]["best"]["step"] == manifests[1]["counts"]["best"]["step"]


def same(found: dict[int, float], expected: dict[int, float]):
    """The losses of a run that was stopped are those of one that was not."""
    assert found.keys() == expected.keys()
    np.testing.assert_allclose(
        [found[s] for s in sorted(found)], [expected[s] for s in sorted(expected)], rtol=1e-3
    )


def test_processes_that_cannot_be_found_are_an_error_with_the_remedy(undisturbed, tmp_path):
    _, config, _, _ = undisturbed
    done = subprocess.run(
        [sys.executable, "-m", "retro_jax.cli", "train", "--distributed", f"--config={config}",
         f"--workdir={tmp_path}/w"],
        env={k: v for k, v in os.environ.items() if not k.startswith("JAX_")},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "JAX_COORDINATOR_ADDRESS=HOST:PORT" in done.stderr
    assert not (tmp_path / "w").exists()
