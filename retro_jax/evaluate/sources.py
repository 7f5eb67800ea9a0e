"""Which documents a sentence comes from: without which it would have been less probable.

    T tokens of a text, K neighbours or passages that were read for it, S sentences

A text becomes a little more or less probable with whatever is read. So a document is named only from a threshold on:
that from which passages of another text, which the sentence cannot come from, are named for few sentences
(sources_threshold.py).
"""

import re
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from retro_jax.evaluate.score import Pair
from retro_jax.evaluate.scorer import Scorer
from retro_jax.generate.chat import Chat
from retro_jax.generate.detokenize import Text

TOLD = ("database", "document", "chunk", "offset")  # of a source
_ENDS = re.compile(r"""[.!?]["'”’)\]]*(?P<a>\s+)|(?P<b>\s*\n\s*)""")


def sentences(text: str) -> list[tuple[int, int]]:
    """Where the sentences of a text begin and end, white space between them left out. A line's end ends one; what has
    no letter, such as the number of a list's item, belongs to the next one."""
    found = (f.span("a" if f["a"] else "b") for f in _ENDS.finditer(text))
    cuts = [(0, 0), *found, (len(text), len(text))]
    spans, open_since = [], None
    for (_, begin), (end, _) in pairwise(cuts):
        begin = begin if open_since is None else open_since
        lettered = any(map(str.isalpha, text[begin:end]))
        open_since = None if lettered else begin
        if lettered:
            spans.append((begin, end))
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
      the dearest first.
    """
    spans, told = sentences(text), []
    for (begin, end), nats in zip(spans, worth(gains, ends, spans)):
        named = [i for i in np.argsort(-nats, kind="stable") if nats[i] >= threshold]
        sources = [
            {n: read[i][n] for n in (*TOLD, "given") if n in read[i]}
            | {"nats": round(float(nats[i]), 4)}
            for i in named
        ]
        told.append({"begin": begin, "end": end, "sources": sources})
    return told


def leaving_out(chat: Chat, messages: Sequence[dict], passages: Sequence[dict]) -> list[str]:
    """Prompts of a conversation: with all passages, and without each."""
    kept = [passages, *([*passages[:i], *passages[i + 1 :]] for i in range(len(passages)))]
    return [chat.prompt(messages, some) for some in kept]


def gains_of_prompts(
    scorer: Scorer, prompts: Sequence[str], text: str
) -> tuple[np.ndarray, list[int]]:
    """Gains and ends (see `worth`) of an answer to the prompts of `leaving_out`."""
    scores = scorer.score([Pair(p, text) for p in prompts], 0, special_tokens=True)
    return _gains(scorer, scores)


def gains_of_neighbours(
    scorer: Scorer, context: str, text: str, neighbours: Sequence[str]
) -> tuple[np.ndarray, list[int]]:
    """Gains and ends of a continuation whose chunks all read given neighbours."""
    kept = [neighbours, *([*neighbours[:i], *neighbours[i + 1 :]] for i in range(len(neighbours)))]
    pair = [Pair(context, text)]
    scores = [scorer.score(pair, None if some else 0, some)[0] for some in kept]
    return _gains(scorer, scores)


def _gains(scorer: Scorer, scores: list) -> tuple[np.ndarray, list[int]]:
    whole, *without = scores
    said = Text(scorer.tokenizer)
    for token in whole.wanted.tolist():
        said.add(token)
    none = np.zeros((whole.tokens, 0))
    gains = [(whole.logprobs - s.logprobs)[:, None] for s in without]
    return np.concatenate([none, *gains], axis=1), said.ends
