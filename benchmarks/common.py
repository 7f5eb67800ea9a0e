"""What the benchmarks of preparing text share: a working directory, workers that take turns, tables."""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

QUICKSTART = Path(__file__).parents[1] / "experiments" / "quickstart.py"
THREADS = len(os.sched_getaffinity(0))


def parser(doc: str, corpus: bool = True) -> argparse.ArgumentParser:
    """A parser with what the benchmarks have in common."""
    made = argparse.ArgumentParser(description=doc.splitlines()[0])
    made.add_argument("--json", type=Path, metavar="FILE", help="write what is printed here too")
    if corpus:
        made.add_argument("--source", default="python:", help="text, as corpus.source")
        made.add_argument("--workdir", type=Path, default=Path("runs/benchmark"))
    return made


def prepare(source: str, root: Path) -> Path:
    """WORKDIR/prepare of the quickstart, but with vectors, on `source`, made in a process of its own;
    what is complete is not made again."""
    command = [sys.executable, "-m", "retro_jax.cli", "prepare", f"--config={QUICKSTART}"]
    retrieval = {"embedder": "tfidf", "dim": "256", "index": "auto"}
    command += [f"--config.retrieval.{name}={value}" for name, value in retrieval.items()]
    done = subprocess.run([*command, f"--config.corpus.source={source}", f"--workdir={root}"])
    if done.returncode:
        sys.exit(done.returncode)
    return root / "prepare"


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
    from rich.progress import track

    seconds, answers = {name: [] for name in workers}, {}
    for i in track(range(rounds + 1), f"{what}, rounds (the first one does not count)"):
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
        from retro_jax import workdir

        value = {"threads": THREADS, "versions": workdir.versions(), "tables": tables}
        workdir.write_json(file, value)
