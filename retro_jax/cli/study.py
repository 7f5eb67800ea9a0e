"""`retro study`: many runs of one experiment, and what they say together."""

import contextlib
import inspect
import os
import signal
import subprocess
import sys
from pathlib import Path

from retro_jax import progress
from retro_jax.cli.command import Command, Flag
from retro_jax.cli.config_file import find
from retro_jax.config import Study
from retro_jax.config.experiment import module_of
from retro_jax.errors import UserError
from retro_jax.terminal import Terminal

STOPPED = 75  # exit status of whoever got SIGTERM; the same command continues


def load(config: str) -> Study:
    """The study of FILE:ARG, or of the NAME:ARG of an installed experiment.

    Raises:
      UserError: there is no such file, it has no get_study(), or what it raises.
    """
    name, colon, argument = config.partition(":")
    file = find(name, "study ")
    try:
        get = getattr(module_of(file), "get_study", None)
        if get is None:
            raise UserError(f"{file}: has no get_study(); see experiments/scaling.py")
        takes = bool(inspect.signature(get).parameters)
        if colon and not takes:
            raise UserError(f"{config}: get_study() of {file} takes no argument")
        study = get(argument) if colon else get()
    except UserError:
        raise
    except Exception as error:  # whatever such a file can raise
        raise UserError(f"{file}: {type(error).__name__}: {error}") from error
    if not isinstance(study, Study):
        raise UserError(f"{file}: get_study() gives {type(study).__name__}, must give a Study")
    return study


def _study(args, fields) -> int:
    import jax

    from retro_jax.report.write import libraries
    from retro_jax.study.runs import Runs

    if args.file is None:
        raise UserError("name a study, for example experiments/scaling.py")
    if args.jobs < 1:
        raise UserError(f"--jobs={args.jobs}: must be at least 1")
    study = load(args.file)
    runs = Runs(study, Path(args.workdir_flag or Path("runs") / study.name))
    names = list(filter(None, (args.only or "").split(",")))
    if unknown := [n for n in names if n not in study.runs]:
        raise UserError(f"--only={args.only}: no run {unknown[0]!r}; --list lists them")
    if args.collect:
        return _collect(runs)
    if not args.list:
        runs.check()
    if args.prepare:
        return _prepare(runs, names or runs.names)
    if len(names) == 1 and not args.list:
        return _one(runs, names[0])
    jax.config.update("jax_platforms", "cpu")  # an accelerator is for the runs, in their processes
    names = names or runs.names
    if args.list:
        _list(runs, names)
        return 0
    with libraries("retro study"):  # before days of training
        from retro_jax.study import page  # noqa: F401
    status = _all(runs, names, args)
    return status if status == STOPPED else _collect(runs) or status


def _collect(runs) -> int:
    from retro_jax.report.write import libraries
    from retro_jax.store.lock import lock
    from retro_jax.study import rows

    with lock(runs.root / ".locks", "collect", wait=True):
        file = rows.collect(runs)
        print(file)
        with libraries("retro study"):
            from retro_jax.study import page
        print(page.write(file))
    return 0


def _one(runs, name: str) -> int:
    from retro_jax.cli.experiment import keep
    from retro_jax.cli.training import stopping

    if runs.done(name):
        progress.say(f"{name}: complete")
        return 0

    def run():
        runs.prepare(name)
        runs.run(name)
        progress.say(f"{name}: done (`retro study FILE --collect` makes the page of all that are)")

    return stopping(keep(runs.work(name)), run, False)


def _prepare(runs, names: list[str]) -> int:
    for name in {runs.prepared(n): n for n in names}.values():
        runs.prepare(name)
    return 0


def _list(runs, names: list[str]):
    from retro_jax.study.runs import fields_of, training_flops

    # No table of rich: it would break the fields, which one wants to copy, in a narrow terminal.
    out, width = Terminal(), max(map(len, (*names, "run")))
    out.print(f"{'run':{width}}  {'FLOPs':>9}  prepared  done  fields", soft_wrap=True)
    for name in names:
        cost, done = training_flops(runs.study.experiment(name)), runs.done(name) and "yes"
        line = f"{name:{width}}  {cost:9.3g}  {runs.prepared(name).name}  {done or 'no':4}  "
        out.print(line + fields_of(runs.study.runs[name]), soft_wrap=True, markup=False)


