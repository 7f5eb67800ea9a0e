"""Methods side by side: the same held-out tokens, the same neighbours, the same weights where two share them.

A token of a chunk is scored given what the chunk before it retrieved, by every method that reads; and once more
given random chunks of the database, which is what tells reading from a longer prompt. What a method can choose is
chosen on other documents (tuning.py). A comparison has tokens.parquet, with a column for each method and condition
(`rag`, `rag random`), and summary.json.
"""

import copy
import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

from retro_jax import progress
from retro_jax.config import Experiment
from retro_jax.config.fields import binding
from retro_jax.errors import UserError
from retro_jax.evaluate import beside, likelihood, tuning
from retro_jax.evaluate.beside import BASE
from retro_jax.evaluate.condition import CONDITIONS
from retro_jax.evaluate.costs import costs
from retro_jax.evaluate.evaluate import again, done, leaks_of, no_leaks, put_back, vocabulary
from retro_jax.evaluate.likelihood import Column
from retro_jax.evaluate.text import Text
from retro_jax.methods.method import METHODS, Method, method_of
from retro_jax.pipeline.prepare import check_prepared
from retro_jax.pipeline.prepared import Prepared
from retro_jax.pipeline.recipe import heldout_splits, shard_splits
from retro_jax.store import artefact, provenance
from retro_jax.store.workdir import WorkDir
from retro_jax.train.restore import check_trained

ALL = "all"  # of --methods


def chosen(e: Experiment, names: str | None) -> list[Method]:
    """The methods of a comparison, the language model first; by default those that this experiment can have, but for
    variants of others.

    names: with commas between them; `all` for all.

    Raises:
      UserError: there is none of this name, its settings cannot work, or methods have unequal budgets.
    """
    methods, named = [], names.split(",") if names not in (None, ALL) else None
    usual = [n for n in METHODS if names == ALL or not METHODS[n].variant_of]
    for name in dict.fromkeys((BASE, *(named or usual))):
        try:
            methods.append(method_of(e, name))
        except UserError as error:
            if named:
                raise
            progress.say(f"{name} is left out: {error}")
    budgets = {m.name: m.settings.budget for m in methods if hasattr(m.settings, "budget")}
    if len(set(budgets.values())) > 1:
        said = ", ".join(f"method_settings.{n}.budget = {b}" for n, b in budgets.items())
        raise UserError(f"{said}: only methods of one budget can be compared; give all the same")
    return methods


def last(work: WorkDir) -> dict:
    """The settings of the last comparison of a working directory, `methods` and `seeds`; {} if there is none."""
    for split in shard_splits(work.experiment)[1:]:
        if made := artefact.read(work.compared(split)):
            return made["settings"]
    return {}


def documents(work: WorkDir) -> dict[str, int]:
    """How many documents each held-out split has.

    Raises:
      UserError: there is none, or nothing is prepared.
    """
    splits, prepared = heldout_splits(work.experiment), check_prepared(work)
    return {s: prepared[f"chunks/{s}"]["counts"]["documents"] for s in splits}


def fewer_of(e: Experiment, text: str | None) -> tuple[int, ...] | None:
    """Numbers of neighbours, with commas between them; None without any.

    Raises:
      UserError: one is not below the number that was prepared.
    """
    if text is None:
        return None
    most, words = e.retrieval.neighbours, text.split(",")
    for word in words:
        if not (word.isdecimal() and 0 < int(word) < most):
            raise UserError(
                f"--k={text}: must be numbers above 0 and below config field retrieval.neighbours = {most}"
            )
    return tuple(dict.fromkeys(map(int, words)))


def compare(
    work: WorkDir, methods: list[Method], seeds: int = 1, fewer: tuple[int, ...] | None = None
) -> dict[str, dict]:
    """Scores every held-out split by every method; the manifests of the comparisons, by split. What a method said
    is kept, and not asked again when others are added.

    seeds: trainings of every method (`WorkDir.seeded`). fewer: numbers of neighbours, below the prepared one, with
    which methods are scored too; None: those with which they were.

    Raises:
      UserError: nothing is held out, an earlier stage is missing, a method is not trained, the shards hold a leak, or
        another process compares here.
    """
    e, works = work.experiment, [work.seeded(s) for s in range(seeds)]
    results, splits = {}, heldout_splits(e)
    check_prepared(work)
    for one in works:
        for method in methods:
            check_trained(one, method)
    once = functools.cache(lambda: leaks_of(work, "train"))  # the larger part
    with work.lock("compare"), work.reading():
        for split in splits:
            facts = functools.cache(functools.partial(_facts, work, split, once))
            parts = {
                m.name: [_scored(one, split, facts, m, fewer, one is work) for one in works]
                for m in methods
            }
            out, every = work.compared(split), [path for paths in parts.values() for path in paths]
            settings = {"methods": [m.name for m in methods], "seeds": seeds}
            results[split] = done(out, settings, every)
            if not results[split]:
                meanings = {m.name: m.meaning for m in methods}
                make = functools.partial(beside.join, parts, meanings)
                results[split] = again(out, settings, every, make)
    return results


