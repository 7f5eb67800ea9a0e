"""A chunk's text to a vector. One interface: `embed(texts) -> [n, E]`, E being `width`, in `dtype`.

The text is what the chunk's tokens decode to, for chunks of the database and for live queries
alike, so that a chunk is always its own nearest neighbour.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.utils.extmath import safe_sparse_dot

from retro_jax.config import RetrievalConfig
from retro_jax.errors import UserError
from retro_jax.retrieval import bm25, sentence

_SAMPLE = 20_000  # chunks that the TF-IDF weights and the SVD are fitted on
_FEATURES = 2**16


class TfidfEmbedder:
    """TF-IDF over words, symbols and pairs of them, reduced by SVD, on the unit sphere.

    It needs no download and suits two cores: lexical retrieval, in a dense index. It knows nothing
    of meaning; for that, use a BERT.
    """

    dtype = np.dtype("<f4")

    def __init__(self, vocabulary: dict[str, int], idf: np.ndarray, components: np.ndarray):
        self._tfidf = TfidfVectorizer(vocabulary=vocabulary, **_ANALYSER)
        self._tfidf.idf_ = idf.astype(np.float32)
        self._vocabulary = vocabulary
        self._components = components.astype(np.float32)  # [features, E]

    @property
    def width(self) -> int:
        """E."""
        return self._components.shape[1]

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Texts -> [n, E] float32 of length 1 (0 for a text of unknown words only)."""
        if not len(texts):
            return np.empty((0, self.width), np.float32)
        vectors = safe_sparse_dot(self._tfidf.transform(texts), self._components)
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        return np.ascontiguousarray(vectors / np.maximum(norms, 1e-6), np.float32)

    def save(self, directory: Path):
        """Writes vocabulary and matrices as JSON and safetensors; nothing in it is executed."""
        words = sorted(self._vocabulary, key=self._vocabulary.get)
        (directory / "vocabulary.json").write_text(json.dumps(words))
        aside = directory / ".tfidf.partial"
        arrays = {"idf": self._tfidf.idf_, "components": np.ascontiguousarray(self._components)}
        save_file(arrays, aside)
        aside.rename(directory / "tfidf.safetensors")  # whole or absent

    @classmethod
    def load(cls, directory: Path) -> "TfidfEmbedder":
        """The embedder that `save` wrote."""
        words = json.loads((directory / "vocabulary.json").read_text())
        arrays = load_file(directory / "tfidf.safetensors")
        return cls({w: i for i, w in enumerate(words)}, arrays["idf"], arrays["components"])


_ANALYSER = {
    "token_pattern": r"\w+|[^\w\s]",
    "ngram_range": (1, 2),
    "lowercase": False,
    "sublinear_tf": True,
    "dtype": np.float32,
}


def sample(count: int, seed: int = 0) -> list[int]:
    """Which of `count` chunks to fit on, in order."""
    rng = np.random.default_rng(seed)
    return np.sort(rng.choice(count, min(count, _SAMPLE), replace=False)).tolist()


def fit_tfidf(sample: Sequence[str], dim: int, seed: int = 0) -> TfidfEmbedder:
    """Fits a TfidfEmbedder on a sample of the database's chunks.

    Raises:
      UserError: too few texts for `dim` dimensions.
    """
    tfidf = TfidfVectorizer(max_features=_FEATURES, min_df=min(2, len(sample)), **_ANALYSER)
    try:
        matrix = tfidf.fit_transform(sample)
    except ValueError as error:
        raise UserError(f"the tfidf embedder found no words in the corpus ({error})") from error
    if min(matrix.shape) <= dim:
        raise UserError(
            f"config field retrieval.dim = {dim}: the corpus has only {matrix.shape[0]} chunks and "
            f"{matrix.shape[1]} repeated words; give more text, or a dim below both"
        )
    svd = TruncatedSVD(dim, n_iter=4, random_state=seed).fit(matrix)
    vocabulary = {word: int(i) for word, i in tfidf.vocabulary_.items()}
    return TfidfEmbedder(vocabulary, tfidf.idf_, svd.components_.T)


def check(config: RetrievalConfig):
    """Raises UserError if files that the embedder needs are missing."""
    kind, _, path = config.embedder.partition(":")
    if kind == "bert":
        sentence.check(Path(path))


def load(config: RetrievalConfig, directory: Path, chunk: int):
    """The embedder of a config, for chunks of so many tokens; a fitted one is in `directory`."""
    kind, _, path = config.embedder.partition(":")
    if kind == "bert":
        return sentence.BertEmbedder(Path(path), config.dtype)
    if kind == "words":
        return bm25.WordEmbedder(2 * chunk)  # a token of most tokenizers holds one word at most
    return TfidfEmbedder.load(directory)
