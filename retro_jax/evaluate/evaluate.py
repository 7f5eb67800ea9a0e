"""The evaluate stage: count leaks, score held-out text, and say what it means.

WORKDIR/evaluate/SPLIT has tokens.parquet, a row a token (likelihood.py), and result.json, which is made
from it (figures.py).
"""

import dataclasses
import functools
import shutil
from pathlib import Path

from retro_jax import progress, steps, workdir
from retro_jax.config import Experiment
from retro_jax.corpus import sources
from retro_jax.errors import UserError
from retro_jax.evaluate import conditions, leaks, likelihood, rows, tasks
from retro_jax.evaluate.figures import figures
from retro_jax.evaluate.text import Text
from retro_jax.evaluate.verbatim import verbatim
from retro_jax.prepare import check_prepared
from retro_jax.train.loop import check_trained

_SHOWN = 10  # ids in a message


def evaluate(experiment: Experiment, root: Path) -> dict[str, dict]:
    """Scores every held-out split; the manifests of WORKDIR/evaluate/SPLIT.

    Raises:
      UserError: an earlier stage is missing, or the shards hold a leak.
    """
    e, root = experiment, Path(root)
    prepared = check_prepared(e, root)
    models = e.train.models
    if "retro" not in models:
        raise UserError(
            f"config field train.models: {models}: `retro evaluate` needs retro; for its baseline beside "
            "it --config.train.models=\"('retro', 'baseline')\""
        )
    for name in models:
        check_trained(e, root, retrieval=name == "retro")
    conditions.check(e)
    settings = _settings(e)
    shards, results = root / "prepare" / "shards", {}
    once = functools.cache(lambda: _leaks(e, root, "train"))  # the larger part
    for split in steps.shard_splits(e)[1:]:
        inputs = [shards / "train", shards / split, *(root / "train" / name for name in models)]
        out = root / "evaluate" / split
        if done := workdir.check(out, settings, inputs):
            progress.say(f"evaluate/{split}: complete")
        results[split] = done or workdir.build(
            out, settings, inputs, lambda out, s=split: _evaluate(e, root, s, once, prepared, out)
        )
    return results


def evaluate_text(
    experiment: Experiment, root: Path, source: str, name: str = "text", databases=("prepared",)
) -> dict:
    """Scores documents of any source (see `sources.documents`) against databases as they are now; the
    manifest of WORKDIR/evaluate/NAME.

    Raises:
      UserError: an earlier stage is missing, a bad source, or documents that the databases hold.
    """
    e, root = experiment, Path(root)
    prepared, out = check_prepared(e, root), root / "evaluate" / name
    if Path(name).name != name or name.startswith("."):
        raise UserError(f"--name={name}: must be a name and no path, for example --name=news")
    if name in (*steps.shard_splits(e), tasks.DIRECTORY):
        raise UserError(f"--name={name}: is taken; choose another name")
    sources.check(source, "--text")
    models = e.train.models
    for model in models:
        check_trained(e, root, retrieval=model == "retro")
    retriever = steps.load_retriever(e, root / "prepare")
    retriever.check(databases)
    conditions.check(e)

    def make(partial: Path) -> dict:
        for part in (
            "chunks",
            "embeddings",
        ):  # of a run that was killed; the text may be another now
            shutil.rmtree(partial / part, ignore_errors=True)
        text = Text.given(e, name, source, retriever, databases, partial)
        if ids := leaks.held(text, retriever, databases):
            shown = ", ".join(ids[:_SHOWN]) + (" and more" if len(ids) > _SHOWN else "")
            raise UserError(
                f"--text={source}: the databases hold the text of {len(ids)} of its "
                f"{len(text.table.documents)} documents, so no result would mean anything: {shown}; leave "
                "them out, or delete them (retro database --delete=ID)"
            )
        found = {
            "violations": {"heldout_in_database": 0},
            "share_with_fewer_than_k": {name: float((text.ids < 0).any(axis=1).mean())},
        }
        return _score(e, root, text, prepared, found, partial)

    settings = _settings(e) | {"text": source, "databases": list(databases)}
    inputs = [root / "prepare" / "index", *(root / "train" / model for model in models)]
    before = out.with_name(f".{name}.before")  # the text or a database may have changed
    shutil.rmtree(before, ignore_errors=True)
    if out.exists():
        out.rename(before)
    try:
        return workdir.build(out, settings, inputs, make)
    finally:
        if before.exists() and not out.exists():
            before.rename(out)
        shutil.rmtree(before, ignore_errors=True)


