"""Which documents a sentence comes from: without which it would have been less probable.

    T tokens of a text, K neighbours or passages that were read for it, S sentences

A text becomes a little more or less probable with whatever is read. So a document is named only from a threshold on:
that from which passages that have nothing to do with the text are named for few sentences (sources_threshold.py).
"""

import re
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from retro_jax.evaluate.score import Pair, Score
from retro_jax.evaluate.scorer import Scorer
from retro_jax.generate.chat import Chat
from retro_jax.generate.completion import Completion
from retro_jax.generate.detokenize import Text

TOLD = ("database", "document", "chunk", "offset")  # of a source
_ENDS = re.compile(r"""[.!?]["'”’)\]]*(?P<a>\s+)|(?P<b>(?<!\s)\s*\n\s*)""")


def sentences(text: str) -> list[tuple[int, int]]:
    """Where the sentences of a text begin and end, white space between them left out. A line's end ends one; what has
    no letter, such as the number of a list's item, belongs to the next one, and at the end to the last one."""
    found = (f.span("a" if f["a"] else "b") for f in _ENDS.finditer(text))
    cuts = [(0, 0), *found, (len(text), len(text))]
    spans, first = [], None  # where what has no letter yet begins
    for (_, begin), (end, _) in pairwise(cuts):
        if begin == end:
            continue
        first = begin if first is None else first
        if any(map(str.isalpha, text[begin:end])):
            spans.append((first, end))
            first = None
    if first is not None and text[first:].strip():
        begin = spans.pop()[0] if spans else first
        spans.append((begin, len(text.rstrip())))
    return spans


def worth(gains: np.ndarray, ends: Sequence[int], spans: Sequence[tuple[int, int]]) -> np.ndarray:
    """What each neighbour was worth to each sentence, nats [S, K]: the sum over its tokens, and those of the white
    space after it.

    Args:
      gains: of each token log p less log p without a neighbour, nats [T, K].
      ends: characters of the text after each token [T]. spans: of `sentences`.
    """
    nats = np.zeros((len(spans), gains.shape[1]))
    if spans:
        begins = [begin for begin, _ in spans[1:]]
        np.add.at(nats, np.searchsorted(begins, np.asarray(ends) - 1, side="right"), gains)
    return nats


def tell(text: str, gains, ends, read: Sequence[dict], threshold: float) -> list[dict]:
    """The sentences of a text, each with its sources.

    Args:
      gains, ends: see `worth`. read: of each of the K its source: what TOLD names, or given, the number of a text that
        was given.

    Returns:
      Of each sentence begin and end, in characters, and sources: those that were worth `threshold` or more, with nats,
      the greatest first.
    """
    spans, told = sentences(text), []
    for (begin, end), nats in zip(spans, worth(gains, ends, spans)):
        named = np.flatnonzero(nats >= threshold)
        sources = [
            {n: read[i][n] for n in (*TOLD, "given") if n in read[i]}
            | {"nats": round(float(nats[i]), 4)}
            for i in sorted(named, key=lambda i: -nats[i])
        ]
        told.append({"begin": begin, "end": end, "sources": sources})
    return told


def gains_of_completion(c: Completion) -> tuple[np.ndarray, list[dict]]:
    """Gains (see `worth`) of a continuation, by the contributions of what its chunks read, and of each of the K, which
    are different, what is told of it."""
    places, read = {}, []
    for n in (n for chunk in c.chunks for n in chunk["neighbours"]):
        if places.setdefault(_key(n), len(read)) == len(read):
            read.append(n)
    gains = np.zeros((len(c.tokens), len(read)))
    for chunk in c.chunks:
        begin = max(chunk["begin"], c.first) - c.first
        for n in chunk["neighbours"]:
            found = n.get("contributions", [])
            gains[begin : begin + len(found), places[_key(n)]] += found
    return gains, read


def _key(neighbour: dict) -> tuple:
    return tuple(neighbour.get(name) for name in (*TOLD, "given"))


def leaving_out(chat: Chat, messages: Sequence[dict], passages: Sequence[dict]) -> list[str]:
    """Prompts of a conversation: with all passages, and without each."""
    return [chat.prompt(messages, some) for some in _whole_and_without(passages)]


def gains_of_prompts(
    scorer: Scorer, prompts: Sequence[str], text: str
) -> tuple[np.ndarray, list[int]]:
    """Gains and ends (see `worth`) of an answer to the prompts of `leaving_out`."""
    return _gains(scorer, scorer.score([Pair(p, text) for p in prompts], 0, special_tokens=True))


def gains_of_neighbours(
    scorer: Scorer, context: str, text: str, neighbours: Sequence[str]
) -> tuple[np.ndarray, list[int]]:
    """Gains and ends of a continuation whose chunks all read given neighbours."""
    pair, kept = [Pair(context, text)], _whole_and_without(neighbours)
    return _gains(scorer, [scorer.score(pair, None if some else 0, some)[0] for some in kept])


def _whole_and_without(read: Sequence) -> list[list]:
    """All of them, and all but each."""
    return [[*read], *([*read[:i], *read[i + 1 :]] for i in range(len(read)))]


def _gains(scorer: Scorer, scores: list[Score]) -> tuple[np.ndarray, list[int]]:
    whole, *without = scores
    said = Text(scorer.tokenizer)
    for token in whole.wanted.tolist():
        said.add(token)
    gains = [(whole.logprobs - s.logprobs)[:, None] for s in without]
    return np.concatenate([np.zeros((whole.tokens, 0)), *gains], axis=1), said.ends
