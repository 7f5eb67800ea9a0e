"""A training that is killed again and again ends with the parameters of an undisturbed run."""

import ast
import subprocess
import sys
from pathlib import Path

from conftest import write_corpus

# In a process of its own, because it forks: JAX runs in the children only.
SCRIPT = r"""
import json, re, shutil, sys
from pathlib import Path
from conftest import altered, make_mesh, small_experiment
from lives import live, nth, then
import jax, numpy as np
from retro_jax.methods.method import method_of
from retro_jax.pipeline import prepare
from retro_jax.store.workdir import WorkDir
from retro_jax.train import loop, restore

jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
corpus, whole, killed = map(Path, sys.argv[1:])
e = small_experiment(corpus, steps=27, checkpoint_every=3, validate=1, methods=("language_model",))
e = altered(
    e,
    model={"decoder": {"layers": 1}, "reading": {"cca_layers": (1,)}},
    mesh={"data": 2, "model": 1},
)
method = method_of(e, "language_model")  # the loop is the same, and compiles in a third of the time

def weights(root):
    mesh = make_mesh(1, 2, 1)
    with jax.set_mesh(mesh):
        params = restore.restore_trained(WorkDir(root, e), method, mesh)
    return {n: np.asarray(p) for n, p in params.items()}

def to_the_end(root):
    loop.train(WorkDir(root, e), method)
    np.savez(root / "weights.npz", **weights(root))

assert not live(lambda: prepare.prepare(WorkDir(whole, e)), whole)
shutil.copytree(whole, killed)
assert not live(lambda: to_the_end(whole), whole)

log, manifest = "metrics.jsonl".__eq__, "manifest.json".__eq__
saving = re.compile(r"checkpoints/\d+\.orbax-checkpoint-tmp").fullmatch
saved = re.compile(r"checkpoints/\d+").fullmatch
state = re.compile(r"checkpoints/\d+\.[^/]*/state\.[^/]*").fullmatch
about = re.compile(r"checkpoints/\d+\.[^/]*/state\.[^/]*/_METADATA").fullmatch
moments = {
    "a step, nothing is saved yet": nth(2, "write", path=log),
    "a save begins": nth(2, "mkdir", path=state),
    "a save is half written": nth(2, "write", path=about),
    "what it left is half removed": then(nth(1, "rmtree", path=saving), nth(2, "remove", "rmdir")),
    "restored, the log is about to be cut": nth(1, "rename", path=log),
    "a save is written but for its name": nth(2, "rename", path=saved),
    "an old save is half removed": then(nth(1, "rmtree", path=saved), nth(5, "remove")),
    "a step after a save": then(nth(2, "rename", path=saved), nth(2, "write", path=log)),
    "all steps are done": nth(1, "rename", path=manifest),
}
directory, reached = killed / "train" / "language_model", {}
for name, moment in moments.items():
    assert live(lambda: loop.train(WorkDir(killed, e), method), directory, moment), name
    steps = [int(p.name) for p in directory.glob("checkpoints/*") if p.name.isdecimal()]
    reached[name] = max(steps, default=0)
assert not live(lambda: to_the_end(killed), killed)
kept = [sorted(p.name for p in r.glob("train/language_model/checkpoints/*")) for r in (whole, killed)]
assert kept[0] == kept[1], kept
a, b = (np.load(root / "weights.npz") for root in (whole, killed))
assert set(a) == set(b)
for name in a:
    np.testing.assert_array_equal(a[name], b[name])
rows = [[json.loads(line) for line in (r / "train/language_model" / "metrics.jsonl").open()] for r in (whole, killed)]
told = [[(r["step"], r.get("loss"), r.get("heldout_loss")) for r in found] for found in rows]
assert told[0] == told[1], told
print(reached)
"""


def test_killed_at_every_kind_of_moment_it_ends_with_the_same_parameters(tmp_path):
    write_corpus(tmp_path / "corpus", documents=30)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *(str(tmp_path / n) for n in ("corpus", "whole", "killed"))],
        cwd=Path(__file__).parents[1],  # where conftest is
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-5000:]
    assert ast.literal_eval(done.stdout.splitlines()[-1]) == {  # the newest checkpoint at each kill
        "a step, nothing is saved yet": 0,
        "a save begins": 3,
        "a save is half written": 6,
        "what it left is half removed": 6,
        "restored, the log is about to be cut": 6,
        "a save is written but for its name": 9,
        "an old save is half removed": 12,
        "a step after a save": 18,
        "all steps are done": 27,
    }
