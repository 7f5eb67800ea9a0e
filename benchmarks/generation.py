"""What the benchmarks of generation share: shapes, databases of held-out text, things that take turns."""

import argparse
import contextlib
import dataclasses
import itertools
import statistics
import time
from typing import NamedTuple

import common
import numpy as np

K = 2  # neighbours


class Size(NamedTuple):
    """What is generated, with which model.

    Attributes:
      model: fields of a model's parts where they differ from the experiment's.
      rows: continuations that are decoded together, one number after the other.
      tokens: of a continuation. prompt: of a prompt. long: of a long continuation.
    """

    model: dict
    rows: tuple[int, ...]
    tokens: int
    prompt: int = 128
    long: int = 512


SMALL = {
    "decoder": {"d": 256, "layers": 6, "heads": 8, "head_size": 64},
    "encoder": {"d": 128, "layers": 2, "heads": 8, "head_size": 64, "share_embedding": False},
    "reading": {"cca_layers": (3, 6)},
}
PAPER = {
    "decoder": {"d": 896, "layers": 12, "heads": 16, "head_size": 64},
    "encoder": {"d": 896, "layers": 2, "heads": 16, "head_size": 64, "share_embedding": False},
    "reading": {"cca_layers": (6, 9, 12)},
}
SIZES = {
    "smoke": Size({}, (1,), 64, prompt=32, long=64),
    "quickstart": Size({}, (1, 8, 32), 256),
    "small": Size(SMALL, (1, 8, 32), 256),
    "172m": Size(PAPER, (1, 8), 128),
}
RETRIEVERS = {"BM25": "bm25", "ScaNN": "tfidf"}  # and their names in common.RETRIEVERS


class RealText:
    """Retrievers, one of them in use, that look up a held-out chunk whatever they are asked for."""

    def __init__(self, retrievers: dict, chunks: np.ndarray):
        self.all, self._next, self.k = retrievers, itertools.cycle(chunks), K
        self.use("BM25")

    def use(self, name: str):
        """Has one of them be in use."""
        self.now = self.all[name]
        self.source_of = self.now.source_of

    def check(self, databases):
        """Every database will do."""

    def some(self, n: int) -> np.ndarray:
        """The next n held-out chunks."""
        return np.stack([next(self._next) for _ in range(n)])

    def retrieve(self, chunks, *rest):
        """What held-out chunks retrieve, as many."""
        return self.now.retrieve(self.some(len(chunks)), *rest)


class Setup(NamedTuple):
    """A method with random weights, and what it reads."""

    method: object
    params: dict
    tokenizer: object
    text: RealText
    size: Size

    @property
    def chunk(self) -> int:
        """M."""
        return self.method.model.reading.chunk

    @property
    def length(self) -> int:
        """Tokens that a prompt and its continuation have together, at most."""
        return self.size.prompt + self.size.long

    def generator(self, rows: int, k: int = K):
        """A generator that is warm; k = 0: of the language model alone."""
        from retro_jax.generate.generator import Generator

        given = self.method, self.params, self.tokenizer, self.text
        made = Generator(*given, rows, self.length, k)
        made.warm_up().result()
        return made

    def prompts(self, lengths: list[int]) -> list[str]:
        """Held-out texts that have so many tokens each, BOS included."""
        from retro_jax.generate.lookup import prompt_ids

        parts = self.text.some(4 * 160).reshape(-1, 256).tolist()
        found, texts = [], itertools.cycle([self.tokenizer.decode(part) for part in parts])
        for length in lengths:
            text = None
            while text is None:  # a cut text is tokenized anew, so that not every length is met
                whole = next(texts)
                cuts = (whole[:end] for end in range(length, len(whole)))
                text = next((t for t in cuts if len(prompt_ids(self.tokenizer, t)) == length), None)
            found.append(text)
        return found


def set_up(args: argparse.Namespace) -> Setup:
    """The experiment's model but for what the size changes, and databases in WORKDIR, made if need be."""
    import jax

    from retro_jax.corpus.tokenizer import EOS
    from retro_jax.databases.retriever import open_retriever
    from retro_jax.methods.retro import Retro
    from retro_jax.train import sharding

    sharding.set_up_cpu(1)  # before JAX first runs
    prepared = {name: common.prepare(args, which) for name, which in RETRIEVERS.items()}
    retrievers = {name: open_retriever(one.work) for name, one in prepared.items()}
    e, size = prepared["BM25"].experiment, SIZES[args.size]
    chunks = np.array(prepared["BM25"].table("heldout").tokens)
    parts = {n: dataclasses.replace(getattr(e.model, n), **f) for n, f in size.model.items()}
    method = Retro(dataclasses.replace(e.model, **parts), K)
    with jax.set_mesh(sharding.one_device()):
        params = method.init(e.corpus.vocab, 0)
        # The logit of the end of a document is 0: some other token is more probable.
        params["embedding"] *= np.arange(e.corpus.vocab)[:, None] != EOS
    text = RealText(retrievers, chunks[chunks.all(axis=1)])
    return Setup(method, params, prepared["BM25"].tokenizer, text, size)


@contextlib.contextmanager
def all_places_read():
    """What is compiled in it reads all places of the rows, and not only those that they have begun."""
    from retro_jax.model import decode

    parts, decode.PARTS = decode.PARTS, (1,)
    try:
        yield
    finally:
        decode.PARTS = parts


class Turns:
    """Seconds of things that take turns; the first rounds, which compile, do not count."""

    def __init__(self, work: dict, rounds: int, uncounted: int = 1):
        self.seconds = {name: [] for name in work}
        for i in range(uncounted + rounds):
            for name, do in work.items():
                begin = time.perf_counter()
                result = do()  # its own seconds, if it says so
                took = time.perf_counter() - begin
                took = result if isinstance(result, float) else took
                self.seconds[name] += [took] if i >= uncounted else []

    def median(self, name: str) -> float:
        """Seconds."""
        return statistics.median(self.seconds[name])

    def ratio(self, name: str, other: str) -> str:
        """Of the seconds of two: the median of the rounds' ratios, and their range."""
        each = [a / b for a, b in zip(self.seconds[name], self.seconds[other])]
        return f"{statistics.median(each):.2f} ({min(each):.2f} to {max(each):.2f})"