def _all(runs, names: list[str], args) -> int:
    """Runs what is missing, some at a time, each in a process of its own; 1 if one failed, 75 if it was stopped."""
    todo, going, failed = [n for n in names if not runs.done(n)], {}, []
    done = len(names) - len(todo)
    progress.say(f"{len(names)} runs, {done} of them done")
    prepared: dict[Path, int] = {}  # exit status of preparing what lies there
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
    free = [cores[i :: args.jobs] or [cores[i % len(cores)]] for i in range(args.jobs)]
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
                    prepared[text] = _prepared(runs, name, args.file, going)
                if stopped:
                    break
                if prepared[text]:
                    failed.append(name)
                    progress.say(f"{name}: FAILED, its text could not be prepared (see above)")
                    continue
                own = free.pop()
                going[name] = _begin(runs, name, args.file, own), own
                if stopped:  # between its beginning and now
                    _end(going)
                progress.say(f"{name}: begins; {runs.work(name).root / 'log'}")
            for name, (process, own) in list(going.items()):
                try:
                    status = process.wait(timeout=0.5)
                except subprocess.TimeoutExpired:
                    continue
                del going[name]
                free.append(own)
                if status and not stopped:
                    failed.append(name)
                    progress.say(f"{name}: FAILED, exit status {status}; {_last(runs, name)}")
                elif not status:
                    done += 1
                    progress.say(f"{name}: done, {done} of {len(names)}")
    finally:
        _end(going)  # where something unforeseen happened
        for process, _ in going.values():
            process.wait()
        for number, handler in before.items():
            signal.signal(number, handler)
    if stopped == signal.SIGINT:
        raise KeyboardInterrupt
    if stopped:
        progress.say("stopped; run the same command to continue")
        return STOPPED
    return 1 if failed else 0


def _end(going: dict):
    """Asks those that run to save and end."""
    for process, _ in going.values():
        process.send_signal(signal.SIGTERM)


def _prepared(runs, name: str, file: str, going: dict) -> int:
    """Prepares the text of a run in a process of its own, so that what that holds (an accelerator, memory) is free
    when the runs begin; its exit status. It is among those that run meanwhile, so that it is stopped with them."""
    words = [*_words(runs, name, file), "--prepare"]
    process = subprocess.Popen(words, start_new_session=True)
    going[""] = process, []
    status = process.wait()
    del going[""]
    return status


def _begin(runs, name: str, file: str, cores: list[int]) -> subprocess.Popen:
    log = runs.work(name).root / "log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as out, _on(cores):
        return subprocess.Popen(
            _words(runs, name, file), stdout=out, stderr=out, start_new_session=True
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


COMMANDS = (
    Command(
        "study",
        "many runs of one experiment, prepared once; and what they say together",
        "retro study experiments/scaling.py:FOLDER --jobs=2",
        "DIR/runs/NAME for each run; DIR/rows.parquet, report.html and its plots",
        _study,
        (
            Flag("file", "a file with get_study(), FILE:ARG, or the NAME:ARG of an installed one"),
            Flag(
                "--workdir",
                "where it lies, or is to lie; by default runs/NAME, NAME being the study's",
            ),
            Flag("--list", "print the runs, what each costs and which are done", bool),
            Flag(
                "--prepare",
                "only prepare the text, on one host before the runs begin on many",
                bool,
            ),
            Flag("--only", "names of runs, with commas: for other hosts, or a job array"),
            Flag("--collect", "run nothing: rows and report of what is done", bool),
            Flag("--jobs", "runs at a time; each has its share of the processor's cores", int, 1),
        ),
        experiment=False,
        more="What is done is skipped, and what was interrupted goes on. One run that fails does not stop the others.",
    ),
)
