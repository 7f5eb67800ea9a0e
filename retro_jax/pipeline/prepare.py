"""`retro prepare`: every step that is not done, here; a killed one goes on after its last complete part."""

from pathlib import Path

from retro_jax import progress
from retro_jax.config import Experiment
from retro_jax.errors import UserError
from retro_jax.pipeline.recipe import database_split, live, recipe, shard_splits
from retro_jax.pipeline.step import Rows, Step, Whole
from retro_jax.retrieval import index
from retro_jax.store import artefact, columns, files, records
from retro_jax.store.workdir import WorkDir
from retro_jax.weights.base import check_model
from retro_jax.weights.directory import has_weights


def prepare(work: WorkDir, rebuild: bool = False) -> dict[str, dict]:
    """Runs every step that is not done; returns each step's manifest by name. Where a working directory uses what is
    prepared in another, nothing is made.

    rebuild: delete steps that were made with other settings or from other inputs, and make them again;
    without it they are refused.

    Raises:
      UserError: as `check_given`; what is there was made with another config; another process prepares
        here; a step cannot be made; or it is not finished in the directory that is used.
    """
    e, base = work.experiment, work.prepared()
    if work.prepared_in != work.root:
        if rebuild:
            work.own("rebuild it")
        made = check_prepared(work)
        progress.say(f"prepared in {work.prepared_in}")
        work.save()
        return made
    check_given(e, base)
    made = recipe(e, base)
    if _has_info(base) and not rebuild:
        manifests = {name: _done(step) for name, step in made.items()}
        if all(manifests.values()):
            progress.say("prepare: complete")
            if not work.exists:  # what is prepared was copied here without it
                work.save()
            return manifests
    with work.lock("prepare"):
        return _run(work, made, rebuild)


def _run(work: WorkDir, made: dict[str, Step], rebuild: bool) -> dict[str, dict]:
    base, manifests, changed = work.prepared(), {}, False
    work.save()
    for name, step in made.items():
        try:
            done = _done(step)
        except UserError as error:
            if not rebuild:
                raise
            progress.say(f"prepare/{name}: made again ({error})")
            files.remove_directory(step.out)
            done = None
        changed |= not done
        progress.say(f"prepare/{name}" + (": complete" if done else ""))
        manifests[name] = done or artefact.build(
            step.out, step.settings, _inputs(step), lambda out, step=step: make(step, out)
        )
    if changed:
        _tell(work.experiment, manifests)
    if changed or not _has_info(base):
        records.write_tfds_info(base / "shards", shard_splits(work.experiment), base / "shards")
    later = [p for p in (work.trained(""), work.evaluated("")) if p.exists()]
    if rebuild and changed and later:
        names = ", ".join(map(str, later))
        progress.say(f"made from what was there before: {names}; delete, and run them again")
    return manifests


def _tell(e: Experiment, manifests: dict[str, dict]):
    """Says what can be looked up, and what cannot because it is held out."""
    database = manifests[f"chunks/{database_split(e)}"]["counts"]
    known, aside = progress.counted(database["documents"], "document"), "nothing is held out"
    if "chunks/heldout" in manifests:
        held = manifests["chunks/heldout"]["counts"]["documents"]
        aside = f"{progress.counted(held, 'document')} held out, to be scored"
    progress.say(f"prepared: {database['chunks']:,} chunks of {known} can be looked up; {aside}")
    base = Path(e.train.base)
    if e.train.base and base.is_dir() and not has_weights(base):
        progress.say(f"{e.train.base} has no weights yet (*.safetensors); `retro train` wants them")


def _has_info(base: Path) -> bool:
    """Whether there is what TFDS reads beside the shards, which is written last."""
    return all((base / "shards" / name).exists() for name in records.INFO)


def make(step: Step, out: Path) -> dict:
    """Makes a step in a directory of its own, or goes on with it; returns its counts."""
    if isinstance(step, Whole):
        return step.make(out)
    count = step.parts()
    if isinstance(step, Rows):
        return _make_rows(step, out, count)
    with progress.bar(step.doing, count) as advance:
        for part in range(count):
            if step.there(part, out):
                advance(1)
            else:
                step.make(part, out, advance)
                columns.let_go()
    return step.finish(out)


def _make_rows(step: Rows, out: Path, count: int) -> dict:
    writer = columns.Writer(out, step.layout)
    state = writer.state = {"parts": 0} | writer.state
    total = step.total()
    with progress.bar(step.doing, total) as advance:
        advance(total * state["parts"] // max(1, count))
        for part in range(state["parts"], count):
            rows, counts = step.make(part, advance)
            before = {name: writer.rows(name) for name in step.layout}
            writer.append(**step.moved(rows, before))
            state |= {"parts": part + 1} | added(state, counts)
            writer.commit()
            columns.let_go()
    writer.close()
    return step.finish(out, state)


def added(total: dict, counts: dict) -> dict:
    """The counts of parts, with those of one more."""
    return {name: total.get(name, 0) + n for name, n in counts.items()}


def _inputs(step: Step) -> list[Path]:
    return [step.at(name) for name in step.inputs]


def _done(step: Step) -> dict | None:
    """The manifest of a finished step, or None; refuses one that was made otherwise."""
    try:
        return artefact.check(step.out, step.settings, _inputs(step))
    except FileNotFoundError:  # an input is gone
        return None
    except UserError as error:
        raise UserError(f"{error}; `retro prepare --rebuild` does the latter") from error


def check_given(e: Experiment, base: Path):
    """Looks, before the first step begins, for all that steps that are not there yet will need.

    Raises:
      UserError: a source that matches no file, a tokenizer that does not serve, an embedder whose files
        are missing, names or settings of retrieval that there are not, a model that the base's weights do
        not fit.
    """
    index.check(e.retrieval)
    check_model(e)
    begins: set[str] = set()
    for name, step in recipe(e, base).items():
        manifest = artefact.read(step.out)
        if (
            not manifest
            or artefact.differing(manifest["settings"], step.settings)
            or begins & set(step.inputs)
        ):
            begins.add(name)
            step.check()


def check_prepared(work: WorkDir, only_live: bool = False) -> dict[str, dict]:
    """The manifests of a finished `prepare`, by step.

    only_live: look at what live retrieval reads, and at nothing else: whoever generates does not care what
      was held out.

    Raises:
      UserError: a step is missing, damaged, or was made with another config.
    """
    e, manifests = work.experiment, {}
    index.check(e.retrieval)
    made = recipe(e, work.prepared())
    for name in live(e) if only_live else made:
        step = made[name]
        manifests[name] = artefact.require(step.out, "prepare", step.settings, _inputs(step))
    return manifests
