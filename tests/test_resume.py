"""The offline pipeline, killed again and again, ends with the bytes of an undisturbed run."""

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import write_corpus

# In a process of its own, because it forks. Blocks are made small, so that every step has many.
SCRIPT = """
import dataclasses, os, random, shutil, signal, sys, time
from pathlib import Path
from conftest import small_experiment
from retro_jax import prepare, records, steps
from retro_jax.corpus import sources
from retro_jax.retrieval import neighbours

sources.BLOCK, steps.EMBEDDED, neighbours.BLOCK = 5, 16, 8
records._SHARD_BYTES = 20_000
experiment = small_experiment(Path(sys.argv[1]))
kind = sys.argv[4]
experiment = dataclasses.replace(
    experiment, retrieval=dataclasses.replace(experiment.retrieval, index=kind)
)
sys.stderr = open(os.devnull, "w")

def run(root, seconds):
    child = os.fork()
    if not child:
        prepare.prepare(experiment, root)
        os._exit(0)
    deadline = time.time() + seconds
    while time.time() < deadline:
        if os.waitpid(child, os.WNOHANG)[0]:
            return True
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False

begin = time.time()
assert run(Path(sys.argv[2]), 600)
whole = time.time() - begin
if kind == "scann":  # built once and kept: no two are the same
    shutil.copytree(sys.argv[2], sys.argv[3])
    begin = time.time()
    for step in ("neighbours", "shards"):
        shutil.rmtree(Path(sys.argv[3]) / "prepare" / step)
    assert run(Path(sys.argv[3]), 600)
    whole = time.time() - begin
    for step in ("neighbours", "shards"):
        shutil.rmtree(Path(sys.argv[3]) / "prepare" / step)
rng, kills, inside = random.Random(0), 0, 0
while kills < 20:
    # Longer and longer: a step that is one block has to come to its end at last.
    if run(Path(sys.argv[3]), rng.uniform(0, whole * (0.05 + kills / 50))):
        break
    kills += 1
    inside += any(Path(sys.argv[3]).glob("prepare/**/.*.partial/*.json"))
assert run(Path(sys.argv[3]), 600)
print(kills, inside)
"""


@pytest.mark.parametrize("kind", ["exact", "scann"])
def test_killed_at_random_moments_it_ends_with_the_same_bytes(tmp_path, kind):
    write_corpus(tmp_path / "corpus")
    names = ("corpus", "whole", "killed")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *(str(tmp_path / n) for n in names), kind],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    kills, inside = map(int, done.stdout.split())
    assert kills >= 10
    assert inside >= 3  # in the middle of a step, with something to build on

    def contents(name):
        root = tmp_path / name
        return {
            p.relative_to(root).as_posix(): p.read_bytes()
            for p in root.rglob("*")
            if p.is_file() and p.name != "manifest.json"  # which has the time and the memory
        }

    whole, killed = contents("whole"), contents("killed")
    assert whole.keys() == killed.keys()
    assert [n for n in whole if whole[n] != killed[n]] == []
    assert sum(n.endswith(".tfrecord") for n in whole) > 3
