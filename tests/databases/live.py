"""Small prepared databases to change, and what the tests of live retrieval ask of them."""

import dataclasses
import json
import random
import shutil

import numpy as np
from conftest import small_experiment

from retro_jax.config import RetrievalConfig
from retro_jax.corpus.chunks import ChunkTable
from retro_jax.corpus.tokenizer import BOS, EOS, PAD
from retro_jax.databases.retriever import open_retriever
from retro_jax.pipeline import prepare
from retro_jax.store.workdir import WorkDir

M = 16
WORDS = [f"{a}{b}" for a in ("ka", "lo", "mi", "ten", "sur") for b in ("ra", "po", "nel", "is")]
ALL = 2000  # more chunks than there are
KINDS = {
    "tfidf": RetrievalConfig(embedder="tfidf", rerank="none", settings={"tfidf": {"dim": 16}}),
    # As many candidates as chunks, and lists that cut none: so what is found is the best of all.
    "lexical": RetrievalConfig(candidates=ALL),
    "words": RetrievalConfig(
        embedder="words", index="bm25", candidates=ALL, settings={"bm25": {"postings": 10**5}}
    ),
}


def prose(seed, words=40):
    """Made-up text; the same for the same seed."""
    return " ".join(random.Random(seed).choices(WORDS, k=words)) + "."


def made(kind, root):
    """(experiment, WORKDIR with a finished `prepare`)."""
    documents = [
        {"id": f"d{i}", "text": prose(i, 120), "date": f"{2015 + i % 10}-0{1 + i % 9}-11",
         "licence": ("MIT", "CC0")[i % 2], "source": f"s{i % 7}"}
        for i in range(90)
    ]  # fmt: skip
    (root / "corpus.jsonl").write_text("".join(json.dumps(d) + "\n" for d in documents))
    e = small_experiment(root)
    corpus = dataclasses.replace(e.corpus, source=f"jsonl:{root}/corpus.jsonl#text")
    e = dataclasses.replace(e, corpus=corpus, retrieval=KINDS[kind])
    prepare.prepare(WorkDir(root / "w", e))
    assert len(ChunkTable(root / "w" / "prepare" / "chunks" / "train")) < ALL - 100
    return e, root / "w"


class Work:
    """A copy of what `made` made, that may be changed."""

    def __init__(self, made, root):
        self.e, self.root = made[0], root / "w"
        self.base = self.root / "prepare"
        shutil.copytree(made[1], self.root)
        self.retriever = self.reopened()
        self.databases = self.retriever.databases
        self.table = ChunkTable(self.base / "chunks" / "train")
        self.queries = np.asarray(ChunkTable(self.base / "chunks" / "heldout").tokens[:12])

    def reopened(self):
        """A reader, as of another process."""
        return open_retriever(WorkDir(self.root, self.e))

    @property
    def readers(self):
        """One that was open before, and a new one."""
        return self.retriever, self.reopened()

    def counts(self, name):
        """Of one database."""
        return {d["database"]: d for d in self.databases.describe()}[name]


def chunk_of(retriever, text):
    """The first chunk [1, M] of a document of this text."""
    ids = [BOS, *retriever.databases.prepared.tokenizer.encode(text), EOS][:M]
    return np.array([ids + [PAD] * (M - len(ids))])


def documents_of(retriever, near):
    """The ids of the documents of each row of Neighbours."""
    return [[retriever.source_of(i)["document"] for i in row if i >= 0] for row in near.ids]


def found(retriever, text, *databases, **options):
    """The documents that the first chunk of a text retrieves."""
    options |= {"databases": databases or ("prepared",)}
    return documents_of(retriever, retriever.retrieve(chunk_of(retriever, text), **options))[0]
