"""The launch scripts: what they would run, and that they are sound shell."""

import shlex
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

TPU, GPU = "experiments/tpu/launch.sh", "experiments/gpu/train.slurm"
NEEDED = ["--name=r", "--tpu=v5litepod-16", "--zone=z", "--bucket=b"]


def dry(*arguments) -> list[list[str]]:
    """The commands, as a shell would read them."""
    done = subprocess.run(
        ["bash", TPU, "--dry-run", *arguments], capture_output=True, text=True, check=True
    )
    return [shlex.split(line) for line in done.stdout.splitlines()]


def test_scripts_are_sound_shell():
    subprocess.run(["shellcheck", TPU, GPU], check=True)


def test_a_slice_is_queued_gets_the_code_and_trains_on_all_workers():
    lines = dry(*NEEDED, "--spot", "--", "--config=c.py", "--config.generate.prompt=it's a b")
    assert lines[0][:6] == ["gcloud", "compute", "tpus", "queued-resources", "create", "r"]
    assert "--accelerator-type=v5litepod-16" in lines[0]
    assert lines[0][-1] == "--spot"
    assert sum("--worker=all" in line for line in lines) == 3
    command = lines[-1][-1].partition("retro_jax.cli train")[2].partition(">~/train.log")[0]
    # The flags reach the worker as they were given.
    assert shlex.split(command) == [
        "--distributed", "--config=c.py", "--config.generate.prompt=it's a b",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("tpu", "version"),
    [("v5litepod-16", "v2-alpha-tpuv5-lite"), ("v5p-8", "v2-alpha-tpuv5"),
     ("v6e-16", "v2-alpha-tpuv6e"), ("v4-32", "tpu-ubuntu2204-base")],
)  # fmt: skip
def test_the_runtime_is_that_of_the_chip(tpu, version):
    flags = [NEEDED[0], f"--tpu={tpu}", *NEEDED[2:]]
    assert f"--runtime-version={version}" in dry(*flags, "--", "--config=c.py")[0]
    assert "--runtime-version=mine" in dry(*flags, "--version=mine", "--", "--config=c.py")[0]


def test_on_a_worker_it_starts_once_and_shows_the_log_of_the_run_under_way(tmp_path):
    """The command itself, in a home of its own, with a program that counts its starts."""
    command = dry(*NEEDED, "--", "--config=c.py")[-1][-1].removeprefix("--command=")
    python = tmp_path / "retro_jax" / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\necho "$@"; sleep 3; echo end\n')
    python.chmod(0o755)

    def run():
        return subprocess.run(
            ["bash", "-c", command],
            env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    with ThreadPoolExecutor() as pool:
        first = pool.submit(run)
        time.sleep(1)
        second = pool.submit(run)
    for done in (first.result(), second.result()):
        assert done.stdout.split("\n")[:2] == [
            "-m retro_jax.cli train --distributed --config=c.py", "end"
        ], done  # fmt: skip


def test_several_slices_are_one_resource_of_several_nodes():
    lines = dry(*NEEDED, "--slices=2", "--", "--config=c.py")
    assert {"--node-count=2", "--node-prefix=r"} <= set(lines[0])
    reached = [line[line.index("ssh") + 1] for line in lines if "ssh" in line]
    assert sorted(reached) == ["r-0", "r-0", "r-1", "r-1"]


@pytest.mark.parametrize("arguments", [NEEDED, [*NEEDED[1:], "--", "--config=c"], ["--nmae=r"]])
def test_what_is_missing_or_unknown_is_said_with_status_2(arguments):
    done = subprocess.run(
        ["bash", TPU, "--dry-run", *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("launch.sh: ")


def test_slurm_starts_one_process_a_gpu():
    done = subprocess.run(
        ["bash", GPU, "--dry-run", "--config=c.py"], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == (
        [
            "srun",
            "python",
            "-m",
            "retro_jax.cli",
            "train",
            "--distributed",
            "--config=c.py",
        ]
    )
