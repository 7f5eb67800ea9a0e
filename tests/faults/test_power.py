"""The offline pipeline, killed and without power again and again, ends with the bytes of an undisturbed run."""

import json
import re
import subprocess
import sys
from pathlib import Path

from conftest import write_corpus

# In a process of its own, because it forks. Blocks are made small, so that every step has many.
SCRIPT = r"""
import dataclasses, json, random, re, sys
from pathlib import Path
from conftest import small_experiment
import power
from lives import CHANGES, live, nth
from retro_jax.pipeline import prepare
from retro_jax.pipeline.steps import chunk_blocks
from retro_jax.store import records
from retro_jax.store.workdir import WorkDir
from retro_jax.corpus import sources
from retro_jax.retrieval import neighbours
from retro_jax.retrieval.indexes import scann
from retro_jax.retrieval.indexes.exact import Exact

sources.BLOCK, chunk_blocks.BLOCK, neighbours.BLOCK = 5, 32, 32
records._SHARD_BYTES = 12_000
corpus, whole, killed, notes = map(Path, sys.argv[1:])
notes.mkdir()
experiment = small_experiment(corpus)
# Partitions, searched exactly, because no two ScaNN indexes are the same.
Exact.approximate, Exact.Settings = True, scann.Settings
settings = experiment.retrieval.settings | {"exact": {"min_recall": 0.9}}
retrieval = dataclasses.replace(
    experiment.retrieval, index="exact", rerank="bm25", index_shard=60, settings=settings
)
experiment = dataclasses.replace(experiment, retrieval=retrieval)

def run(root, *killed_at):
    def do():
        if killed_at:
            power.remember(root, notes)
        prepare.prepare(WorkDir(root, experiment))
    return live(do, root, *killed_at)

def begun(partial):  # with something to build on
    journal = partial / "columns.json"
    rows = journal.exists() and any(json.loads(journal.read_text())["bytes"].values())
    return rows or any(partial.glob("*.tfrecord"))

assert not run(whole)
framed = records.framed  # of a shard, many are written before the next change
def told(example):
    sys.audit("a.record", f"{killed}/prepare/shards/a record")
    return framed(example)
records.framed = told
rng, seen = random.Random(0), set()
def moment():  # long enough for a step that is begun anew, and for a shard
    of_a_step = lambda path: ".locks" not in path and "config.json" not in path
    random_one = nth(rng.randint(24, 44), *CHANGES, "record", path=of_a_step)
    def now(what, path):
        named = what == "rename" and re.fullmatch(r"prepare/(\w+)(/\w+)?", path)
        return random_one(what, path) or named and named[1] not in seen
    return now
for life in range(200):
    where = run(killed, moment())
    if not where:
        break
    seen |= set(re.findall(r"prepare/\.?(\w+)", where))
    built_on = any(map(begun, killed.glob("prepare/**/.*.partial")))
    lost = power.lose(killed, notes, rng) if life % 2 else 0
    print(json.dumps([where, built_on, lost]))
else:
    sys.exit("it does not come to its end")
"""
STEPS = {
    "corpus", "tokenizer", "chunks", "words", "statistics", "embedder", "embeddings", "index", "neighbours", "shards",
}  # fmt: skip


def test_killed_before_changes_on_disk_it_ends_with_the_same_bytes(tmp_path):
    write_corpus(tmp_path / "corpus", documents=30)
    names = ("corpus", "whole", "killed", "notes")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *(str(tmp_path / n) for n in names)],
        cwd=Path(__file__).parents[1],  # where conftest is
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    kills = list(map(json.loads, done.stdout.splitlines()))
    assert len(kills) > 10
    assert sum(begun for _, begun, _ in kills) >= 5, kills  # with something to build on
    assert any(where.startswith("record ") for where, _, _ in kills), kills  # half a shard
    assert sum(lost > 0 for _, _, lost in kills) >= 5, kills  # without power
    assert {
        step for where, _, _ in kills for step in re.findall(r"prepare/\.?(\w+)", where)
    } == STEPS

    def contents(name):
        root = tmp_path / name
        return {
            p.relative_to(root).as_posix(): p.read_bytes()
            for p in root.rglob("*")
            if p.is_file()
            and p.name != "manifest.json"  # which has the time and the memory
            and ".locks" not in p.parts
        }

    whole, killed = contents("whole"), contents("killed")
    assert whole.keys() == killed.keys()
    assert [n for n in whole if whole[n] != killed[n]] == []
    assert sum(n.endswith(".tfrecord") for n in whole) > 3
