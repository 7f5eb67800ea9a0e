"""Embedder, index and neighbours (retro_jax/retrieval)."""

from dataclasses import dataclass
from typing import Any

from retro_jax.config.fields import require_at_least, setting


@dataclass(frozen=True)
class RetrievalConfig:
    """The fields `retrieval.*` of an experiment."""

    source: str = setting(
        "", "the text that is retrieved, as corpus.source; empty: the training text"
    )
    embedder: str = setting("tfidf", "what makes a chunk's vector (retrieval/embedder.py)")
    index: str = setting("auto", "what searches the vectors (retrieval/index.py)")
    settings: dict[str, dict[str, Any]] = setting(
        {}, "settings of embedders and indexes by name, retrieval.settings.tfidf.dim for example"
    )
    neighbours: int = setting(2, "k, the neighbours of a chunk")
    index_shard: int = setting(
        2_000_000, "vectors in memory at a time; a larger database is searched in shards"
    )

    def __post_init__(self):
        require_at_least(1, "retrieval.", self, "neighbours", "index_shard")
