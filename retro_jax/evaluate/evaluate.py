"""The evaluate stage: count leaks, score held-out text, and say what it means.

An evaluation has tokens.parquet, a row a token (likelihood.py), and result.json, which is made from it
(figures.py).
"""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

from retro_jax import progress
from retro_jax.config import Experiment
from retro_jax.config.fields import binding
from retro_jax.corpus import sources
from retro_jax.databases.retriever import Retriever, open_retriever
from retro_jax.errors import UserError
from retro_jax.evaluate import condition, leaks, likelihood, rows, training
from retro_jax.evaluate.figures import figures
from retro_jax.evaluate.likelihood import Column
from retro_jax.evaluate.text import Text
from retro_jax.evaluate.verbatim import verbatim
from retro_jax.methods.method import Method, methods_of
from retro_jax.pipeline.prepare import check_prepared
from retro_jax.pipeline.prepared import Prepared
from retro_jax.pipeline.recipe import heldout_splits, shard_splits
from retro_jax.retrieval.ranking import Ranking
from retro_jax.store import artefact, files, provenance
from retro_jax.store.workdir import TASKS, WorkDir
from retro_jax.train.restore import check_trained

_SHOWN = 10  # ids in a message


def evaluate(work: WorkDir) -> dict[str, dict]:
    """Scores every held-out split; the manifests of the evaluations, by split.

    An evaluation that was made with other fields of `evaluate` is made again.

    Raises:
      UserError: nothing is held out, an earlier stage is missing, the shards hold a leak, or another process evaluates
        here.
    """
    e, splits = work.experiment, heldout_splits(work.experiment)
    prepared, (method, others) = check_prepared(work), compared(work)
    settings = settings_of(e)
    inputs = {
        split: [work.prepared(f"shards/{s}") for s in ("train", split)]
        + [work.trained(m.trained_as) for m in (method, *others)]
        for split in splits
    }
    results = {s: done(work.evaluated(s), settings, inputs[s]) for s in splits}
    if all(results.values()):
        return results
    once = functools.cache(lambda: leaks_of(work, "train"))  # the larger part
    with work.lock("evaluate"), work.reading():
        for split in (s for s in splits if not results[s]):
            make = functools.partial(_evaluate, work, split, once, prepared, method, others)
            results[split] = again(work.evaluated(split), settings, inputs[split], make)
    return results


def compared(work: WorkDir) -> tuple[Method, list[Method]]:
    """The method that is evaluated under all conditions, the first one whose network reads; and those that it
    is compared with, each as it is.

    Raises:
      UserError: as `possible`, or one of them is not trained.
    """
    method, others = possible(work.experiment)
    for m in (method, *others):
        check_trained(work, m)
        m.prepare(work)
    return method, others


def possible(e: Experiment) -> tuple[Method, list[Method]]:
    """The same, of an experiment of which nothing needs to be there yet.

    Raises:
      UserError: no network of its methods reads, one of them retrieves by itself, or a condition is asked for that
        there is not.
    """
    methods = methods_of(e)
    reading = [m for m in methods if m.network and m.trained]
    if not reading:
        raise UserError(
            f"config field methods = {e.methods}: `retro evaluate` needs one whose network reads, retro for "
            "example; to compare it with the language model, --config.methods=\"('retro', 'language_model')\"; "
            "other methods side by side: `retro compare`"
        )
    method, others = reading[0], [m for m in methods if m is not reading[0]]
    for m in (method, *others):
        if m.retrieves:
            raise UserError(
                f"config field methods = {e.methods}: {m.name} retrieves by itself, and `retro evaluate` scores what "
                f"was prepared; {m.instead}, and see `retro compare`"
            )
    condition.check(e.evaluate.conditions, method.conditions, method.k)
    return method, others


def settings_of(e: Experiment) -> dict:
    """{config field: value} of all that an evaluation depends on, beside what is evaluated."""
    own = {
        f"method_settings.{m.name}": dict(binding(m.settings, ""))
        for m in methods_of(e)
        if not m.trained
    }
    return binding(e.evaluate, "evaluate.") | {"methods": list(e.methods)} | own


