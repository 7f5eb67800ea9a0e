"""What the benchmarks share: flags, small sizes, working directories, workers that take turns, tables.

No package is imported before it is needed: a worker may run in an interpreter that has none of ours.
"""

import argparse
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

QUICKSTART = Path(__file__).parents[1] / "experiments" / "quickstart.py"
THREADS = len(os.sched_getaffinity(0))
# Fields of the config, below WORKDIR/NAME.
RETRIEVERS = {
    "tfidf": {
        "retrieval.embedder": "tfidf",
        "retrieval.settings.tfidf.dim": "256",
        "retrieval.index": "auto",
        "retrieval.rerank": "none",
    },
    "reranked": {
        "retrieval.embedder": "tfidf",
        "retrieval.settings.tfidf.dim": "256",
        "retrieval.index": "auto",
    },
    "bm25": {"retrieval.embedder": "words", "retrieval.index": "bm25"},
}
# With --smoke programs run once: they are compiled quickly, and kept.
QUICK = {
    "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
    "JAX_COMPILATION_CACHE_DIR": "runs/smoke/.jax_cache",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
}
# What --smoke has for defaults, of the flags that a script has; each script adds its own.
SMALL = {
    "rounds": 1,
    "source": f"text:{sysconfig.get_paths()['stdlib']}/[a-b]*.py",
    "workdir": Path("runs/smoke"),
    "fields": [
        "corpus.heldout=0.5", "corpus.vocab=512", "retrieval.settings.tfidf.dim=16",
        "model.decoder.d=32", "model.decoder.layers=1", "model.decoder.heads=2",
        "model.decoder.head_size=16", "model.reading.cca_layers=(1,)", "model.encoder.d=32", "model.encoder.heads=2",
        "model.encoder.head_size=16", "methods=('retro',)", "train.steps=2", "train.warmup=1",
        "train.validate=0", "mesh.cpu_devices=1",
    ],
}  # fmt: skip


def parser(doc: str, corpus: bool = True) -> argparse.ArgumentParser:
    """A parser with what the benchmarks have in common; corpus: whether text is prepared."""
    made = argparse.ArgumentParser(description=doc.splitlines()[0])
    made.add_argument("--json", type=Path, metavar="FILE", help="write what is printed here too")
    made.add_argument(
        "--smoke", action="store_true", help="the smallest sizes: does it run? it measures nothing"
    )
    if corpus:
        made.add_argument("--config", type=Path, default=QUICKSTART, help="the experiment")
        made.add_argument("--source", default="python:", help="text, as corpus.source")
        made.add_argument("--workdir", type=Path, default=Path("runs/benchmark"))
        made.add_argument(
            "--fields", nargs="*", default=[], metavar="FIELD=VALUE", help="of the config"
        )
    return made


def parse(made: argparse.ArgumentParser, **small) -> argparse.Namespace:
    """The arguments; with --smoke their defaults are SMALL and `small`, and what is given still holds."""
    args = made.parse_args()
    if args.smoke:
        made.set_defaults(**{n: v for n, v in (SMALL | small).items() if hasattr(args, n)})
        args = made.parse_args()
        for name, value in QUICK.items():
            os.environ.setdefault(name, value)  # of this process, before JAX, and of workers
        if hasattr(args, "bert"):
            args.bert = args.bert or small_bert(args.workdir / "bert")
    return args


def installed(what: str, *packages: str) -> bool:
    """Whether packages are there; says so in one line if `what` is left out without them."""
    missing = [name for name in packages if not importlib.util.find_spec(name)]
    if missing:
        print(f"{what} is left out: {', '.join(missing)} not installed", file=sys.stderr)
    return not missing


def retro(*words: str):
    """Runs a command of `retro` in a process of its own, and ends this one if it fails."""
    command = [sys.executable, "-m", "retro_jax.cli", *words]
    if status := subprocess.run(command, stdout=sys.stderr).returncode:
        sys.exit(status)


def experiment(args: argparse.Namespace, retriever: str) -> list[str]:
    """The flags of `retro` for the experiment of `args` with one of RETRIEVERS."""
    fields = RETRIEVERS[retriever] | {"corpus.source": args.source}
    fields |= dict(field.split("=", 1) for field in args.fields)
    return [f"--config={args.config}", *(f"--config.{n}={v}" for n, v in fields.items())]


