"""The tokens of prompts and answers, scored: for clients that ask for `echo` with `logprobs`, or for sources."""

import threading
from collections.abc import Sequence

from retro_jax.config.request import Request
from retro_jax.evaluate.score import Pair, Score
from retro_jax.evaluate.scorer import Scorer
from retro_jax.evaluate.sources import gains_of_prompts
from retro_jax.generate.generator import Generator


class Prompts:
    """Scores prompts with the networks that continue them, one at a time; each reads what it retrieves by itself."""

    def __init__(self):
        self._scorers: dict[tuple, Scorer] = {}
        self._lock = threading.Lock()

    def scores(self, g: Generator, requests: Sequence[Request]) -> list[Score]:
        """Of the prompt of each: its tokens but BOS."""
        with self._lock:
            return [
                self._of(g, r.databases).score([Pair("", r.prompt)], g.lookup.width(r))[0]
                for r in requests
            ]

    def gains(self, g: Generator, prompts: Sequence[str], text: str):
        """What each passage of prompts was worth to an answer, see `sources.gains_of_prompts`."""
        with self._lock:
            return gains_of_prompts(self._of(g, ("prepared",)), prompts, text)

    def _of(self, g: Generator, databases: tuple[str, ...]) -> Scorer:
        key = g.method.name, databases
        if key not in self._scorers:
            self._scorers[key] = Scorer.beside(g, databases=databases)
        return self._scorers[key]
