"""Embedder, index and neighbours (retro_jax/retrieval)."""

from dataclasses import dataclass
from typing import Any

from retro_jax.config.fields import require_at_least, require_one_of, setting

RERANK = ("bm25", "none")


@dataclass(frozen=True)
class RetrievalConfig:
    """The fields `retrieval.*` of an experiment."""

    source: str = setting(
        "", "the text that is retrieved, as corpus.source; empty: the training text"
    )
    embedder: str = setting("lexical", "what makes a chunk's vector (retrieval/embedder.py)")
    index: str = setting("auto", "what searches the vectors (retrieval/index.py)")
    settings: dict[str, dict[str, Any]] = setting(
        {}, "settings of embedders and indexes by name, retrieval.settings.lexical.dim for example"
    )
    neighbours: int = setting(2, "k, the neighbours of a chunk")
    rerank: str = setting(
        "bm25", "how the candidates of a chunk are ordered: bm25, or none, as the index found them"
    )
    candidates: int = setting(50, "candidates of a chunk, where they are ordered by rerank")
    index_shard: int = setting(
        250_000, "vectors in memory at a time; a larger database is searched in shards"
    )

    def __post_init__(self):
        require_at_least(1, "retrieval.", self, "neighbours", "candidates", "index_shard")
        require_one_of("retrieval.rerank", self.rerank, RERANK)
