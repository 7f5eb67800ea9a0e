"""`retro evaluate --task=KIND:FILE`: last words, multiple choice and open questions, with and without
retrieval.

The working directory's evaluate/tasks/NAME.json has the figures, and of every item its result and what was read for it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.table import Table

from retro_jax import progress
from retro_jax.config import Request
from retro_jax.errors import UserError
from retro_jax.evaluate import items, metrics
from retro_jax.evaluate.items import Item
from retro_jax.evaluate.score import Pair, Score
from retro_jax.evaluate.scorer import Scorer
from retro_jax.evaluate.vote import vote as votes
from retro_jax.generate.generator import Generator
from retro_jax.methods.method import Method, method_of
from retro_jax.pipeline.prepare import check_prepared
from retro_jax.pipeline.prepared import Prepared
from retro_jax.store import files, provenance
from retro_jax.store.workdir import WorkDir
from retro_jax.terminal import Terminal
from retro_jax.train.restore import check_trained

RUN = 13  # tokens that an item shares with what was read for it: then it was seen
METRICS = {
    "lambada": {
        "accuracy": ("correct", metrics.mean),
        "log p": ("logp", metrics.mean),
        "perplexity": ("logp", metrics.perplexity),
    },
    "choice": {"accuracy": ("correct", metrics.mean), "by bytes": ("correct_by_bytes", metrics.mean)},
    "qa": {
        "exact match": ("exact_match", metrics.mean),
        "F1": ("f1", metrics.mean),
        "log p of the answer": ("gold_logp", metrics.mean),
    },
}  # fmt: skip
_ANSWER = 32  # tokens at most
_ROWS = 8  # questions that are answered together
_BLOCK = 4  # times as many are given at a time


@dataclass
class Answer:
    """The result of an item under one condition: its values by name, what was read for it, {"document", ..}
    of each neighbour, and whether that holds the item or its answer."""

    values: dict
    read: list[dict] = field(default_factory=list)
    seen: bool = False


def run(
    work: WorkDir, task: str, limit: int | None = None, k: int | None = None, align: bool = False,
    name: str | None = None, databases: Sequence[str] = ("prepared",), method: str = "retro",
    vote: bool = False,
) -> dict:  # fmt: skip
    """Scores a task with retrieval and without; writes the working directory's evaluate/tasks/NAME.json and
    returns what is in it.

    Args:
      task: KIND:FILE, see `items`. limit: items, from the first one on.
      k: neighbours of a chunk; by default as in training, 0 to run without retrieval only.
      align: padding before the context, so that a chunk ends where it does; qa always has it.
      name: by default the file's name without its endings. databases: what is searched.
      method: the name of the method that answers. vote: REPLUG's vote over answers, see vote.py.

    Raises:
      UserError: an earlier stage is missing, or bad input; nothing is written.
    """
    e = work.experiment
    kind, file = items.parse(task)
    name = Path(file).name.partition(".")[0] if name is None else name
    for flag, value, ok, must in (
        ("limit", limit, limit is None or limit > 0, "must be at least 1"),
        ("k", k, k is None or k >= 0, "must be a number of neighbours, or 0 for none"),
        ("name", name, name and Path(name).name == name, "must be the name of a file"),
    ):
        if not ok:
            raise UserError(f"--{flag}={value}: {must}")
    if vote and (kind, method) != ("qa", "replug"):
        raise UserError("--vote is for --task=qa:FILE with --method=replug")
    found = items.read(kind, file, limit)
    check_prepared(work, only_live=True)
    of = method_of(e, method)
    check_trained(work, of)
    if k and not of.reads:
        raise UserError(f"--k={k}: {method} reads nothing; leave it out")
    k = of.k if k is None else k
    conditions = {"on": k, "off": 0} if k else {"off": 0}
    answers = _ask(work, of, found, conditions, databases, vote) if kind == "qa" else None
    if not answers:
        scorer = Scorer.open(work, method, align=align, databases=databases)
        answers = {c: judge(kind, scorer, found, n) for c, n in conditions.items()}
    result = {
        "task": kind,
        "method": method,
        "file": file,
        "items": len(found),
        "k": k,
        "align": align or kind == "qa",
        "vote": vote,
        "databases": list(databases),
        "checkpoint": e.evaluate.checkpoint,
        **figures(kind, answers),
        "versions": provenance.versions(),
        "results": [_record(item, answers, i) for i, item in enumerate(found)],
    }
    out = work.task(name)
    files.make_directory(out.parent)
    files.write_json(out, result)
    show(result, out)
    return result


def judge(kind: str, scorer: Scorer, found: Sequence[Item], k: int) -> list[Answer]:
    """The answers to items of lambada or choice: by the likelihood of what may follow."""
    pairs = [Pair(item.context, target) for item in found for target in item.targets]
    scores, answers = iter(scorer.score(pairs, k)), []
    for item in found:
        own = [next(scores) for _ in item.targets]
        values = _last_word(own[0]) if kind == "lambada" else _chosen(item, own)
        ids = np.concatenate([s.ids for s in own]) if k else np.zeros((0, 0), np.int64)
        seen = _shares_run(scorer, item.context + item.targets[item.answer], ids)
        answers.append(Answer(values, _read(scorer, own), seen))
    return answers


def _last_word(score: Score) -> dict:
    return {"logp": score.logp, "correct": float(score.greedy), "tokens": score.tokens}


def _chosen(item: Item, scores: list[Score]) -> dict:
    logps = np.array([s.logp for s in scores])
    sizes = np.array([len(t[1:].encode()) for t in item.targets])  # the space is no choice's own
    best, by_bytes = int(logps.argmax()), int((logps / sizes).argmax())
    return {
        "logp": logps.tolist(), "chosen": best, "chosen_by_bytes": by_bytes,
        "correct": float(best == item.answer), "correct_by_bytes": float(by_bytes == item.answer),
    }  # fmt: skip


def _shares_run(scorer: Scorer, text: str, ids: np.ndarray) -> bool:
    own = metrics.grams(scorer.tokenizer.encode(text), RUN)
    read = scorer.retriever.values(np.unique(ids[ids >= 0])).tolist()
    return any(own & metrics.grams(tokens, RUN) for tokens in read)


def _read(scorer: Scorer, scores: list[Score]) -> list[dict]:
    """Where what was read for an item is from, each chunk once."""
    found = {
        int(id): round(float(d), 4)
        for s in scores for id, d in zip(s.ids.flat, s.distances.flat) if id >= 0
    }  # fmt: skip
    return [_short(scorer.retriever.source_of(id)) | {"distance": d} for id, d in found.items()]


def _short(source: dict) -> dict:
    return {name: source[name] for name in ("database", "document", "chunk")}


def _ask(
    work: WorkDir, method: Method, found, conditions, databases, vote: bool
) -> dict[str, list[Answer]]:
    """The answers to questions under each condition, as the model writes them, to the end of the line."""
    requests = {
        c: [
            Request(i.context, _ANSWER, stop=("\n",), k=k, align=True, databases=tuple(databases))
            for i in found
        ]
        for c, k in conditions.items()
    }
    tokenizer, first = Prepared(work).tokenizer, next(iter(requests.values()))
    length = max(r.room(1 + len(tokenizer.encode(r.prompt)), method.model) for r in first)
    sizes = {"rows": _ROWS, "length": length, "k": max(conditions.values())}
    with Generator.open(work, method.name, **sizes) as generator:
        answers = {c: answer(generator, found, requests[c], c) for c in conditions}
    if vote and "on" in answers:
        with Generator.open(work, "rag", **sizes) as generator:
            texts = votes(generator, requests["on"], method.settings.temperature)
        for item, text, given in zip(found, texts, answers["on"]):
            given.values |= _right(text, item)
    scorer = Scorer.open(work, method.name, align=True, databases=databases)
    for c, k in conditions.items():
        for given, logp in zip(answers[c], gold(scorer, found, k)):
            given.values["gold_logp"] = logp
    return answers


def gold(scorer: Scorer, found: Sequence[Item], k: int) -> list[float]:
    """log p of the accepted answer that is most probable, of each question, nats: it moves in models that are too small
    for exact matches."""
    pairs = [Pair(item.context, f" {target}") for item in found for target in item.targets]
    scores = iter(scorer.score(pairs, k))
    return [max(next(scores).logp for _ in item.targets) for item in found]


def answer(
    generator: Generator, found: Sequence[Item], requests: Sequence[Request], condition: str
) -> list[Answer]:
    """What a generator writes to questions."""
    answers = []
    with progress.bar(f"answering, retrieval {condition}", len(found)) as advance:
        for begin in range(0, len(found), _BLOCK * _ROWS):
            block = slice(begin, begin + _BLOCK * _ROWS)
            done = generator.generate_all(requests[block])
            for item, completion in zip(found[block], done):
                if completion.retrieval != condition and condition == "on":
                    raise RuntimeError(f"line {item.line}: retrieval {completion.retrieval}")
                read = [n for chunk in completion.chunks for n in chunk["neighbours"]]
                sources = [_short(n) | {"distance": n["distance"]} for n in read]
                seen = any(metrics.mentions(n["text"], item.targets) for n in read)
                answers.append(Answer(_right(completion.text.strip(), item), sources, seen))
            advance(len(done))
    return answers


def _right(text: str, item: Item) -> dict:
    """An answer, and how right it is."""
    return {
        "text": text,
        "exact_match": metrics.exact_match(text, item.targets),
        "f1": metrics.f1(text, item.targets),
    }


def figures(kind: str, answers: dict[str, list[Answer]]) -> dict:
    """What the answers {condition: [N]} are worth.

    Returns:
      seen: items that were seen in what was read for them. read_nothing: items for which nothing was.
      empty: of qa, how many answers are, by condition.
      all and unseen: {metric: {condition: value, low, high}}, see `metrics.compare`; unseen is of the items
      that were not seen, None if there are none.
    """
    read = answers.get("on", answers["off"])
    seen = np.array([a.seen for a in read])

    empty = (
        {c: sum(not a.values["text"] for a in given) for c, given in answers.items()}
        if kind == "qa"
        else {}
    )

    def of(keep: np.ndarray) -> dict | None:
        if not keep.any():
            return None
        return {
            metric: metrics.compare(
                {c: np.array([a.values[value] for a in given])[keep] for c, given in answers.items()},
                average,
            )
            for metric, (value, average) in METRICS[kind].items()
        }  # fmt: skip

    return {
        "seen": int(seen.sum()),
        "read_nothing": sum(not a.read for a in read),
        **({"empty": empty} if empty else {}),
        "all": of(np.ones(len(seen), bool)),
        "unseen": of(~seen),
    }


def _record(item: Item, answers: dict[str, list[Answer]], i: int) -> dict:
    read = answers.get("on", answers["off"])[i]
    values = {c: given[i].values for c, given in answers.items()}
    return {"line": item.line, **values, "seen": read.seen, "read": read.read}


def show(result: dict, file: Path):
    """The figures as a table."""
    seen, count, out = result["seen"], result["items"], Terminal()
    table = Table(title=f"{result['task']}, {count} items: {result['file']}", title_justify="left")
    names = {"on": f"on, k = {result['k']}", "off": "off", "difference": "on - off"}
    columns = list(next(iter(result["all"].values())))
    table.add_column("metric")
    for column in columns:
        table.add_column(names[column], justify="right")
    for of, label in (("all", f"of all {count}"), ("unseen", f"of {count - seen} unseen")):
        for metric, values in (result[of] or {}).items():
            cells = [cell(values[c], "+" if c == "difference" else "") for c in columns]
            table.add_row(f"{metric}\n{label}", *cells)
    out.print(table)
    what = "the answer" if result["task"] == "qa" else f"{RUN} tokens or more in a row"
    for line in (
        f"seen: {seen} of {count} items have {what} in what was read for them",
        f"for {result['read_nothing']} items nothing was read",
        *(f"{n} answers are empty, retrieval {c}" for c, n in result.get("empty", {}).items()),
        f"[ ]: 95 % interval, bootstrap over items; written to {file}",
    ):
        out.print(line, markup=False, soft_wrap=True)


def cell(x: dict, sign: str) -> str:
    """A value and its interval; sign: "+" for a difference."""
    most = max(abs(v) for v in x.values())
    style = ".4f" if most < 10 else ".2f" if most < 1000 else ".2e"
    value, low, high = (f"{x[n]:{sign}{style}}" for n in ("value", "low", "high"))
    return f"{value}\n\\[{low}, {high}]"
