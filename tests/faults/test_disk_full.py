"""A disk that fills at every kind of moment, and a clock that goes back a second whenever it is looked at: one line,
nothing half written, and the same command goes on."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import write_corpus

# In name spaces of its own, where a small disk can be mounted; and a process of its own, because it forks.
SCRIPT = r"""
import itertools, os, shutil, subprocess, sys, time
from pathlib import Path
seconds = itertools.count()
time.time = lambda: 2e9 - next(seconds)
from conftest import altered, make_mesh, small_experiment
from lives import live
import jax, numpy as np
from retro_jax.cli.main import main
from retro_jax.methods.method import method_of
from retro_jax.store import files
from retro_jax.store.workdir import WorkDir
from retro_jax.train import restore

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
corpus, whole, disk = map(Path, sys.argv[1:])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200m", "none", str(disk)], check=True)
full, filler = disk / "work", disk / "filler"
e = small_experiment(corpus, steps=9, checkpoint_every=3, validate=0, methods=("language_model",))
e = altered(
    e,
    model={"decoder": {"layers": 1}, "reading": {"cca_layers": (1,)}},
    mesh={"data": 1, "model": 1},
)
for root in (whole, full):
    WorkDir(root, e).save()

def used(root):
    return sum(p.stat().st_size for p in root.rglob("*") if p.is_file())

def retro(*words, status=0):
    def do():
        got = main([words[0], str(words[1])])
        assert got == status, (words, got)
    assert not live(do, disk)

def with_room_for(size):  # what a killed save has left goes first, and makes room
    filler.unlink(missing_ok=True)
    left = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    size -= sum(map(used, full.glob("train/*/checkpoints/*tmp*")))
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, left - size)

def weights(root):
    method, mesh = method_of(e, "language_model"), make_mesh(1, 1, 1)
    with jax.set_mesh(mesh):
        return restore.restore_trained(WorkDir(root, e), method, mesh)

def keep(root):
    np.savez(root / "weights.npz", **{n: np.asarray(p) for n, p in weights(root).items()})

retro("prepare", whole)
size = used(whole / "prepare")
for share in (0.02, 0.1, 0.3, 0.5, 0.7, 0.9):
    with_room_for(int(share * size) - used(full))
    retro("prepare", full, status=2)
filler.unlink()
retro("prepare", full)
for path in sorted(p for p in (whole / "prepare").rglob("*") if p.is_file() and p.name != "manifest.json"):
    if "index" not in path.parts:  # no two ScaNN indexes are the same
        assert path.read_bytes() == (full / path.relative_to(whole)).read_bytes(), path

retro("train", whole)
one = used(next((whole / "train/language_model/checkpoints").glob("*/")))
for share in (0.1, 0.5, 0.9, 2.0):  # of one: all three need 3
    with_room_for(int(share * one))
    retro("train", full, status=2)
    print("saved:", sorted(p.name for p in full.glob("train/language_model/checkpoints/*")))
filler.unlink()
retro("train", full)
for root in (whole, full):
    assert not live(lambda: keep(root), root)
a, b = (np.load(root / "weights.npz") for root in (whole, full))
assert set(a) == set(b)
for name in a:
    np.testing.assert_array_equal(a[name], b[name])
assert not list(full.rglob("*.partial")), list(full.rglob("*.partial"))
print("done")
"""
APART = ["unshare", "--user", "--map-root-user", "--mount"]


def _can_mount() -> bool:
    if not shutil.which("unshare"):
        return False
    tried = [*APART, "mount", "-t", "tmpfs", "none", "/tmp"]
    return subprocess.run(tried, capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not _can_mount(), reason="no disk can be mounted here")
def test_a_disk_that_fills_is_one_line_and_the_same_command_goes_on(tmp_path):
    write_corpus(tmp_path / "corpus", documents=30)
    (tmp_path / "disk").mkdir()
    done = subprocess.run(
        [*APART, sys.executable, "-c", SCRIPT, *(str(tmp_path / n) for n in ("corpus", "whole", "disk"))],
        cwd=Path(__file__).parents[1],  # where conftest is
        env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr[-50000:]
    assert done.stdout.splitlines()[-1] == "done"
    assert "Traceback" not in done.stderr
    lines = [x for x in done.stderr.splitlines() if x.startswith("retro: ")]
    assert len(lines) == 10
    assert all("make room" in line for line in lines), lines
