"""The recipe: the steps from text to shards, in their order, with what each depends on.

Splits: `train` and `heldout` of `corpus.source`; `database` of `retrieval.source`, if there is one (the
database is the training split otherwise); and one for each of `corpus.heldout_sources`.
"""

import dataclasses
import functools
from pathlib import Path

from retro_jax.config import Experiment, RetrievalConfig
from retro_jax.pipeline.step import Step
from retro_jax.pipeline.steps.chunks import Chunks
from retro_jax.pipeline.steps.corpus import DATABASE, Corpus
from retro_jax.pipeline.steps.embedder import FitEmbedder
from retro_jax.pipeline.steps.embeddings import Embed
from retro_jax.pipeline.steps.index import BuildIndex
from retro_jax.pipeline.steps.neighbours import FindNeighbours
from retro_jax.pipeline.steps.shards import WriteShards
from retro_jax.pipeline.steps.tokenizer import Tokenizer
from retro_jax.retrieval.embedder import EMBEDDERS, open_embedder, settings_of
from retro_jax.retrieval.index import INDEXES


def heldout_sources(e: Experiment) -> dict[str, str]:
    """name -> source of the held-out corpora beside the split of the training corpus."""
    return {
        name: source for name, _, source in (s.partition("=") for s in e.corpus.heldout_sources)
    }


def shard_splits(e: Experiment) -> tuple[str, ...]:
    """The splits that have shards: what is trained on first, then what is held out."""
    return ("train", "heldout", *heldout_sources(e))


def database_split(e: Experiment) -> str:
    """The split whose chunks are retrieved."""
    return DATABASE if e.retrieval.source else "train"


def live(e: Experiment) -> tuple[str, ...]:
    """The steps that live retrieval reads: the rest may have been made with any other settings."""
    database = database_split(e)
    return ("tokenizer", f"chunks/{database}", "embedder", f"embeddings/{database}", "index")


def recipe(e: Experiment, base: Path) -> dict[str, Step]:
    """The steps by name, which is also their directory below `base`, in order."""
    c, r, m = e.corpus, e.retrieval, e.model
    made: dict[str, Step] = {}

    def add(cls, name: str, settings: dict, inputs: tuple[str, ...], *given):
        made[name] = cls(base, name, settings, tuple(dict.fromkeys(inputs)), *given)

    names = ("bad_documents", "heldout", "near_duplicate", "exact_duplicates")
    rules = {f"corpus.{name}": getattr(c, name) for name in names}
    own = {"corpus.source": c.source}
    retrieved = ()
    if r.source:
        # The training corpus says what is held out, and so left out of the database.
        retrieved = (f"corpora/{DATABASE}",)
        add(Corpus, *retrieved, rules | own | {"retrieval.source": r.source}, ())
    add(Corpus, "corpus", rules | own, retrieved)
    for name, source in heldout_sources(e).items():
        settings = rules | {"corpus.heldout_sources": source}
        add(Corpus, f"corpora/{name}", settings, ("corpus", *retrieved))

    vocabulary = {"corpus.tokenizer": c.tokenizer}
    if c.tokenizer == "train":
        vocabulary["corpus.vocab"] = c.vocab
    add(Tokenizer, "tokenizer", vocabulary, ("corpus",))

    database = database_split(e)
    chunk = {"model.reading.chunk": m.reading.chunk}
    splits = dict.fromkeys((*shard_splits(e), database))
    for split in splits:
        corpus = "corpus" if split in ("train", "heldout") else f"corpora/{split}"
        settings = chunk | {"corpus.bad_documents": c.bad_documents}
        add(Chunks, f"chunks/{split}", settings, (corpus, "tokenizer"))

    settings = EMBEDDERS.binding(r.embedder, r.settings)
    inputs = (f"chunks/{database}", "tokenizer")
    add(FitEmbedder, "embedder", settings, inputs, r.embedder, settings_of(r), m.reading.chunk)
    opened = functools.partial(open_embedder, r, chunk=m.reading.chunk)
    for split in splits:
        inputs = (f"chunks/{split}", "tokenizer", "embedder")
        add(Embed, f"embeddings/{split}", {}, inputs, opened)

    settings = INDEXES.binding(r.index, r.settings)
    k = {"retrieval.neighbours": r.neighbours}
    settings |= k | {"retrieval.index_shard": r.index_shard}
    config = dataclasses.replace(RetrievalConfig(), index=r.index, settings=r.settings,
                                 neighbours=r.neighbours, index_shard=r.index_shard)  # fmt: skip
    add(BuildIndex, "index", settings, (f"embeddings/{database}",), config)

    length, stride = {"train.length": e.train.length}, {"evaluate.stride": e.evaluate.stride}
    for split in shard_splits(e):
        chunks = (f"chunks/{split}", f"chunks/{database}")
        settings = k | (length if split == "train" else {})
        vectors = (f"embeddings/{split}", f"embeddings/{database}")
        add(FindNeighbours, f"neighbours/{split}", settings, (*chunks, *vectors, "index"))
        settings = length if split == "train" else length | stride
        add(WriteShards, f"shards/{split}", settings, (*chunks, f"neighbours/{split}"))
    return made
