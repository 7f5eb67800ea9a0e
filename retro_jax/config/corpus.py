"""Where text comes from and how it is split (retro_jax/corpus)."""

import re
from dataclasses import dataclass

from retro_jax.config.fields import (
    require,
    require_at_least,
    require_one_of,
    require_share,
    setting,
)


@dataclass(frozen=True)
class CorpusConfig:
    """The fields `corpus.*` of an experiment."""

    source: str = setting(
        "python:",
        "the text: python:, text:GLOB, jsonl:GLOB, parquet:GLOB, tfds:NAME, or a mixture of these",
    )
    bad_documents: str = setting(
        "refuse",
        "refuse | skip: what is empty, binary, not UTF-8, no text, a cut line, too large or shorter than a "
        "chunk, or has metadata that are too long or an id that an earlier one has",
    )
    largest_document: int = setting(
        50_000_000, "bytes that a document, or the line that it stands in, may have"
    )
    heldout: float = setting(
        0.05,
        "share of the documents held out, by a hash of their id; 0: all can be looked up, and nothing is trained",
    )
    heldout_sources: tuple[str, ...] = setting((), "more held-out text, each NAME=SOURCE")
    near_duplicate: float = setting(
        0.8, "held-out documents this similar (13-gram Jaccard) to another are left out"
    )
    exact_duplicates: str = setting(
        "keep", "keep | drop: training documents whose text is that of an earlier one"
    )
    tokenizer: str = setting(
        "train",
        "train, a SentencePiece .model, a Hugging Face tokenizer.json, or a GGUF file that holds one",
    )
    vocab: int = setting(
        4096, "pieces of a trained tokenizer, the 256 bytes and 4 special tokens included"
    )

    def __post_init__(self):
        require_one_of("corpus.bad_documents", self.bad_documents, ("refuse", "skip"))
        require_one_of("corpus.exact_duplicates", self.exact_duplicates, ("keep", "drop"))
        for one in self.heldout_sources:
            name, equals, source = one.partition("=")
            require(
                re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name) and equals and source,
                "corpus.heldout_sources",
                one,
                "must be NAME=SOURCE, the name of small letters and digits: "
                "'peps=jsonl:peps.jsonl#text'",
            )
        names = [one.partition("=")[0] for one in self.heldout_sources]
        require(
            len({*names, "train", "heldout", "database", "tasks"}) == len(names) + 4,
            "corpus.heldout_sources",
            names,
            "names must differ from one another and from train, heldout, database and tasks",
        )
        require(
            self.vocab >= 300,
            "corpus.vocab",
            self.vocab,
            "must be at least 300 (256 bytes and more)",
        )
        require(
            0 <= self.heldout < 1,
            "corpus.heldout",
            self.heldout,
            "must be at least 0, and less than 1",
        )
        require_share("corpus.", self, "near_duplicate")
        require_at_least(1, "corpus.", self, "largest_document")
