"""What the answers to the items of a task are worth, and how sure one is of it.

N items; a metric has a value of each and a mean over them.
"""

import collections
import re
import string
from collections.abc import Callable, Sequence

import numpy as np

RESAMPLES = 1000
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normal(text: str) -> str:
    """An answer as SQuAD compares it: lower case, no punctuation, no articles, single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def exact_match(answer: str, accepted: Sequence[str]) -> float:
    """1.0 if it is one of the accepted answers, else 0.0; normalised."""
    return float(normal(answer) in map(normal, accepted))


def f1(answer: str, accepted: Sequence[str]) -> float:
    """The harmonic mean of precision and recall of its words; of the accepted answer where it is best."""
    return max(_f1(normal(answer).split(), normal(one).split()) for one in accepted)


def _f1(answer: list[str], accepted: list[str]) -> float:
    if not answer or not accepted:
        return float(answer == accepted)
    shared = sum((collections.Counter(answer) & collections.Counter(accepted)).values())
    return 2 * shared / (len(answer) + len(accepted))


def mentions(text: str, answers: Sequence[str]) -> bool:
    """Whether a text holds one of the answers, as whole words; normalised."""
    words = f" {normal(text)} "
    return any(f" {one} " in words for one in map(normal, answers) if one)


def grams(tokens: Sequence[int], size: int) -> set[tuple]:
    """Every run of `size` tokens."""
    return {tuple(tokens[i : i + size]) for i in range(len(tokens) - size + 1)}


def perplexity(logps: np.ndarray) -> np.ndarray:
    """exp of minus the mean log p, over the last axis."""
    return np.exp(-logps.mean(axis=-1))


def mean(values: np.ndarray) -> np.ndarray:
    """Over the last axis."""
    return values.mean(axis=-1)


def compare(values: dict[str, np.ndarray], average: Callable, seed: int = 0) -> dict[str, dict]:
    """A metric under each condition, {condition: [N]}, and `on` less `off` if both are there.

    average: from [..., N] to [...].

    Returns:
      value, low and high of each: the 95 % interval is a bootstrap over items, the same ones drawn for every
      condition.
    """
    count = len(next(iter(values.values())))
    drawn = np.random.default_rng(seed).integers(0, count, (RESAMPLES, count))
    found = {name: (average(x), average(x[drawn])) for name, x in values.items()}
    if {"on", "off"} <= found.keys():
        found["difference"] = tuple(a - b for a, b in zip(found["on"], found["off"]))
    out = {}
    for name, (value, resampled) in found.items():
        low, high = np.percentile(resampled, [2.5, 97.5])
        out[name] = {"value": float(value), "low": float(low), "high": float(high)}
    return out
