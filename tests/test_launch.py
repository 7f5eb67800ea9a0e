"""The launch scripts: what they would run, and that they are sound shell."""

import shlex
import subprocess

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
    train = next(line for line in lines if "retro_jax.cli train" in line)
    command = train.partition("--command=")[2].partition(" && ")[2]
    # The flags reach the worker as they were given.
    assert shlex.split(command)[2:] == [
        "retro_jax.cli", "train", "--distributed", "--config=c.py",
        "--config.generate.prompt=it's a b",
    ]  # fmt: skip


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
            "--kill-on-bad-exit=1",
            "python",
            "-m",
            "retro_jax.cli",
            "train",
            "--distributed",
            "--config=c.py",
        ]
    )
