"""Methods side by side: the same held-out tokens, the same neighbours, the same weights where two share them.

A token of a chunk is scored given what the chunk before it retrieved, by every method that reads; and once more
given random chunks of the database, which is what tells reading from a longer prompt. What a method can choose is
chosen on other documents (tuning.py). A comparison has tokens.parquet, with a column for each method and condition
(`rag`, `rag random`), and summary.json.
"""

import functools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from retro_jax import progress
from retro_jax.config import Experiment
from retro_jax.config.fields import binding
from retro_jax.errors import UserError
from retro_jax.evaluate import likelihood, rows, signals, tuning
from retro_jax.evaluate.condition import CONDITIONS
from retro_jax.evaluate.costs import costs
from retro_jax.evaluate.evaluate import again, done, leaks_of, no_leaks, vocabulary
from retro_jax.evaluate.likelihood import Column
from retro_jax.evaluate.text import Text
from retro_jax.evaluate.where import passages, where
from retro_jax.methods.method import METHODS, Method, method_of
from retro_jax.pipeline.prepare import check_prepared
from retro_jax.pipeline.prepared import Prepared
from retro_jax.pipeline.recipe import shard_splits
from retro_jax.store import artefact, files, provenance
from retro_jax.store.workdir import WorkDir
from retro_jax.train.restore import check_trained

BASE = "language_model"  # what every method is compared with


def chosen(e: Experiment, names: str | None) -> list[Method]:
    """The methods of a comparison, the language model first; by default all that this experiment can have.

    names: with commas between them.

    Raises:
      UserError: there is none of this name, its settings cannot work, or methods have unequal budgets.
    """
    methods = []
    for name in dict.fromkeys((BASE, *(names.split(",") if names else METHODS))):
        try:
            methods.append(method_of(e, name))
        except UserError as error:
            if names:
                raise
            progress.say(f"{name} is left out: {error}")
    budgets = {m.name: m.settings.budget for m in methods if hasattr(m.settings, "budget")}
    if len(set(budgets.values())) > 1:
        said = ", ".join(f"method_settings.{n}.budget = {b}" for n, b in budgets.items())
        raise UserError(f"{said}: only methods of one budget can be compared; give all the same")
    return methods


def compare(work: WorkDir, methods: list[Method]) -> dict[str, dict]:
    """Scores every held-out split by every method; the manifests of the comparisons, by split. What a method said
    is kept, and not asked again when others are added.

    Raises:
      UserError: an earlier stage is missing, a method is not trained, the shards hold a leak, or another
        process compares here.
    """
    e = work.experiment
    check_prepared(work)
    for method in methods:
        check_trained(work, method)
    results, splits = {}, shard_splits(e)[1:]
    once = functools.cache(lambda: leaks_of(work, "train"))  # the larger part
    with work.lock("compare"):
        for split in splits:
            facts = functools.cache(functools.partial(_facts, work, split, once))
            parts = [_scored(work, split, facts, method) for method in methods]
            out, settings = work.compared(split), {"methods": [m.name for m in methods]}
            results[split] = done(out, settings, parts)
            if not results[split]:
                make = functools.partial(_compare, work, split, methods)
                results[split] = again(out, settings, parts, make)
    return results


def _scored(work: WorkDir, split: str, facts: Callable[[], dict], method: Method) -> Path:
    """Where what a method says of a split is, made if it is not there."""
    e, out = work.experiment, work.scored(split, method.name)
    settings = binding(e.evaluate, "evaluate.") | {
        f"method_settings.{method.name}": dict(binding(method.settings, "")),
        "choices": [dict(binding(c, "")) for c in method.choices()],
    }
    inputs = [work.prepared(f"shards/{s}") for s in ("train", split)]
    inputs.append(work.trained(method.trained_as))
    if not done(out, settings, inputs):
        make = functools.partial(_score, work, split, facts, method)
        again(out, settings, inputs, make)
    return out


def _score(work: WorkDir, split: str, facts: Callable[[], dict], m: Method, out: Path) -> dict:
    found, text = facts(), Text.prepared(work, split)
    m.prepare(work)
    if own := m.neighbours(work, text.queries, text.table):
        text = text.retrieving(work.experiment, *own)
    tuned = bool(m.choices())
    columns = [Column(m.name, m, _condition("on", text, m), tuned)]
    if m.reads or m.random is not m:
        random = _condition("random", text, m)
        columns.append(Column(f"{m.name} random", m.random, random, tuned))
    raw = out / "raw.parquet"
    likelihood.score(work, text, columns, None, found, raw, whole=m.name == BASE)
    tuning.settle(raw, out / "tokens.parquet", columns)
    raw.unlink()
    return costs(work, m, split)


def _facts(work: WorkDir, split: str, in_train: Callable[[], dict]) -> dict:
    e, text = work.experiment, Text.prepared(work, split)
    return {
        "name": e.name, "split": split, "chunk": e.model.reading.chunk,
        "neighbours": e.retrieval.neighbours, "filter_overlap": e.evaluate.filter_overlap,
        "violations": no_leaks(work, split, in_train),
        "documents": [{"id": d["id"], "metadata": d["metadata"]} for d in text.table.documents],
        "vocabulary": vocabulary(Prepared(work).tokenizer), "versions": provenance.versions(),
    }  # fmt: skip


def _compare(work: WorkDir, split: str, methods: list[Method], out: Path) -> dict:
    """Puts what the methods say beside each other."""
    parts = {m.name: pq.ParquetFile(work.scored(split, m.name) / "tokens.parquet") for m in methods}
    schema, file = parts[BASE].schema_arrow, out / "tokens.parquet"
    facts = json.loads(schema.metadata[b"retro_jax"]) | {"tuned": {}}
    facts["methods"] = {m.name: m.meaning for m in methods}
    said = {}
    for name, part in parts.items():
        facts["tuned"] |= json.loads(part.schema_arrow.metadata[b"retro_jax"])["tuned"]
        if name != BASE:
            columns = [n for n in part.schema_arrow.names if n.startswith("logp_")]
            said |= {n: part.read([n])[n].combine_chunks() for n in columns}
    schema = pa.schema(
        [*schema, *((n, pa.float32()) for n in said)], {"retro_jax": json.dumps(facts)}
    )
    # What any method read: so all have the same tokens that share little, or end no copy.
    shared = {n: _most(parts.values(), n) for n in ("copied", "overlap")}
    at = 0
    with pq.ParquetWriter(file, schema, **likelihood.WRITING) as writer:
        for batch in parts[BASE].iter_batches():
            now = slice(at, at + len(batch))
            arrays = [
                pa.array(shared[f.name][now]) if f.name in shared else batch[f.name]
                for f in parts[BASE].schema_arrow
            ]
            arrays += [column.slice(at, len(batch)) for column in said.values()]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
            at += len(batch)
    cost = {m.name: artefact.read(work.scored(split, m.name))["counts"] for m in methods}
    result = summary(rows.load(file), cost)
    files.write_json(out / "summary.json", result)
    return result


def _most(parts, name: str) -> np.ndarray:
    """The largest value of a column in any of the files."""
    return np.max([part.read([name])[name].to_numpy() for part in parts], axis=0)


def _condition(name: str, text: Text, method: Method):
    return CONDITIONS[name](name, text, method.fetches) if method.reads else None


def summary(found: rows.Rows, cost: dict[str, dict]) -> dict:
    """Of each method: bits per byte, what it gains over the language model, what its neighbours' content is worth,
    on all text, on what shares little with what was read, and on tokens that end no copy; help and harm; costs. pairs:
    bits per byte that the second is better than the first. where, passages: see where.py."""
    facts = found.facts
    clean = found.where(found["overlap"] < facts["filter_overlap"] * facts["chunk"])
    novel = found.where(found["copied"] == 0)
    out = {}
    for name in facts["methods"]:
        out[name] = {"reads": facts["methods"][name], **cost[name]}
        for part, of in (("all", found), ("filtered", clean), ("novel", novel)):
            out[name][part] = _figures(of, name) if len(of) else None
        if name != BASE:
            out[name]["harm"] = signals.harm(found, BASE, name)
    return {
        "methods": out,
        "documents": len(facts["documents"]),
        "tokens": len(found),
        "bytes": int(found["bytes"].sum()),
        "filtered_share_of_bytes": float(clean["bytes"].sum() / found["bytes"].sum()),
        "novel_share_of_bytes": float(novel["bytes"].sum() / found["bytes"].sum()),
        "violations": facts["violations"],
        "tuned": facts["tuned"],
        "pairs": {
            a: {b: signals.effect(found, a, b) for b in out if b != a} for a in out if a != BASE
        },
        "where": where(found, BASE, [n for n in out if n != BASE]),
        "passages": passages(found, list(out)),
    }


def _figures(found: rows.Rows, name: str) -> dict:
    random = f"{name} random"
    of = {"bits_per_byte": signals.bits_per_byte(found)[name]}
    if name != BASE:
        of["gain"] = signals.effect(found, BASE, name)
    if random in found.nats:
        of["content"] = signals.effect(found, random, name)
    return of