def done(out: Path, settings: dict, inputs: list[Path]) -> dict | None:
    """The manifest of an evaluation that need not be made again."""
    put_back(out)
    name = f"{out.parent.name}/{out.name}"
    if wrong := artefact.outdated(out, settings, inputs):
        progress.say(f"{name}: made again, because {'; '.join(wrong)}")
        return None
    if made := artefact.read(out):
        progress.say(f"{name}: complete")
    return made


def put_back(out: Path):
    """Gives an evaluation its place again, if whoever made it again was killed."""
    before = _before(out)
    if before.exists() and not out.exists():
        before.rename(out)


def _before(out: Path) -> Path:
    """Where an evaluation is while it is made again."""
    return out.with_name(f".{out.name}.before")


def again(out: Path, settings: dict, inputs: list[Path], make) -> dict:
    """Makes an evaluation again; the one before stays until the new one is complete."""
    before = _before(out)
    files.remove_directory(before)
    if out.exists():
        out.rename(before)
    try:
        return artefact.build(out, settings, inputs, make)
    finally:
        put_back(out)
        files.remove_directory(before)


def evaluate_text(
    work: WorkDir, source: str, name: str = "text", databases: Sequence[str] = ("prepared",)
) -> dict:
    """Scores documents of any source (see `sources.documents`) against databases as they are now; the
    manifest of the evaluation NAME.

    Raises:
      UserError: an earlier stage is missing, a bad source, or documents that the databases hold.
    """
    sources.check(source, "--text")

    def read(retriever: Retriever, partial: Path) -> Text:
        for part in ("chunks", "embeddings"):  # of a run that was killed, perhaps of another text
            files.remove_directory(partial / part)
        return Text.given(name, source, retriever, databases, partial)

    return _against(work, name, read, f"--text={source}", databases, {"text": source})


def evaluate_against(
    work: WorkDir, databases: Sequence[str], name: str, splits: Sequence[str] | None = None
) -> dict[str, dict]:
    """Scores held-out splits (by default every one) against databases as they are now, and not as they were prepared;
    the manifests of the evaluations SPLIT-NAME, by what they are called.

    Raises:
      UserError: as `evaluate_text`.
    """
    made = {}
    for split in splits or heldout_splits(work.experiment):

        def read(retriever: Retriever, _: Path, split=split) -> Text:
            return Text.against(split, retriever, databases)

        called = f"{split}-{name}"
        made[called] = _against(
            work, called, read, f"--databases={','.join(databases)}", databases, {"split": split}
        )
    return made


def _against(
    work: WorkDir, name: str, read: Callable[[Retriever, Path], Text], given: str,
    databases: Sequence[str], settings: dict,
) -> dict:  # fmt: skip
    """The evaluation NAME of what `read` gives; given: the flag that asked for it."""
    e = work.experiment
    prepared, out = check_prepared(work), work.evaluated(name)
    if Path(name).name != name or name.startswith("."):
        raise UserError(f"--name={name}: must be a name and no path, for example --name=news")
    if name in (*shard_splits(e), TASKS):
        raise UserError(f"--name={name}: is taken; choose another name")
    method, others = compared(work)
    retriever = open_retriever(work)
    retriever.check(databases)

    def make(partial: Path) -> dict:
        text = read(retriever, partial)
        if ids := leaks.held(text, retriever, databases):
            shown = ", ".join(ids[:_SHOWN]) + (" and more" if len(ids) > _SHOWN else "")
            raise UserError(
                f"{given}: the databases hold the text of {len(ids)} of the "
                f"{len(text.table.documents)} documents, so no result would mean anything: {shown}; leave "
                "them out, or delete them (retro database --delete=ID)"
            )
        found = {
            "violations": {"heldout_in_database": 0},
            "whole_chunks": {name: leaks.whole_chunks(text)},
            "share_with_fewer_than_k": {name: float((text.ids < 0).any(axis=1).mean())},
        }
        return _score(work, text, prepared, method, others, found, partial)

    settings = settings_of(e) | settings | {"databases": list(databases)}
    inputs = [work.prepared("index"), *(work.trained(m.trained_as) for m in (method, *others))]
    with work.lock("evaluate"), work.reading():
        return again(out, settings, inputs, make)  # the text or a database may have changed


