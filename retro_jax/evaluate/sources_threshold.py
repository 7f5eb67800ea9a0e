"""From when on a document is a sentence's source: `retro sources`.

A text is scored as if it had read what another text reads, from which it cannot come: one of these passages is to be
named for `FALSE` of all sentences.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from retro_jax import progress
from retro_jax.config import Request
from retro_jax.errors import UserError
from retro_jax.evaluate import sources
from retro_jax.evaluate.scorer import Scorer
from retro_jax.generate.chat import Chat
from retro_jax.generate.generator import Generator
from retro_jax.methods.method import Method, method_of
from retro_jax.pipeline.prepare import check_prepared
from retro_jax.pipeline.prepared import Prepared
from retro_jax.pipeline.recipe import heldout_splits
from retro_jax.store import artefact, files
from retro_jax.store.workdir import WorkDir
from retro_jax.train.restore import check_trained

FALSE = 0.05  # share of sentences for which a passage of another text is named
LEAST = 40  # sentences that a threshold is set by: of fewer, a twentieth is one or none
LENGTH = 2048  # tokens of a question with its passages, and the answer
_TOKENS = 96  # that are generated
_PLACES = 8  # of a held-out document
_ROWS = 8


class Threshold(NamedTuple):
    """From how many nats on a document is a sentence's source, where k of them were read."""

    nats: float
    k: int


class _Asked(NamedTuple):
    """What is to be answered, or continued, and what is read for it."""

    text: str
    document: str  # that it is of; of a question none
    own: list[dict]
    others: list[dict]  # what another text reads


class _Found(NamedTuple):
    """Of each sentence [S] what the passage was worth that was worth most, nats."""

    own: np.ndarray
    others: np.ndarray


def calibrate(work: WorkDir, method: str = "retro", questions: Sequence[str] = ()) -> dict:
    """Sets from when on a document is a source; writes the working directory's sources/METHOD.json and returns what is
    in it.

    Of a model with a chat template that reads by its prompt, `questions` are answered; otherwise held-out documents are
    continued, with what they find. Then each is scored with as many passages of another text instead.

    Returns:
      threshold, nats; sentences; named: the share of them for which one of their own passages is; false: the share for
      which one of the others is, by thresholds that were set on the other half of the texts (of a document's places
      all are in one half); texts, chat, method, k, how many are read, and `of`, which tells the weights apart.

    Raises:
      UserError: the method reads nothing, questions are missing, there are too few sentences, or a stage is missing.
    """
    check_prepared(work, only_live=True)
    of = method_of(work.experiment, method)
    made_of = _made_of(work, of)
    if not of.reads:
        raise UserError(f"--method={method}: reads nothing, so that nothing has a source")
    chat = is_chat(of, Prepared(work).tokenizer)
    if chat and not questions:
        raise UserError(
            "--questions: give a file of questions as people will ask them, one a line; their answers set the threshold"
        )
    if questions and not chat:
        raise UserError(f"--questions: {method} is judged by held-out documents; leave it out")
    if not chat:
        heldout_splits(work.experiment, own=True)  # or nothing is there to be continued
    # What is left out takes a row where it is no part of a prompt.
    rows = _ROWS if chat else 2 * (1 + of.k)
    with Generator.open(work, method, length=LENGTH, rows=rows) as generator:
        texts = [(q, "") for q in questions] if chat else _held_out(work, generator)
        asked = _asked(generator, texts)
        if not asked and len(texts) > 1:
            raise UserError(
                f"all {len(texts)} texts find the same documents, and there are no passages of others to compare with: "
                "ask about different things, of which there are documents"
            )
        found = _answered(generator, asked) if chat else _continued(generator, asked)
        halves = _halves(asked, found)
    told = _settled(*halves) | {"texts": len(asked), "chat": chat, "method": method}
    told |= {"k": of.k, "of": made_of}
    files.make_directory(work.sources(method).parent)
    files.write_json(work.sources(method), told)
    return told


def threshold(work: WorkDir, method: str) -> Threshold | None:
    """What `calibrate` has set; None if it has not, or for other weights.

    Raises:
      UserError: it is damaged, or of another version.
    """
    file = work.sources(method)
    if not file.exists():
        return None
    again = f"delete it, and run `retro sources {work.root}` again"
    told = files.read_json(file, again)
    if missing := {"threshold", "k", "of"} - told.keys():
        raise UserError(f"{file}: it has no {missing.pop()!r}, as of another version; {again}")
    same = told["of"] == _made_of(work, method_of(work.experiment, method))
    return Threshold(told["threshold"], told["k"]) if same else None


def is_chat(method: Method, tokenizer) -> bool:
    """Whether what a method reads are passages that stand before a question."""
    return bool(method.by_chunk and tokenizer.template)


def _made_of(work: WorkDir, method: Method) -> str:
    """What tells the weights of a method apart."""
    return artefact.fingerprint(check_trained(work, method))


