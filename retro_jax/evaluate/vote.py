"""REPLUG's vote over answers: one answer for each document, and the answer that gets the most.

What the public code of REPLUG (Shi et al. 2023) does for questions, where the paper mixes probabilities token by token:
each document stands in a prompt of its own, the answer to it gets exp(mean log p of its tokens) softmax(score of the
document / temperature), and equal answers, normalised, are added up.
"""

from collections.abc import Sequence

import numpy as np

from retro_jax.config import Request
from retro_jax.evaluate import metrics
from retro_jax.generate.completion import Completion
from retro_jax.generate.generator import Generator


def vote(generator: Generator, requests: Sequence[Request], temperature: float) -> list[str]:
    """The answer to each request, which reads what its prompt's last tokens retrieve, one document at a time.

    generator: of `rag`, with room for all neighbours that are looked up.
    """
    answers = []
    for request in requests:
        near = generator.lookup.prompt(request).result()
        documents = near.told[-1] if near.told else []
        if not documents:
            alone = generator.generate_all([Request(**vars(request) | {"k": 0})])[0]
            answers.append(alone.text.strip())
            continue
        asked = [Request(**vars(request) | {"k": 1, "neighbours": (d["text"],)}) for d in documents]
        distances = np.array([d["distance"] for d in documents])
        answers.append(counted(generator.generate_all(asked), distances, temperature))
    return answers


def counted(completions: Sequence[Completion], distances: np.ndarray, temperature: float) -> str:
    """The answer with the most votes, as it was first written; completions: one a document, distances: of these."""
    weights = np.exp(-(distances - distances.min()) / temperature)
    weights /= weights.sum()
    total: dict[str, float] = {}
    written: dict[str, str] = {}
    for completion, weight in zip(completions, weights):
        text = completion.text.strip()
        key = metrics.normal(text)
        sure = np.exp(np.mean(completion.logprobs)) if completion.logprobs else 0.0
        total[key] = total.get(key, 0.0) + float(weight * sure)
        written.setdefault(key, text)
    return written[max(total, key=total.get)]
