"""The runs of a study as processes: each has its share of the cores, and ends with who began it."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from retro_jax import progress

STOPPED = 75  # exit status of whoever got SIGTERM; the same command continues
HELD = 3  # of a run that another process has under way
_PARENT = "RETRO_JAX_STUDY"  # the process that began this one
_PR_SET_PDEATHSIG = 1


def ends_with_its_parent() -> bool:
    """Has this process, if a study began it, get SIGTERM when that one ends or is killed (on Linux). False if it has
    ended already."""
    if not (parent := os.environ.get(_PARENT)):
        return True
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    return os.getppid() == int(parent)


def _with_parent() -> dict[str, str]:
    return os.environ | {_PARENT: str(os.getpid())}


def run_all(runs, names: list[str], file: str, jobs: int) -> int:
    """Runs what is missing, `jobs` at a time, each in a process of its own; 1 if one failed, STOPPED if it was.

    file: the study's, as its command names it.
    """
    todo, going, failed, elsewhere = [n for n in names if not runs.done(n)], {}, [], []
    done = len(names) - len(todo)
    progress.say(f"{len(names)} runs, {done} of them done")
    prepared: dict[Path, int] = {}  # exit status of preparing what lies there
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
    free = [cores[i::jobs] or [cores[i % len(cores)]] for i in range(jobs)]
    stopped = 0

    def stop(number, frame):
        nonlocal stopped
        stopped = number
        _end(going)
        # Not by `progress`, which this signal may have interrupted.
        os.write(2, b"stopping: each run saves what it has, which takes some seconds\n")

    before = {n: signal.signal(n, stop) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        while (todo and not stopped) or going:
            while todo and free and not stopped:
                name = todo.pop(0)
                if (text := runs.prepared(name)) not in prepared:
                    prepared[text] = _prepared(runs, name, file, going)
                if stopped:
                    break
                if prepared[text]:
                    failed.append(name)
                    progress.say(f"{name}: FAILED, its text could not be prepared (see above)")
                    continue
                own = free.pop()
                going[name] = _begin(runs, name, file, own), own, time.monotonic()
                if stopped:  # between its beginning and now
                    _end(going)
                progress.say(f"{name}: begins; {runs.work(name).root / 'log'}")
            for name, (process, own, begun) in list(going.items()):
                try:
                    status = process.wait(timeout=0.5)
                except subprocess.TimeoutExpired:
                    continue
                del going[name]
                free.append(own)
                if status == HELD:
                    elsewhere.append(name)
                    progress.say(f"{name}: left to another process; {_last(runs, name)}")
                elif status and not stopped:
                    failed.append(name)
                    progress.say(f"{name}: FAILED, exit status {status}; {_last(runs, name)}")
                elif not status:
                    done += 1
                    minutes = (time.monotonic() - begun) / 60
                    progress.say(f"{name}: done in {minutes:.1f} minutes, {done} of {len(names)}")
    finally:
        _end(going)  # where something unforeseen happened
        for process, *_ in going.values():
            process.wait()
        for number, handler in before.items():
            signal.signal(number, handler)
    if stopped == signal.SIGINT:
        raise KeyboardInterrupt
    if stopped:
        progress.say("stopped; run the same command to continue")
        return STOPPED
    if elsewhere:
        progress.say(
            f"not done: {', '.join(elsewhere)}; run the same command when that process has ended"
        )
    return 1 if failed else 0


def _end(going: dict):
    """Asks those that run to save and end."""
    for process, *_ in going.values():
        process.send_signal(signal.SIGTERM)


def _prepared(runs, name: str, file: str, going: dict) -> int:
    """Prepares the text of a run in a process of its own, so that what that holds (an accelerator, memory) is free
    when the runs begin; its exit status. It is among those that run meanwhile, so that it is stopped with them."""
    words = [*_words(runs, name, file), "--prepare"]
    process = subprocess.Popen(words, start_new_session=True, env=_with_parent())
    going[""] = process, [], 0.0
    status = process.wait()
    del going[""]
    return status


def _begin(runs, name: str, file: str, cores: list[int]) -> subprocess.Popen:
    log = runs.work(name).root / "log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as out, _on(cores):
        return subprocess.Popen(
            _words(runs, name, file),
            stdout=out,
            stderr=out,
            start_new_session=True,
            env=_with_parent(),
        )


def _words(runs, name: str, file: str) -> list[str]:
    words = [sys.executable, "-m", "retro_jax.cli", "study", file]
    return [*words, f"--workdir={runs.root}", f"--only={name}"]


@contextlib.contextmanager
def _on(cores: list[int]):
    """Whatever begins meanwhile runs on these cores."""
    if not hasattr(os, "sched_setaffinity"):  # not Linux
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _last(runs, name: str) -> str:
    """The last line of a run's log."""
    log = runs.work(name).root / "log"
    lines = log.read_text(errors="replace").strip().splitlines()
    return f"{log}: {lines[-1] if lines else 'empty'}"