def leaks_of(work: WorkDir, split: str) -> tuple[dict[str, int], dict]:
    """How many leaks the shards of a split hold, by kind; and what `whole_chunks` says of it."""
    text = Text.prepared(work, split)
    with progress.bar(f"looking for leaks in {split}", len(text.records)) as advance:
        database = Prepared(work).database
        found = leaks.violations({split: text}, database, work.experiment, advance)
        return found, leaks.whole_chunks(text)


def no_leaks(work: WorkDir, split: str, in_train: Callable[[], tuple[dict, dict]]) -> dict:
    """violations: the leaks of a split and of the training shards, by kind, none; whole_chunks: of both.

    Raises:
      UserError: there is one.
    """
    mine, whole = leaks_of(work, split)
    theirs, whole_train = in_train()
    found = {name: n + mine[name] for name, n in theirs.items()}
    if any(found.values()):
        raise UserError(
            f"the shards of {work.prepared()} leak, so no result would mean anything: {found}; look at "
            "what was prepared, and prepare anew in another working directory"
        )
    return {"violations": found, "whole_chunks": {split: whole, "train": whole_train}}


def _evaluate(
    work: WorkDir,
    split: str,
    in_train,
    prepared: dict,
    method: Method,
    others: list[Method],
    out: Path,
) -> dict:
    found = no_leaks(work, split, in_train)
    fewer = {
        s: prepared[f"neighbours/{s}"]["counts"]["share_with_fewer_than_k"]
        for s in ("train", split)
    }
    text = Text.prepared(work, split)
    found |= {"share_with_fewer_than_k": fewer}
    return _score(work, text, prepared, method, others, found, out)


def _score(
    work: WorkDir, text: Text, prepared: dict, method: Method, others: list[Method], found: dict,
    out: Path,
) -> dict:  # fmt: skip
    """Scores a text, and makes the figures; found: what is known of it beside."""
    e, index = work.experiment, dict(prepared["index"]["counts"])
    index |= {"distance": Ranking.of(e.retrieval).distance, "rerank": e.retrieval.rerank}
    asked = e.evaluate.conditions
    conditions = condition.chosen(asked, method.conditions, text, method.k, index["approximate"])
    facts = found | {
        "name": e.name,
        "split": text.name,
        "chunk": e.model.reading.chunk,
        "neighbours": e.retrieval.neighbours,
        "filter_overlap": e.evaluate.filter_overlap,
        "conditions": {x.name: x.meaning for x in (*conditions, *others)},
        "database": {
            "documents": sum(len(t.documents) for t in text.tables),
            "chunks": sum(map(len, text.tables)),
        },
        "databases": text.databases,
        "index": index,
        "checkpoint": e.evaluate.checkpoint,
        "models": {m.name: training.told(work, m) for m in (method, *others)},
        "documents": [{"id": d["id"], "metadata": d["metadata"]} for d in text.table.documents],
        "vocabulary": vocabulary(Prepared(work).tokenizer),
        "versions": provenance.versions(),
        "verbatim": verbatim(work, method, text),
    }
    file = out / "tokens.parquet"
    real = condition.CONDITIONS["on"]("on", text, method.k)
    columns = [Column(c.name, method, c, measured=c.name == "on") for c in conditions]
    columns += [Column(m.name, m, real if m.reads else None) for m in others]
    likelihood.score(work, text, columns, facts, file)
    result = figures(rows.load(file))
    expected = {"documents": len(text.table.documents)} | {
        name: sum(d[name] for d in text.table.documents) for name in ("tokens", "bytes")
    }
    if counts := {n: result[n] for n in expected if result[n] != expected[n]}:
        raise RuntimeError(f"scored {counts}, but there are {expected}")
    files.write_json(out / "result.json", result)
    return result


def vocabulary(tokenizer) -> list[str]:
    """The bytes of each token, each byte a character; JSON holds no bytes."""
    return [tokenizer.decode_bytes([t]).decode("latin-1") for t in range(tokenizer.vocab)]
