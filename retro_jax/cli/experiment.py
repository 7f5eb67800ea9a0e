"""From a command's words to a working directory: its stored experiment, or that of a config file, with fields
given on top."""

import argparse
import dataclasses
import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from retro_jax import progress
from retro_jax.cli.config_file import load, over
from retro_jax.config import Experiment
from retro_jax.config.fields import binding, leaves
from retro_jax.errors import UserError
from retro_jax.store.workdir import WorkDir


def open_work(args: argparse.Namespace, fields: Sequence[str]) -> WorkDir:
    """The working directory that a command is about, with the experiment as the command has it.

    Fields that differ from the stored ones are said.

    Raises:
      UserError: there is no experiment, a field or value that cannot be meant, or a bucket.
    """
    root, fields = args.workdir or args.workdir_flag, [*fields, *_conditions(args, fields)]
    if args.workdir and args.workdir_flag:
        raise UserError(
            f"--workdir={args.workdir_flag}: the directory {args.workdir} is given already"
        )
    e = experiment_of(args, fields)
    stored = WorkDir(root or Path("runs") / e.name)
    if args.config and root and not any(f.startswith("--config.name") for f in fields):
        # Named as its directory when it is made; a directory that is moved later keeps the name.
        name = stored.experiment.name if stored.exists else stored.root.name
        e = dataclasses.replace(e, name=name or e.name)
    if stored.exists:
        for line in differing(stored.experiment, e):
            progress.say(f"config: {line}")
    return WorkDir(stored.root, e, _prepared_in(stored, e, getattr(args, "prepared", None)))


def _prepared_in(stored: WorkDir, e: Experiment, given: str | None) -> Path | None:
    """The directory of --prepared, if it is given and can be meant."""
    from retro_jax.pipeline.recipe import recipe

    if given is None:
        return None
    there = WorkDir(given)
    before = here(there).experiment
    if e.train.steps and not before.corpus.heldout:
        raise UserError(
            f"--prepared={given}: holds nothing out (corpus.heldout = 0), and what is trained here is measured on such "
            "text; leave --prepared out, and prepare anew"
        )
    steps, now = (recipe(of, Path()) for of in (before, e))
    changed = {
        n
        for k in set(steps) & set(now)
        for n, v in now[k].settings.items()
        if steps[k].settings.get(n) != v
    }
    if other := [
        f"--config.{n}={shlex.quote(str(v))}" for n, v, _ in leaves(before) if n in changed
    ]:
        raise UserError(
            f"--prepared={given}: was prepared with other fields than this run; give it these too: {' '.join(other)}"
        )
    if there.prepared_in != there.root:
        raise UserError(f"--prepared={given}: is itself prepared in {there.prepared_in}; give that")
    made = stored.exists and (stored.prepared() / "corpus").exists()
    if made and not os.path.samefile(stored.prepared_in, there.root):
        raise UserError(
            f"--prepared={given}: {stored.root} reads what is prepared in {stored.prepared_in}; use another "
            "--workdir, or leave --prepared out"
        )
    return there.root


def _conditions(args: argparse.Namespace, fields: Sequence[str]) -> list[str]:
    """What --conditions says, as a field; of a command that has no such flag, nothing."""
    given = getattr(args, "conditions", None)
    if given is None:
        return []
    if any(f.startswith("--config.evaluate.conditions") for f in fields):
        raise UserError(
            f"--conditions={given} is the field evaluate.conditions, which is given too; leave one of them out"
        )
    names = () if given == "all" else tuple(filter(None, given.split(",")))
    if not names and given != "all":
        raise UserError(f"--conditions={given}: name some, with commas, or all")
    return [f"--config.evaluate.conditions={names!r}"]


def experiment_of(args: argparse.Namespace, fields: Sequence[str]) -> Experiment:
    """The experiment that a command is about: that of --config, or the one that a directory has stored.

    Raises:
      UserError: as `open_work`.
    """
    root = args.workdir or args.workdir_flag
    if args.config:
        e = load(args.config, fields)
    elif root:
        e = over(WorkDir(root).experiment, fields)  # which says what is missing
    else:
        raise UserError(
            "name a working directory, for example runs/quickstart, or give an experiment: "
            "--config=experiments/quickstart.py"
        )
    check(e)
    return e