def scored_alone(work: WorkDir, method: Method) -> dict[str, Path]:
    """Where what one trained method says of each held-out split is; made if it is not there, without its costs.

    Raises:
      UserError: as `compare`.
    """
    splits = heldout_splits(work.experiment)
    check_prepared(work)
    check_trained(work, method)
    once, found = functools.cache(lambda: leaks_of(work, "train")), {}
    with work.lock("compare"), work.reading():
        for split in splits:
            facts = functools.cache(functools.partial(_facts, work, split, once))
            found[split] = _scored(work, split, facts, method, None, False)
    return found


def _scored(
    work: WorkDir, split: str, facts: Callable, method: Method, asked: tuple | None, first: bool
) -> Path:
    """Where what a method says of a split is, made if it is not there. first: whether it is of the first seed, which
    alone is asked for costs and for fewer neighbours."""
    e, out = work.experiment, work.scored(split, method.name)
    put_back(out)
    if asked is None:
        asked = (artefact.read(out) or {"settings": {}})["settings"].get("fewer", ())
    possible = first and method.look_ups and method.fetches == e.retrieval.neighbours
    fewer = tuple(k for k in asked if possible)
    settings = binding(e.evaluate, "evaluate.") | {
        f"method_settings.{method.name}": dict(binding(method.settings, "")),
        "choices": [dict(binding(c, "")) for c in method.choices()],
        "fewer": list(fewer),
    }
    inputs = [work.prepared(f"shards/{s}") for s in ("train", split)]
    inputs.append(work.trained(method.trained_as))
    if not done(out, settings, inputs):
        # A copy: what it makes in advance is of one training.
        make = functools.partial(_score, work, split, facts, copy.copy(method), fewer, first)
        again(out, settings, inputs, make)
    return out


def _score(
    work: WorkDir,
    split: str,
    facts: Callable,
    m: Method,
    fewer: tuple[int, ...],
    first: bool,
    out: Path,
) -> dict:
    found, text = facts(), Text.prepared(work, split)
    m.prepare(work)
    if own := m.neighbours(work, text.queries, text.table):
        text = text.retrieving(work.experiment, *own)
    tuned = bool(m.choices())
    columns = [Column(m.name, m, _condition("on", text, m), tuned)]
    if m.reads or m.random is not m:
        random = _condition("random", text, m)
        columns.append(Column(f"{m.name} random", m.random, random, tuned))
    for k in fewer:
        condition = CONDITIONS["fewer"](f"k{k}", text, m.fetches)
        columns.append(Column(f"{m.name} k={k}", m, condition, tuned))
    raw = out / "raw.parquet"
    likelihood.score(work, text, columns, found, raw, whole=m.name == BASE)
    tuning.settle(raw, out / "tokens.parquet", columns)
    raw.unlink()
    if not first:
        return {}
    cost = costs(work, m, split)
    for k in fewer:
        e = work.experiment
        asked = dataclasses.replace(e.retrieval, neighbours=k)
        other = method_of(dataclasses.replace(e, retrieval=asked), m.name)
        cost[f"k={k}"] = costs(work, other, split)
    return cost


def _facts(work: WorkDir, split: str, in_train: Callable[[], tuple[dict, dict]]) -> dict:
    e, text = work.experiment, Text.prepared(work, split)
    return {
        "name": e.name, "split": split, "chunk": e.model.reading.chunk,
        "neighbours": e.retrieval.neighbours, "filter_overlap": e.evaluate.filter_overlap,
        **no_leaks(work, split, in_train),
        "documents": [{"id": d["id"], "metadata": d["metadata"]} for d in text.table.documents],
        "vocabulary": vocabulary(Prepared(work).tokenizer), "versions": provenance.versions(),
    }  # fmt: skip


def _condition(name: str, text: Text, method: Method):
    return CONDITIONS[name](name, text, method.fetches) if method.reads else None