def _settings(e: Experiment) -> dict:
    settings = {f"evaluate.{k}": v for k, v in dataclasses.asdict(e.evaluate).items()}
    return settings | {"train.models": e.train.models}


def _leaks(e: Experiment, root: Path, split: str) -> dict[str, int]:
    base = root / "prepare"
    text, database = Text.prepared(e, base, split), steps.table_of(base, steps.database_split(e))
    with progress.bar(f"looking for leaks in {split}", len(text.records)) as advance:
        return leaks.violations({split: text}, database, e, advance)


def _evaluate(e: Experiment, root: Path, split: str, in_train, prepared: dict, out: Path) -> dict:
    mine = _leaks(e, root, split)
    found = {name: n + mine[name] for name, n in in_train().items()}
    if any(found.values()):
        raise UserError(
            f"the shards of {root / 'prepare'} leak, so no result would mean anything: {found}; look at "
            "what was prepared, and prepare anew in another --workdir"
        )
    fewer = {
        s: prepared[f"neighbours/{s}"]["counts"]["share_with_fewer_than_k"]
        for s in ("train", split)
    }
    text = Text.prepared(e, root / "prepare", split)
    found = {"violations": found, "share_with_fewer_than_k": fewer}
    return _score(e, root, text, prepared, found, out)


def _score(e, root, text: Text, prepared: dict, found: dict, out: Path) -> dict:
    """Scores a text, and makes the figures; found: what is known of it beside."""
    base, names = root / "prepare", conditions.names(e, text, prepared["index"]["counts"]["kind"])
    trained = {m: workdir.read_manifest(root / "train" / m) for m in e.train.models}
    facts = found | {
        "name": e.name,
        "split": text.name,
        "chunk": e.model.chunk,
        "neighbours": e.retrieval.neighbours,
        "filter_overlap": e.evaluate.filter_overlap,
        "conditions": {name: conditions.meaning(name) for name in names},
        "database": {
            "documents": sum(len(t.documents) for t in text.tables),
            "chunks": sum(map(len, text.tables)),
        },
        "databases": text.databases,
        "index": prepared["index"]["counts"],
        "checkpoint": e.evaluate.checkpoint,
        "models": {
            name: {n: m["counts"][n] for n in ("parameters", "steps")} | {"made": m["made"]}
            for name, m in trained.items()
        },
        "documents": [{"id": d["id"], "metadata": d["metadata"]} for d in text.table.documents],
        "vocabulary": vocabulary(steps.load_tokenizer(base)),
        "versions": workdir.versions(),
        "verbatim": verbatim(e, root, text),
    }
    likelihood.score(e, root, text, names, facts, out / "tokens.parquet")
    result = figures(rows.load(out / "tokens.parquet"))
    expected = {"documents": len(text.table.documents)} | {
        name: sum(d[name] for d in text.table.documents) for name in ("tokens", "bytes")
    }
    if counts := {n: result[n] for n in expected if result[n] != expected[n]}:
        raise RuntimeError(f"scored {counts}, but there are {expected}")
    workdir.write_json(out / "result.json", result)
    return result


def vocabulary(tokenizer) -> list[str]:
    """The bytes of each token, each byte a character; JSON holds no bytes."""
    return [tokenizer.decode_bytes([t]).decode("latin-1") for t in range(tokenizer.vocab)]