def here(work: WorkDir) -> WorkDir:
    """The same directory, which must be a folder.

    Raises:
      UserError: it is a bucket.
    """
    if not isinstance(work.root, Path):
        raise UserError(
            f"--workdir={work.root}: must be a folder, local or mounted; only `retro beam` prepares in a bucket"
        )
    return work


def ready(work: WorkDir) -> WorkDir:
    """The same directory, which must be a folder, and the CPU split as its mesh wants; before JAX first runs."""
    from retro_jax.train import sharding

    sharding.set_up_cpu(here(work).experiment.mesh.cpu_devices)
    return work


def keep(work: WorkDir, rebuild: bool = False) -> WorkDir:
    """The same directory, whose stored experiment is what the command has it to be: for commands that make
    something of it. Fields that are free (how it is logged, the mesh, what is generated) hold for the
    command alone.

    Raises:
      UserError: something that is there, and is not made again, was made with another field.
    """
    if not here(work).exists:
        return work
    before = WorkDir(work.root).experiment
    if binding(before) == binding(work.experiment):
        return work
    if not rebuild:
        _refuse_contradictions(work)
    kept = _merged(before, work.experiment)
    WorkDir(work.root, kept).save()
    return work


def _refuse_contradictions(work: WorkDir):
    from retro_jax.methods import method
    from retro_jax.pipeline.recipe import recipe
    from retro_jax.store import artefact
    from retro_jax.train import restore

    e, complete, others = work.experiment, [], {}
    for step in recipe(e, work.prepared()).values():
        manifest = artefact.read(step.out)
        if manifest and (changed := artefact.differing(manifest["settings"], step.settings)):
            _refuse({step.out: changed}, "`retro prepare --rebuild`")
    for name in method.METHODS:
        manifest = artefact.read(work.trained(name))
        if manifest is None:
            continue
        of = method.method_of(e, name)
        trained = of.trained_with(e)
        if changed := artefact.differing(manifest["settings"], restore.settings_of(trained, of)):
            others[work.trained(name)] = changed
        elif manifest["counts"].get("complete"):
            complete.append((trained.train, manifest["counts"]))
    if others:
        again = "delete what was trained (only a run with train.schedule = 'constant' can be given more steps)"
        _refuse(others, again)
    for given in complete:
        restore.has_all_steps(*given)


def _refuse(others: dict[Path, list[str]], remedy: str):
    """Names all that was made with another config, so that whoever makes room for the new one does it once."""
    changed = dict.fromkeys(line for lines in others.values() for line in lines)
    were = "were" if len(others) > 1 else "was"
    raise UserError(
        f"{' and '.join(map(str, others))} {were} made with another config ({'; '.join(changed)}): give the fields "
        f"that it was made with, use another working directory, or {remedy}"
    )


def _merged(before, after):
    """`after`, with the free fields of `before`."""
    values = {}
    for field in dataclasses.fields(before):
        old, new = getattr(before, field.name), getattr(after, field.name)
        if field.metadata.get("free"):
            values[field.name] = old
        else:
            values[field.name] = _merged(old, new) if dataclasses.is_dataclass(old) else new
    return type(before)(**values)


def check(e: Experiment):
    """Raises UserError for names and settings that the tables of retrieval and of methods do not have."""
    from retro_jax.methods import method
    from retro_jax.retrieval import index

    index.check(e.retrieval)
    method.check(e)
    if e.evaluate.conditions:
        from retro_jax.evaluate import condition

        # Whether the method can be scored under them is looked at where it is evaluated.
        condition.check(e.evaluate.conditions, None, e.retrieval.neighbours)


def differing(before: Experiment, after: Experiment) -> list[str]:
    """Which fields are not the stored ones, in words."""
    old, new = ({name: value for name, value, _ in leaves(e)} for e in (before, after))
    return [
        f"{name} = {new.get(name)!r} (stored: {old.get(name)!r})"
        for name in new | old
        if old.get(name) != new.get(name)
    ]
