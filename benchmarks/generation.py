"""What the benchmarks of generation share: shapes, databases of held-out text, things that take turns."""

import dataclasses
import importlib.util
import itertools
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

PROMPT, LONG, K = 128, 512, 2  # tokens of a prompt; of a long continuation; neighbours
# Fields of ModelConfig where they differ from the config's; rows; tokens that are generated.
SMALL = {
    "d": 256, "layers": 6, "heads": 8, "head_size": 64, "cca_layers": (3, 6), "encoder_d": 128,
    "encoder_layers": 2, "encoder_heads": 8, "encoder_head_size": 64, "share_embedding": False,
}  # fmt: skip
PAPER = {
    "d": 896, "layers": 12, "heads": 16, "head_size": 64, "cca_layers": (6, 9, 12),
    "encoder_d": 896, "encoder_layers": 2, "encoder_heads": 16, "encoder_head_size": 64,
    "share_embedding": False,
}  # fmt: skip
SIZES = {
    "quickstart": ({}, (1, 8, 32), 256),
    "small": (SMALL, (1, 8, 32), 256),
    "172m": (PAPER, (1, 8), 128),
}
RETRIEVERS = {
    "BM25": {"embedder": "words", "index": "bm25"},
    "ScaNN": {"embedder": "tfidf", "dim": 256, "index": "auto"},
}


class RealText:
    """Retrievers, one of them in use, that look up a held-out chunk whatever they are asked for."""

    def __init__(self, retrievers: dict, chunks: np.ndarray):
        self.all, self._next, self.k = retrievers, itertools.cycle(chunks), K
        self.use("BM25")
        self.check = lambda databases: None

    def use(self, name: str):
        self.now = self.all[name]
        self.source_of = self.now.source_of

    def some(self, n: int) -> np.ndarray:
        """The next n held-out chunks."""
        return np.stack([next(self._next) for _ in range(n)])

    def retrieve(self, chunks, *rest):
        return self.now.retrieve(self.some(len(chunks)), *rest)


class Setup(NamedTuple):
    """A model with random weights, and what it reads."""

    model: object
    params: dict
    tokenizer: object
    text: RealText

    def generator(self, rows: int, k: int = K):
        from retro_jax.generate.generator import Generator

        length = PROMPT + LONG
        made = Generator(self.model, self.params, self.tokenizer, self.text, rows, length, k)
        made.warm_up()
        return made

    def prompts(self, lengths: list[int]) -> list[str]:
        """Held-out texts that have so many tokens each, BOS included."""
        from retro_jax.generate.lookup import prompt_ids

        found, texts = (
            [],
            map(self.tokenizer.decode, self.text.some(4 * 160).reshape(-1, 256).tolist()),
        )
        texts = itertools.cycle(list(texts))
        for length in lengths:
            text = None
            while text is None:  # a cut text is tokenized anew, so that not every length is met
                whole = next(texts)
                cuts = (whole[:end] for end in range(length, len(whole)))
                text = next((t for t in cuts if len(prompt_ids(self.tokenizer, t)) == length), None)
            found.append(text)
        return found


def set_up(config: Path, root: Path, changed: dict) -> Setup:
    """The config's model but for what is changed, and databases in `root`, made if need be."""
    import jax

    from retro_jax import steps
    from retro_jax.config import RetrievalConfig, from_config_dict
    from retro_jax.corpus.chunks import ChunkTable
    from retro_jax.corpus.tokenizer import EOS
    from retro_jax.model import functional
    from retro_jax.train import sharding

    sharding.set_up_cpu(1)  # before JAX first runs
    spec = importlib.util.spec_from_file_location("experiment", config)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    e, retrievers = from_config_dict(module.get_config()), {}
    for name, fields in RETRIEVERS.items():
        where = root / name
        flags = [f"--config.retrieval.{n}={v}" for n, v in fields.items()]
        command = [sys.executable, "-m", "retro_jax.cli", "prepare", f"--config={config}", *flags]
        if subprocess.run([*command, f"--workdir={where}"], stdout=sys.stderr).returncode:
            sys.exit(1)
        own = dataclasses.replace(e, retrieval=RetrievalConfig(neighbours=K, **fields))
        retrievers[name] = steps.load_retriever(own, where / "prepare")
    tokenizer = steps.load_tokenizer(root / "BM25" / "prepare")
    chunks = np.array(ChunkTable(root / "BM25" / "prepare" / "chunks" / "heldout").tokens)
    model = dataclasses.replace(e.model, **changed)
    with jax.set_mesh(sharding.one_device()):
        params = functional.init(model, e.corpus.vocab, 0)
        # The logit of the end of a document is 0: some other token is more probable.
        params["embedding"] *= np.arange(e.corpus.vocab)[:, None] != EOS
    return Setup(model, params, tokenizer, RealText(retrievers, chunks[chunks.all(axis=1)]))


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
        return statistics.median(self.seconds[name])

    def ratio(self, name: str, other: str) -> str:
        """Of the seconds of two: the median of the rounds' ratios, and their range."""
        each = [a / b for a, b in zip(self.seconds[name], self.seconds[other])]
        return f"{statistics.median(each):.2f} ({min(each):.2f} to {max(each):.2f})"
