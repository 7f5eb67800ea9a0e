"""`retro study`: many runs of one experiment, and what they say together."""

import contextlib
import inspect
from pathlib import Path

from retro_jax import progress
from retro_jax.cli.command import Command, Flag
from retro_jax.cli.config_file import find
from retro_jax.cli.study_processes import HELD, STOPPED, ends_with_its_parent, run_all
from retro_jax.config import Study
from retro_jax.config.experiment import module_of
from retro_jax.errors import UserError
from retro_jax.terminal import Terminal


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
        takes = inspect.signature(get).parameters.values()
        if colon and not takes:
            raise UserError(f"{config}: get_study() of {file} takes no argument")
        if not colon and any(p.default is p.empty for p in takes):
            raise UserError(f"{file}: get_study() takes an argument: give {name}:ARGUMENT")
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
    if args.only is not None and not names:
        raise UserError("--only= names no run; leave it out for all of them")
    if unknown := [n for n in names if n not in study.runs]:
        raise UserError(f"--only={args.only}: no run {unknown[0]!r}; --list lists them")
    if args.collect:
        return _collect(runs)
    runs.check(texts=not args.list)
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
    status = run_all(runs, names, args.file, args.jobs)
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
    from retro_jax.store.lock import lock

    if not ends_with_its_parent():
        return STOPPED
    if runs.done(name):
        progress.say(f"{name}: complete")
        return 0
    runs.check_text(name)

    def run():
        runs.prepare(name)
        runs.run(name)
        progress.say(f"{name}: done (`retro study FILE --collect` makes the page of all that are)")

    with contextlib.ExitStack() as held:
        try:
            held.enter_context(lock(runs.work(name).root / ".locks", "run"))
        except UserError as error:
            progress.say(f"{name}: {error}")
            return HELD
        return stopping(keep(runs.work(name)), run, False)


def _prepare(runs, names: list[str]) -> int:
    if not ends_with_its_parent():
        return STOPPED
    for where, name in {runs.prepared(n): n for n in names}.items():
        runs.check_text(name)
        runs.prepare(name)
        progress.say(f"prepared: {where}")
    return 0


def _list(runs, names: list[str]):
    from retro_jax.study.runs import fields_of, training_flops

    # No table of rich: it would break the fields, which one wants to copy, in a narrow terminal.
    out, width = Terminal(), max(map(len, (*names, "run")))
    out.print(f"{'run':{width}}  {'FLOPs':>9}  prepared  done  fields", soft_wrap=True)
    for name in names:
        cost, done = training_flops(runs.study.experiment(name)), runs.done(name)
        said = "yes" if done else "with other fields" if runs.done_before(name) else "no"
        line = f"{name:{width}}  {cost:9.3g}  {runs.prepared(name).name}  {said:4}  "
        out.print(line + fields_of(runs.study.runs[name]), soft_wrap=True, markup=False)


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
