"""What is told of a sentence's sources (evaluate/sources.py), for clients that ask for it."""

import numpy as np

from retro_jax.evaluate import sources
from retro_jax.generate.completion import Completion
from retro_jax.generate.generator import Generator
from retro_jax.serve.prompts import Prompts


def of_neighbours(c: Completion, threshold: float) -> list[dict]:
    """The sentences of a continuation, by the contributions of the neighbours that it read (`sources.tell`)."""
    places, gains = {}, np.zeros((len(c.tokens), sum(len(x["neighbours"]) for x in c.chunks)))
    read = []
    for chunk in c.chunks:
        begin = max(chunk["begin"], c.first) - c.first
        for n in chunk["neighbours"]:
            key = tuple(n.get(name) for name in (*sources.TOLD, "given"))
            at = places.setdefault(key, len(read))
            if at == len(read):
                read.append(n)
            found = n.get("contributions", [])
            gains[begin : begin + len(found), at] += found
    return sources.tell(c.text, gains[:, : len(read)], c.ends, read, threshold)


def of_passages(
    prompts: Prompts,
    g: Generator,
    c: Completion,
    asked: list[str],
    passages: list[dict],
    threshold: float,
) -> list[dict]:
    """The sentences of an answer, by the passages that stood before the question.

    asked: what `sources.leaving_out` made of the conversation.
    """
    if not c.text:
        return []
    gains, ends = prompts.gains(g, asked, c.text)
    return sources.tell(c.text, gains, ends, passages, threshold)