def prepare(args: argparse.Namespace, retriever: str = "tfidf"):
    """What `retro prepare` makes of the experiment of `args` in WORKDIR/RETRIEVER, in a process of its own;
    what is complete is not made again. Returns it opened, a `Prepared`."""
    root = args.workdir / retriever
    retro("prepare", *experiment(args, retriever), f"--workdir={root}")
    from retro_jax.pipeline.prepared import Prepared
    from retro_jax.store.workdir import WorkDir

    return Prepared(WorkDir(root))


def train(args: argparse.Namespace, retriever: str = "bm25"):
    """Has WORKDIR itself hold a trained model: its own experiment's, or that of `args` if it has none."""
    made = (args.workdir / "config.json").exists()
    which = [str(args.workdir)] if made else experiment(args, retriever)
    which += [] if made else [f"--workdir={args.workdir}"]
    retro("prepare", *which)
    retro("train", *which)


class Worker:
    """This script once more, as a process of its own that does what it is asked (see `serve`)."""

    def __init__(self, *arguments: str, python: str = sys.executable):
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - as long as the process
        self._process = subprocess.Popen(
            [python, sys.argv[0], *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True,
        )  # fmt: skip
        self.pid = self._process.pid

    def ask(self, what: str) -> dict:
        """Has it do `what`; returns what it answers."""
        self._process.stdin.write(what + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            self._errors.seek(0)
            sys.exit(f"{' '.join(self._process.args)}:\n{self._errors.read()[-3000:]}")
        return json.loads(answer)

    def close(self):
        """Ends it."""
        self._process.stdin.close()
        self._process.wait()


def serve(work: dict[str, Callable]):
    """Does what standard input names, a line each; answers with what it returned and the seconds."""
    for line in sys.stdin:
        start, cpu = time.perf_counter(), time.process_time()
        result = work[line.strip()]()
        answer = {"result": result, "seconds": time.perf_counter() - start}
        answer |= {"cpu_seconds": time.process_time() - cpu, "peak": peak_memory()}
        print(json.dumps(answer), flush=True)


def in_turns(workers: dict[str, Worker], what: str, rounds: int) -> dict[str, dict]:
    """Asks one worker after the other, round by round; name -> the last answer, its seconds being the
    median. A first round, which compiles, does not count."""
    from rich.console import Console
    from rich.progress import track

    seconds, answers = {name: [] for name in workers}, {}
    doing = f"{what}, rounds (the first one does not count)"
    for i in track(range(rounds + 1), doing, console=Console(stderr=True)):
        for name, worker in workers.items():
            answers[name] = worker.ask(what)
            seconds[name] += [answers[name]["seconds"]] if i else []
    return {n: a | {"seconds": statistics.median(seconds[n])} for n, a in answers.items()}


def peak_memory() -> int:
    """Peak resident memory of this process, bytes; that of who started it does not count."""
    status = Path("/proc/self/status").read_text().split("VmHWM:")[1]
    return int(status.split()[0]) * 1024


def size(directory: Path) -> int:
    """Bytes of the files in a directory."""
    return sum(p.stat().st_size for p in Path(directory).rglob("*") if p.is_file())


def show(tables: dict[str, list[dict]], formats: dict[str, str], file: Path | None):
    """Prints tables, {title: [{column: value}]}, numbers as `formats` says; writes them to a file."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 150)
    for title, rows in tables.items():
        table = Table(title=escape(title), title_justify="left")
        for name in rows[0]:
            table.add_column(name, justify="right" if name in formats else "left")
        for row in rows:
            shown = (("" if v is None else format(v, formats.get(n, ""))) for n, v in row.items())
            table.add_row(*map(escape, shown))
        console.print(table)
    if file:
        save(tables, file)


def save(tables: dict[str, list[dict]], file: Path):
    """Writes tables to a file, with what they were measured on."""
    from retro_jax.store import files, provenance

    value = {"threads": THREADS, "versions": provenance.versions(), "tables": tables}
    files.write_json(file, value)


def small_bert(directory: Path) -> Path:
    """Writes a BERT of two layers with random weights, and a tokenizer of letters: for --smoke."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    fixture = Path(__file__).parents[1] / "tests" / "fixtures" / "bert"
    directory.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "model.safetensors"):
        shutil.copy(fixture / name, directory)
    known = json.loads((fixture / "config.json").read_text())["vocab_size"]
    letters = {c: i for i, c in enumerate("?eatoinsrhldcu_mfpgwybvkxjqz.,()0123456789="[:known])}
    tokenizer = Tokenizer(models.WordLevel(letters, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory
