"""Methods side by side: the same held-out tokens, the same neighbours, the same weights where two share them.

A token of a chunk is scored given what the chunk before it retrieved, by every method that reads; and once more
given random chunks of the database, which is what tells reading from a longer prompt. What a method can choose is
chosen on other documents (tuning.py). A comparison has tokens.parquet, with a column for each method and condition
(`rag`, `rag random`), and summary.json.
"""

import functools
from pathlib import Path

from retro_jax.config import Experiment
from retro_jax.config.fields import binding
from retro_jax.evaluate import likelihood, rows, signals, tuning
from retro_jax.evaluate.condition import CONDITIONS
from retro_jax.evaluate.evaluate import again, done, leaks_of, no_leaks, vocabulary
from retro_jax.evaluate.likelihood import Column
from retro_jax.evaluate.text import Text
from retro_jax.methods.method import METHODS, Method, method_of, to_train
from retro_jax.pipeline.prepare import check_prepared
from retro_jax.pipeline.prepared import Prepared
from retro_jax.pipeline.recipe import shard_splits
from retro_jax.store import artefact, files, provenance
from retro_jax.store.workdir import WorkDir
from retro_jax.train.log import step_flops
from retro_jax.train.restore import check_trained

BASE = "language_model"  # what every method is compared with


def chosen(e: Experiment, names: str | None) -> list[Method]:
    """The methods of a comparison, the language model first; by default all.

    names: with commas between them.

    Raises:
      UserError: there is none of this name, or its settings cannot work.
    """
    asked = names.split(",") if names else list(METHODS)
    return [method_of(e, name) for name in dict.fromkeys((BASE, *asked))]


def compare(work: WorkDir, methods: list[Method]) -> dict[str, dict]:
    """Scores every held-out split by every method; the manifests of the comparisons, by split.

    Raises:
      UserError: an earlier stage is missing, a method is not trained, the shards hold a leak, or another
        process compares here.
    """
    e = work.experiment
    check_prepared(work)
    for method in methods:
        check_trained(work, method)
        method.prepare(work)
    settings = binding(e.evaluate, "evaluate.") | {
        f"method_settings.{m.name}": dict(binding(m.settings, "")) for m in methods
    }
    results, splits = {}, shard_splits(e)[1:]
    once = functools.cache(lambda: leaks_of(work, "train"))  # the larger part
    for split in splits:
        out = work.compared(split)
        inputs = [work.prepared(f"shards/{s}") for s in ("train", split)]
        inputs += [work.trained(name) for name in dict.fromkeys(m.trained_as for m in methods)]
        results[split] = done(out, settings, inputs)
        if not results[split]:
            make = functools.partial(_compare, work, split, once, methods)
            with work.lock("compare"):
                results[split] = again(out, settings, inputs, make)
    return results


def _compare(work: WorkDir, split: str, in_train, methods: list[Method], out: Path) -> dict:
    e, text = work.experiment, Text.prepared(work, split)
    found = no_leaks(work, split, in_train)
    columns = []
    for m in methods:
        tuned = bool(m.choices())
        columns.append(Column(m.name, m, _condition("on", text, m), tuned))
        if m.reads or m.random is not m:
            random = _condition("random", text, m)
            columns.append(Column(f"{m.name} random", m.random, random, tuned))
    facts = {
        "name": e.name, "split": split, "chunk": e.model.reading.chunk,
        "neighbours": e.retrieval.neighbours, "filter_overlap": e.evaluate.filter_overlap,
        "methods": {m.name: m.meaning for m in methods}, "violations": found,
        "documents": [{"id": d["id"], "metadata": d["metadata"]} for d in text.table.documents],
        "vocabulary": vocabulary(Prepared(work).tokenizer), "versions": provenance.versions(),
    }  # fmt: skip
    raw, file = out / "raw.parquet", out / "tokens.parquet"
    likelihood.score(work, text, columns, None, facts, raw)
    tuning.settle(raw, file, columns)
    raw.unlink()
    result = summary(rows.load(file), {m.name: costs(work, m) for m in methods})
    files.write_json(out / "summary.json", result)
    return result


def _condition(name: str, text: Text, method: Method):
    return CONDITIONS[name](name, text, method.k) if method.reads else None


def costs(work: WorkDir, method: Method) -> dict:
    """What a method takes: GFLOPs a token of a window of held-out text, forward; parameters, and FLOPs of training
    (`log.step_flops`), those of the weights that it began with included."""
    e, vocab = work.experiment, Prepared(work).tokenizer.vocab
    training = 0
    for trained in to_train(e, [method]):
        counts = artefact.read(work.trained(trained.name))["counts"]
        training += counts["steps"] * step_flops(trained, e.train, vocab)
    return {
        "gflops_per_token": method.flops(vocab, e.train.length) / e.train.length / 1e9,
        "parameters": counts["parameters"],
        "training_flops": training,
    }


def summary(found: rows.Rows, cost: dict[str, dict]) -> dict:
    """Of each method: bits per byte, what it gains over the language model, what its neighbours' content is worth,
    on all text, on what shares little with what was read, and on tokens that end no copy; help and harm; costs."""
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
    }


def _figures(found: rows.Rows, name: str) -> dict:
    random = f"{name} random"
    of = {"bits_per_byte": signals.bits_per_byte(found)[name]}
    if name != BASE:
        of["gain"] = signals.effect(found, BASE, name)
    if random in found.nats:
        of["content"] = signals.effect(found, random, name)
    return of
