"""The tokens of prompts, scored: for clients that ask for `echo` with `logprobs`."""

import threading
from collections.abc import Sequence

import jax

from retro_jax import progress
from retro_jax.config.request import Request
from retro_jax.evaluate.score import Pair, Score
from retro_jax.evaluate.scorer import Scorer
from retro_jax.generate.generator import Generator
from retro_jax.train import sharding


class Prompts:
    """Scores prompts with the networks that continue them, one at a time; each reads what it retrieves by itself."""

    def __init__(self):
        self._scorers: dict[tuple, Scorer] = {}
        self._lock = threading.Lock()

    def scores(self, g: Generator, requests: Sequence[Request]) -> list[Score]:
        """Of the prompt of each: its tokens but BOS."""
        with self._lock:
            return [
                self._of(g, r).score([Pair("", r.prompt)], g.lookup.width(r))[0] for r in requests
            ]

    def _of(self, g: Generator, request: Request) -> Scorer:
        key = g.method.name, request.databases
        if key not in self._scorers:
            m, mesh = g.model.reading.chunk, sharding.one_device()
            length = -(-g.length // m) * m
            with jax.set_mesh(mesh):
                self._scorers[key] = Scorer(
                    g.method, g.params, g.tokenizer, g.retriever, mesh, 1, length, length - m,
                    databases=request.databases, bar=progress.no_bar,
                )  # fmt: skip
        return self._scorers[key]