def _held_out(work: WorkDir, generator: Generator) -> list[tuple[str, str]]:
    """Some chunks of held-out documents, and whose they are."""
    table, found = Prepared(work).table("heldout"), []
    for d in table.documents:
        every = max(1, d["chunks"] // _PLACES)
        rows = range(d["first"], d["first"] + d["chunks"], every)[:_PLACES]
        found += [(text, d["id"]) for text in table.texts_of(generator.tokenizer, rows)]
    return [(text, document) for text, document in found if text.strip()]


def _asked(generator: Generator, texts: list[tuple[str, str]]) -> list[_Asked]:
    """Texts, with what they find, and as many of what others find; those of which either is missing are left out."""
    read = [generator.retriever.search(text) for text, _ in texts]
    made = []
    for i, (text, document) in enumerate(texts):
        own = {p["document"] for p in read[i]} | {document}
        far = [(i + len(texts) // 2 + step) % len(texts) for step in range(len(texts))]
        others = [p for j in far for p in read[j] if p["document"] not in own]
        different = list({(p["document"], p["chunk"]): p for p in others}.values())
        if read[i] and len(different) >= len(read[i]):
            made.append(_Asked(text, document, read[i], different[: len(read[i])]))
    return made


def _answered(generator: Generator, asked: list[_Asked]) -> Iterator[_Found]:
    """Of the answers to questions, what is lost without each passage that stood before, and what would be without each
    of the others, if those had stood there."""
    chat, requests = Chat(generator.tokenizer), []
    for one in asked:
        prompt = chat.prompt(_messages(one), one.own)
        requests.append(Request(prompt, _TOKENS, k=0, special_tokens=True))
        try:
            generator.check(requests[-1])
        except UserError as error:
            raise UserError(f"--questions: {one.text[:60]!r}: {error}") from error
    with progress.bar("answering", len(asked) * _TOKENS) as advance:
        done = generator.generate_all(requests, advance)
    scorer = Scorer.beside(generator, rows=1 + generator.k)
    with progress.bar("leaving out", len(asked)) as advance:
        for one, c in zip(asked, done):
            found = []
            for read in (one.own, one.others):
                prompts = sources.leaving_out(chat, _messages(one), read)
                found.append(_greatest(c.text, *sources.gains_of_prompts(scorer, prompts, c.text)))
            yield _Found(*found)
            advance(1)


def _continued(generator: Generator, asked: list[_Asked]) -> Iterator[_Found]:
    """Of continuations, what the neighbours contributed that all their chunks read, and what the others would have."""
    own = [tuple(p["text"] for p in one.own) for one in asked]
    requests = [
        Request(one.text, _TOKENS, neighbours=texts, contributions=True)
        for one, texts in zip(asked, own)
    ]
    with progress.bar("continuing", len(asked) * _TOKENS) as advance:
        done = generator.generate_all(requests, advance)
    scorer = Scorer.beside(generator)
    with progress.bar("leaving out", len(asked)) as advance:
        for one, c in zip(asked, done):
            gains, _ = sources.gains_of_completion(c)
            others = [p["text"] for p in one.others]
            found = sources.gains_of_neighbours(scorer, one.text, c.text, others)
            yield _Found(_greatest(c.text, gains, c.ends), _greatest(c.text, *found))
            advance(1)


def _messages(one: _Asked) -> list[dict]:
    return [{"role": "user", "content": one.text}]


def _greatest(text: str, gains: np.ndarray, ends: Sequence[int]) -> np.ndarray:
    return sources.worth(gains, ends, sources.sentences(text)).max(axis=1, initial=0)


def _halves(asked: list[_Asked], found: Iterator[_Found]) -> tuple[list[_Found], list[_Found]]:
    """What was found, every other text in one half; those of one document together."""
    halves, places = ([], []), {}
    for one, nats in zip(asked, found):
        place = places.setdefault(one.document or one.text, len(places))
        halves[place % 2].append(nats)
    return halves


def _settled(*halves: list[_Found]) -> dict:
    """The threshold, and what it names."""
    none = [_Found(np.zeros(0), np.zeros(0))]
    own = np.concatenate([x.own for half in (none, *halves) for x in half])
    others = [np.concatenate([x.others for x in none + half]) for half in halves]
    every = np.concatenate(others)
    if len(every) < LEAST:
        raise UserError(
            f"{len(every)} sentences are too few to set a threshold by, it takes {LEAST}: give more questions, about "
            "different documents (of a method without questions: hold out more documents, corpus.heldout)"
        )
    wrong = sum((b >= bound(a)).sum() for a, b in (others, others[::-1]))
    return {
        "threshold": bound(every),
        "sentences": len(every),
        "named": round(float((own >= bound(every)).mean()), 4),
        "false": round(float(wrong / len(every)), 4),
    }


def bound(nats: np.ndarray) -> float:
    """The least threshold that one more number like these [S] reaches with a probability of at most FALSE: just above
    the kth largest, k = FALSE (S + 1) (conformal prediction, Vovk et al. 2005). At least a thousandth of a nat."""
    if not len(nats):
        return 1e-3
    k = max(1, int(FALSE * (len(nats) + 1)))
    return max(1e-3, round(float(np.sort(nats)[-k]) + 1e-4, 4))
