"""Every benchmark runs: on the smallest sizes, and whatever else this machine does meanwhile."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import talking

ROOT = Path(__file__).parents[1]
# Words after the script, and columns that its tables have.
SCRIPTS = {
    "pipeline": ((), {"step", "tokens/s", "peak GiB"}),
    "search": ((), {"index", "recall", "µs, 1 thread"}),
    "search, synthetic": (("--vectors=2000",), {"shards", "recall@2", "anonymous GiB"}),
    "embedders": ((), {"neighbours", "run", "held", "rare", "margin, 95 %"}),
    "partitions": ((), {"partitions", "probes, k=10", "of"}),
    "growth": ((), {"way", "µs", "recall@10", "exponent"}),
    "embedding": ((), {"library", "texts/s", "largest difference"}),
    "overlap": ((), {"way", "pairs/s"}),
    "reading": ((), {"reader", "examples/s"}),
    "methods": ((), {"way", "ms", "of predicted", "of k times one"}),
    "curves": ((), {"tokens/parameter", "part", "random - on", "language_model - on"}),
    "model": ((), {"library", "what", "tokens/s", "parameters"}),
    "generate": ((), {"retrieval", "tokens/s", "part", "share", "bytes", "times as long"}),
    "load": ((), {"number", "p95", "MiB"}),
    "real": ((), {"who", "prompt tokens/s", "decoded tokens/s", "time a token / transformers"}),
    "fitted": ((), {"what", "more, s", "of the step", "TFLOP", "GFLOP/s"}),
    "compiled": ((), {"attention", "temporaries, MiB", "GB read and written"}),
    "predicted": ((), {"products, ms", "bound", "measured / at best", "measured / at worst"}),
    "accelerator": ((), {"TFLOP/s", "sequences", "tokens/s", "of off", "us a query", "why"}),
}

ALONE = {"overlap", "reading", "model", "methods", "predicted", "compiled"}  # prepare nothing


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Path:
    """What the scripts prepare, each with what those before it have left."""
    return tmp_path_factory.mktemp("benchmarks")


def smoke(name: str, shared: Path, *words: str) -> subprocess.CompletedProcess:
    """Runs a script as a user does."""
    script = name.partition(",")[0]
    flags = [f"--json={shared / 'told.json'}"]
    if script == "load":
        flags.append(f"--workdir={shared / 'bm25'}")
    elif script in ("real", "fitted"):
        (shared / script).mkdir()
        flags += [f"--workdir={talking.made(shared / script)[1]}", "--rounds=1"]
    elif script not in ALONE:
        flags.append(f"--workdir={shared}")
    return subprocess.run(
        [sys.executable, f"benchmarks/{script}.py", "--smoke", *flags, *words],
        cwd=ROOT, capture_output=True, text=True, check=False,
        env=os.environ | {
            "PYTHONPATH": str(ROOT),
            "JAX_PLATFORMS": "cpu",
        },
    )  # fmt: skip


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_benchmark_runs(name, shared):
    words, columns = SCRIPTS[name]
    (shared / "told.json").unlink(missing_ok=True)
    done = smoke(name, shared, *words)
    assert done.returncode == 0, done.stderr[-3000:]
    tables = json.loads((shared / "told.json").read_text())["tables"]
    assert all(tables.values())
    assert columns <= {column for rows in tables.values() for row in rows for column in row}
    assert next(iter(tables)).split()[0] in done.stdout
    if name == "load":
        told = {row[""]: row["number"] for row in next(iter(tables.values()))}
        assert told["requests answered"] > 0
        assert told["exit status after SIGTERM"] == 0


def test_every_script_is_tried():
    """Those that a user starts end with a call of `main`."""
    scripts = {p.stem for p in (ROOT / "benchmarks").glob("*.py") if "__main__" in p.read_text()}
    assert scripts == {name.partition(",")[0] for name in SCRIPTS}


def test_what_is_given_holds_with_smoke(shared):
    assert "records of 2048" in smoke("reading", shared, "--records=8", "--rounds=2").stdout
