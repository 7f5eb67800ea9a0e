"""A training that is killed again and again ends with the parameters of an undisturbed run."""

import subprocess
import sys
from pathlib import Path

from conftest import write_corpus

# In a process of its own, because it forks: JAX runs in the children only.
SCRIPT = """
import os, random, shutil, signal, sys, time
from pathlib import Path
from conftest import make_mesh, small_experiment
import jax, numpy as np
from retro_jax import prepare
from retro_jax.train import loop

corpus, whole, killed = map(Path, sys.argv[1:])
e = small_experiment(corpus, steps=400, checkpoint_every=5, validate=1, models=("retro",))
sys.stderr = open(os.devnull, "w")

def child(do):
    pid = os.fork()
    if not pid:
        do()
        os._exit(0)
    return pid

def ended(pid, seconds):
    deadline = time.time() + seconds
    while time.time() < deadline:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            assert status == 0, status
            return True
        time.sleep(0.002)
    return False

def weights(root):
    mesh = make_mesh(1, 4, 2)
    with jax.set_mesh(mesh):
        params = loop.restore_trained(e, root, True, mesh)
    np.savez(root / "weights.npz", **{n: np.asarray(p) for n, p in params.items()})

def waited(until, seconds):
    deadline = time.time() + seconds
    while time.time() < deadline and not until():
        time.sleep(0.001)

assert ended(child(lambda: prepare.prepare(e, whole)), 300)
shutil.copytree(whole, killed)
assert ended(child(lambda: loop.train(e, whole, True)), 300)
rng, kills, saving, reached = random.Random(0), 0, 0, set()
log, directory = (killed / "train" / "retro" / n for n in ("metrics.jsonl", "checkpoints"))
length = lambda: log.stat().st_size if log.exists() else 0
being_saved = lambda: any(directory.glob("*tmp*"))
while kills < 20:
    before, begin = length(), time.time()
    pid = child(lambda: loop.train(e, killed, True))
    if kills % 2:  # in the middle of one of its saves
        for _ in range(rng.randint(1, 4)):
            waited(lambda: not being_saved(), 1)
            waited(being_saved, 60)
        time.sleep(rng.uniform(0, 0.02))
    elif kills % 4:  # soon after it has started to train
        waited(lambda: length() > before, 60)
        time.sleep(rng.uniform(0, 1))
    else:  # before
        time.sleep(rng.uniform(0, 3))
    assert os.waitpid(pid, os.WNOHANG) == (0, 0), "it came to its end: give it more steps"
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    kills += 1
    saving += being_saved()
    reached.add(max([0, *(int(p.name) for p in directory.glob("*") if p.name.isdecimal())]))
assert ended(child(lambda: loop.train(e, killed, True)), 300)
for root in (whole, killed):
    assert ended(child(lambda: weights(root)), 300)
a, b = (np.load(root / "weights.npz") for root in (whole, killed))
assert set(a) == set(b)
for name in a:
    np.testing.assert_array_equal(a[name], b[name])
print(kills, saving, len(reached))
"""


def test_killed_at_random_moments_it_ends_with_the_same_parameters(tmp_path):
    write_corpus(tmp_path / "corpus")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *(str(tmp_path / n) for n in ("corpus", "whole", "killed"))],
        cwd=Path(__file__).parent.parent,  # where conftest is
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    kills, saving, reached = map(int, done.stdout.split())
    assert kills == 20
    assert saving  # some of them in the middle of a save
    assert reached > 3
