"""The recipe: the steps from text to shards, in their order, with what each depends on.

Splits: `train` and, unless its share is 0, `heldout` of `corpus.source`; `database` of `retrieval.source`, if there
is one (the database is the training split otherwise); and one for each of `corpus.heldout_sources`.
"""

import dataclasses
import functools
from pathlib import Path

from retro_jax.config import Experiment, RetrievalConfig
from retro_jax.corpus.collect import Rules
from retro_jax.errors import UserError
from retro_jax.pipeline.step import Step
from retro_jax.pipeline.steps.chunks import Chunks
from retro_jax.pipeline.steps.corpus import DATABASE, Corpus
from retro_jax.pipeline.steps.embedder import FitEmbedder
from retro_jax.pipeline.steps.embeddings import Embed
from retro_jax.pipeline.steps.index import BuildIndex
from retro_jax.pipeline.steps.neighbours import FindNeighbours
from retro_jax.pipeline.steps.shards import WriteShards
from retro_jax.pipeline.steps.tokenizer import Tokenizer
from retro_jax.pipeline.steps.words import CountWords, Words
from retro_jax.retrieval.embedder import (
    EMBEDDERS,
    has_vectors,
    open_embedder,
    reads_words,
    settings_of,
)
from retro_jax.retrieval.index import INDEXES, Given
from retro_jax.retrieval.ranking import Ranking


def heldout_sources(e: Experiment) -> dict[str, str]:
    """name -> source of the held-out corpora beside the split of the training corpus."""
    return {
        name: source for name, _, source in (s.partition("=") for s in e.corpus.heldout_sources)
    }


def shard_splits(e: Experiment) -> tuple[str, ...]:
    """The splits that have shards: what is trained on first, then what is held out."""
    return ("train", *(("heldout",) if e.corpus.heldout else ()), *heldout_sources(e))


def heldout_splits(e: Experiment, own: bool = False) -> tuple[str, ...]:
    """The splits that are scored.

    Raises:
      UserError: nothing is held out; own: nothing of the corpus itself, whatever its further sources are.
    """
    if not e.corpus.heldout and (own or not e.corpus.heldout_sources):
        raise UserError(
            "config field corpus.heldout = 0: nothing is held out that could be scored; `retro prepare` with a share "
            "of the documents, --config.corpus.heldout=0.1 for example, in another directory (--workdir). What scores "
            "nothing, `retro train`, `generate` and `serve`, needs none"
        )
    return shard_splits(e)[1:]


def corpus_of(split: str) -> str:
    """The step that has the documents of a split."""
    return "corpus" if split in ("train", "heldout") else f"corpora/{split}"


def database_split(e: Experiment) -> str:
    """The split whose chunks are retrieved."""
    return DATABASE if e.retrieval.source else "train"


def live(e: Experiment) -> tuple[str, ...]:
    """The steps that live retrieval reads: the rest may have been made with any other settings."""
    database, r = database_split(e), e.retrieval
    words = (f"words/{database}", "statistics") if reads_words(r) else ()
    vectors = ("embedder", f"embeddings/{database}") if has_vectors(r) else ()
    return ("tokenizer", f"chunks/{database}", *words, *vectors, "index")


def searched(e: Experiment, split: str) -> str:
    """The step that has what an index takes, of a split."""
    return f"{'embeddings' if has_vectors(e.retrieval) else 'words'}/{split}"


def recipe(e: Experiment, base: Path) -> dict[str, Step]:
    """The steps by name, which is also their directory below `base`, in order."""
    c, r, m = e.corpus, e.retrieval, e.model
    made: dict[str, Step] = {}

    def add(cls, name: str, settings: dict, inputs: tuple[str, ...], *given):
        made[name] = cls(base, name, settings, tuple(dict.fromkeys(inputs)), *given)

    rules = {f"corpus.{name}": getattr(c, name) for name in Rules._fields}
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
        settings = chunk | {"corpus.bad_documents": c.bad_documents}
        add(Chunks, f"chunks/{split}", settings, (corpus_of(split), "tokenizer"))

    counted = ()
    if reads_words(r):
        for split in splits:
            add(Words, f"words/{split}", {}, (f"chunks/{split}", "tokenizer"))
        counted = ("statistics",)
        add(CountWords, "statistics", {}, (f"words/{database}",))
    if has_vectors(r):
        kind = EMBEDDERS[r.embedder]
        given = r.embedder, settings_of(r), m.reading.chunk
        read = counted if kind.reads == "words" else ()
        inputs = (f"chunks/{database}", "tokenizer", *read)
        add(FitEmbedder, "embedder", EMBEDDERS.binding(r.embedder, r.settings), inputs, *given)
        opened = functools.partial(open_embedder, r, chunk=m.reading.chunk)
        for split in splits:
            inputs = (f"chunks/{split}", "tokenizer", *((f"words/{split}",) if read else ()))
            add(Embed, f"embeddings/{split}", {}, (*inputs, "embedder"), opened)

    k, ranked = {"retrieval.neighbours": r.neighbours}, {"retrieval.rerank": r.rerank}
    asked = k
    if r.rerank != "none":
        asked = {"retrieval.candidates": Ranking.of(r).fetch(r.neighbours)}
    settings = INDEXES.binding(r.index, r.settings) | asked
    settings |= {"retrieval.index_shard": r.index_shard}
    config = dataclasses.replace(RetrievalConfig(), index=r.index, settings=r.settings,
                                 index_shard=r.index_shard)  # fmt: skip
    given = Given(*asked.values(), EMBEDDERS[r.embedder].clusters)
    inputs = (searched(e, database), *(() if has_vectors(r) else counted))
    add(BuildIndex, "index", settings, inputs, config, given)

    length, stride = {"train.length": e.train.length}, {"evaluate.stride": e.evaluate.stride}
    for split in shard_splits(e):
        chunks = (f"chunks/{split}", f"chunks/{database}")
        settings = k | ranked | asked | (length if split == "train" else {})
        inputs = (*chunks, searched(e, split), searched(e, database), "index")
        if r.rerank != "none":
            inputs += (f"words/{split}", f"words/{database}")
        if r.rerank != "none" or not has_vectors(r):
            inputs += counted
        add(FindNeighbours, f"neighbours/{split}", settings, inputs, database, r)
        settings = length if split == "train" else length | stride
        add(WriteShards, f"shards/{split}", settings, (*chunks, f"neighbours/{split}"))
    return made
