"""No vectors: the words of a chunk are what is searched (`retrieval.index=bm25`)."""

from retro_jax.retrieval.embedder import Embedder


class Words(Embedder):
    """Hands the words on as they are."""

    reads = gives = "words"
