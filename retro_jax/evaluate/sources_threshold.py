"""From when on a document is a sentence's source: `retro sources`.

Passages of another text, which a sentence cannot come from, are to be named for `FALSE` of all sentences.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from retro_jax import progress
from retro_jax.config import Request
from retro_jax.errors import UserError
from retro_jax.evaluate import sources
from retro_jax.evaluate.scorer import Scorer
from retro_jax.generate.chat import Chat, asks
from retro_jax.generate.generator import Generator
from retro_jax.methods.method import Method, method_of
from retro_jax.pipeline.prepare import check_prepared
from retro_jax.pipeline.prepared import Prepared
from retro_jax.store import files
from retro_jax.store.workdir import WorkDir
from retro_jax.train.restore import check_trained

FALSE = 0.05  # share of sentences for which another text's passages are named
LEAST = 40  # sentences that a threshold is set by: of fewer, a twentieth is one or none
LENGTH = 2048  # tokens of a question with its passages, and the answer
_TOKENS = 96  # of an answer, or of a held-out text
_PLACES = 8  # of a held-out document
_ROWS = 8


@dataclass
class _Example:
    """A text, and what was read for it."""

    asked: str  # a question, or a context
    text: str
    read: list[dict]
    document: str = ""  # that it is of


def calibrate(work: WorkDir, method: str = "retro", questions: Sequence[str] = ()) -> dict:
    """Sets from when on a document is a source; writes the working directory's sources/METHOD.json and returns what is
    in it.

    Of a model with a chat template that reads by its prompt, `questions` are answered; otherwise held-out documents are
    the texts. Their own passages, and those of another text, are left out one by one.

    Returns:
      threshold, nats; sentences; named: the share of them for which a passage of their own is; false: the share for
      which one of the other text is, by thresholds that were set on the other half of the texts; texts, chat, method.

    Raises:
      UserError: the method reads nothing, questions are missing, there are too few sentences, or a stage is missing.
    """
    check_prepared(work, only_live=True)
    of = method_of(work.experiment, method)
    check_trained(work, of)
    if not of.reads:
        raise UserError(f"--method={method}: reads nothing, so that nothing has a source")
    chat = is_chat(of, Prepared(work).tokenizer)
    if chat and not questions:
        raise UserError(
            "--questions: give a file of questions as people will ask them, one a line; their answers set the threshold"
        )
    if questions and not chat:
        raise UserError(f"--questions: {method} is judged by held-out documents; leave it out")
    with Generator.open(work, method, rows=_ROWS, length=LENGTH) as generator:
        examples = _answered(generator, questions) if chat else _held_out(work, generator)
        scorer = Scorer.beside(generator, rows=1 + of.k)
        own, other = [], []  # the largest nats of each sentence, by text
        with progress.bar("leaving out", len(examples)) as advance:
            for i, one in enumerate(examples):
                own.append(_largest(scorer, one, one.read, chat))
                other.append(_largest(scorer, one, _others(examples, i), chat))
                advance(1)
    told = _settled(own, other) | {"texts": len(examples), "chat": chat, "method": method}
    files.make_directory(work.sources(method).parent)
    files.write_json(work.sources(method), told)
    return told


def threshold(work: WorkDir, method: str) -> float | None:
    """What `calibrate` has set, nats; None if it has not."""
    file = work.sources(method)
    remedy = f"delete it, and run `retro sources {work.root} --method={method}` again"
    return files.read_json(file, remedy)["threshold"] if file.exists() else None


def is_chat(method: Method, tokenizer) -> bool:
    """Whether what a method reads are passages that stand before a question."""
    return bool(method.by_chunk and tokenizer.template)


def _answered(generator: Generator, questions: Sequence[str]) -> list[_Example]:
    """Answers, with the passages that stood before them."""
    chat = Chat(generator.tokenizer)
    made = [asks(generator, chat, [_message(q)], Request(q, tokens=_TOKENS)) for q in questions]
    with progress.bar("answering", len(questions) * _TOKENS) as advance:
        done = generator.generate_all([request for request, _ in made], advance)
    found = zip(questions, done, made)
    return [_Example(q, c.text, passages) for q, c, (_, passages) in found if c.text.strip()]


def _held_out(work: WorkDir, generator: Generator) -> list[_Example]:
    """What follows some chunks of held-out documents, with what those chunks find."""
    table, m = Prepared(work).table("heldout"), generator.model.reading.chunk
    long, examples = max(1, _TOKENS // m), []
    for d in table.documents:
        places = range(d["first"], d["first"] + d["chunks"] - long, 1 + long)
        for row in places[:_PLACES]:
            context, *rest = table.texts_of(generator.tokenizer, range(row, row + 1 + long))
            read = generator.retriever.search(context)
            examples.append(_Example(context, "".join(rest), read, d["id"]))
    return [one for one in examples if one.text.strip()]


def _message(question: str) -> dict:
    return {"role": "user", "content": question}


def _others(examples: list[_Example], i: int) -> list[dict]:
    """What another text read, the one that is half of all texts away or the next after it; of documents that this one
    read too, or is of, nothing."""
    own = {p["document"] for p in examples[i].read} | {examples[i].document}
    for step in range(len(examples)):
        one = examples[(i + len(examples) // 2 + step) % len(examples)]
        if found := [p for p in one.read if p["document"] not in own]:
            return found
    return []


def _largest(scorer: Scorer, one: _Example, read: list[dict], chat: bool) -> np.ndarray:
    """What the passage that was worth most was worth to each sentence, nats [S]."""
    spans = sources.sentences(one.text)
    if not read:
        return np.zeros(len(spans))
    if chat:
        prompts = sources.leaving_out(Chat(scorer.tokenizer), [_message(one.asked)], read)
        gains, ends = sources.gains_of_prompts(scorer, prompts, one.text)
    else:
        given = [p["text"] for p in read]
        gains, ends = sources.gains_of_neighbours(scorer, one.asked, one.text, given)
    return sources.worth(gains, ends, spans).max(axis=1)


def _settled(own: list[np.ndarray], other: list[np.ndarray]) -> dict:
    """The threshold, and what it names."""
    every = np.concatenate([np.zeros(0), *other])
    if len(every) < LEAST:
        raise UserError(
            f"{len(every)} sentences are too few to set a threshold by, it takes {LEAST}: give more questions, or hold "
            "out more documents (corpus.heldout)"
        )
    halves = [np.concatenate([np.zeros(0), *other[i::2]]) for i in (0, 1)]
    wrong = sum((b >= bound(a)).sum() for a, b in (halves, halves[::-1]))
    return {
        "threshold": bound(every),
        "sentences": len(every),
        "named": round(float((np.concatenate(own) >= bound(every)).mean()), 4),
        "false": round(float(wrong / len(every)), 4),
    }


def bound(nats: np.ndarray) -> float:
    """The least threshold that one more number like these [S] reaches with a probability of at most FALSE: just above
    the kth largest, k = FALSE (S + 1) (conformal prediction, Vovk et al. 2005). At least a thousandth of a nat."""
    if not len(nats):
        return 1e-3
    k = max(1, int(FALSE * (len(nats) + 1)))
    return max(1e-3, round(float(np.sort(nats)[-k]) + 1e-4, 4))
