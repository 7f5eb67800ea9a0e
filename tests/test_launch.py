"""The launch scripts: what they would run, and that they are sound shell."""

import shlex
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

TPU, GPU = "experiments/tpu/launch.sh", "experiments/gpu/train.slurm"
NEEDED = ["--name=r", "--tpu=v5litepod-16", "--zone=z", "--bucket=b"]


def dry(*arguments) -> list[str]:
    done = subprocess.run(
        ["bash", TPU, "--dry-run", *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


def test_scripts_are_sound_shell():
    subprocess.run(["shellcheck", TPU, GPU], check=True)


def test_a_slice_is_queued_gets_the_code_and_trains_on_all_workers():
    lines = dry(*NEEDED, "--spot", "--", "--config=c.py", "--config.generate.prompt=it's a b")
    text = "\n".join(lines)
    assert lines[0].split()[:6] == ["gcloud", "compute", "tpus", "queued-resources", "create", "r"]
    assert "--accelerator-type=v5litepod-16" in lines[0]
    assert lines[0].endswith("--spot")
    assert text.count("--worker=all") == 3
    command = text.partition("retro_jax.cli train")[2].partition(">~/train.log")[0]
    # The flags reach the worker as they were given.
    assert shlex.split(command) == [
        "--distributed", "--config=c.py", "--config.generate.prompt=it's a b",
    ]  # fmt: skip


def test_on_a_worker_it_starts_once_and_shows_the_log_of_the_run_under_way(tmp_path):
    """The command itself, in a home of its own, with a program that counts its starts."""
    text = "\n".join(dry(*NEEDED, "--", "--config=c.py"))
    command = text.rpartition("--command=")[2]
    python = tmp_path / "retro_jax" / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\necho "$@"; sleep 3; echo end\n')
    python.chmod(0o755)
    run = lambda: subprocess.run(  # noqa: E731
        ["bash", "-c", command], env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    with ThreadPoolExecutor() as pool:
        first = pool.submit(run)
        time.sleep(1)
        second = pool.submit(run)
    for done in (first.result(), second.result()):
        assert done.stdout.split("\n")[:2] == [
            "-m retro_jax.cli train --distributed --config=c.py", "end"
        ], done  # fmt: skip


def test_several_slices_are_one_resource_of_several_nodes():
    text = "\n".join(dry(*NEEDED, "--slices=2", "--", "--config=c.py"))
    assert "--node-count=2 --node-prefix=r" in text
    assert "ssh r-0 --worker=all" in text
    assert "ssh r-1 --worker=all" in text


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
