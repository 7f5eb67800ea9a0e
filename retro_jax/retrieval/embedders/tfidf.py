"""TF-IDF reduced by SVD: lexical retrieval in a dense index, fitted on the database itself."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.utils.extmath import safe_sparse_dot

from retro_jax import progress
from retro_jax.config.fields import require_at_least, setting
from retro_jax.errors import UserError
from retro_jax.retrieval.embedder import Embedder
from retro_jax.store import files

_SAMPLE = 20_000  # chunks that the TF-IDF weights and the SVD are fitted on
_FEATURES = 2**16
_ANEW = "delete the folder that it is in, and run prepare again"


@dataclass(frozen=True)
class Settings:
    """The fields `retrieval.settings.tfidf.*`."""

    dim: int = setting(128, "E, the width of a vector")

    def __post_init__(self):
        require_at_least(1, "retrieval.settings.tfidf.", self, "dim")


class Tfidf(Embedder):
    """TF-IDF over words, symbols and pairs of them, reduced by SVD, on the unit sphere.

    It needs no download and suits two cores: lexical retrieval, in a dense index. It knows nothing
    of meaning; for that, use a BERT.
    """

    Settings = Settings

    def __init__(self, vocabulary: dict[str, int], idf: np.ndarray, components: np.ndarray):
        self._tfidf = TfidfVectorizer(vocabulary=vocabulary, **_ANALYSER)
        self._tfidf.idf_ = idf.astype(np.float32)
        self._vocabulary = vocabulary
        self._components = components.astype(np.float32)  # [features, E]

    @property
    def operations(self) -> float:
        """See `Embedder`: of 64 words and as many pairs of them."""
        return 2.0 * 128 * self.width

    @property
    def width(self) -> int:
        """E."""
        return self._components.shape[1]

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Texts -> [n, E] float32 of length 1.

        A text of unknown words only lies opposite to the first component, which has one sign for nearly all texts:
        far from them. A vector of 0 would be nearer to many than what they have neighbours among.
        """
        if not len(texts):
            return np.empty((0, self.width), np.float32)
        weights = self._tfidf.transform(texts)
        vectors = np.asarray(safe_sparse_dot(weights, self._components))
        unknown = np.diff(weights.indptr) == 0
        vectors[unknown, 0] = -np.sign(self._components[:, 0].sum())
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        return np.ascontiguousarray(vectors / np.maximum(norms, 1e-6), np.float32)

    def save(self, directory: Path):
        """Writes vocabulary and matrices as JSON and safetensors; nothing in it is executed."""
        words = sorted(self._vocabulary, key=self._vocabulary.get)
        files.write(directory / "vocabulary.json", json.dumps(words))
        made = files.aside(directory / "tfidf.safetensors")
        arrays = {"idf": self._tfidf.idf_, "components": np.ascontiguousarray(self._components)}
        save_file(arrays, made)
        files.replace(made, directory / "tfidf.safetensors")

    @classmethod
    def fit(cls, settings: Settings, texts: Callable, count: int, out: Path, statistics=None):
        """Fits on a sample of the database's chunks, and writes what was learned."""
        progress.say("fitting the tfidf embedder")
        # One by one: rows of a bucket that are asked for together are read with all between them.
        sampled = [texts([row])[0] for row in sample(count)]
        fit_tfidf(sampled, settings.dim).save(out)

    @classmethod
    def open(cls, settings: Settings, directory: Path, chunk: int) -> "Tfidf":
        """The embedder that `save` wrote."""
        words = files.read_json(directory / "vocabulary.json", _ANEW)
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


def fit_tfidf(texts: Sequence[str], dim: int, seed: int = 0) -> Tfidf:
    """Fits a Tfidf embedder on a sample of the database's chunks.

    Raises:
      UserError: too few texts for `dim` dimensions.
    """
    tfidf = TfidfVectorizer(max_features=_FEATURES, min_df=min(2, len(texts)), **_ANALYSER)
    try:
        matrix = tfidf.fit_transform(texts)
    except ValueError as error:
        raise UserError(f"the tfidf embedder found no words in the corpus ({error})") from error
    if min(matrix.shape) <= dim:
        raise UserError(
            f"config field retrieval.settings.tfidf.dim = {dim}: the corpus has only {matrix.shape[0]} chunks and "
            f"{matrix.shape[1]} repeated words; give more text, or a dim below both"
        )
    svd = TruncatedSVD(dim, n_iter=4, random_state=seed).fit(matrix)
    vocabulary = {word: int(i) for word, i in tfidf.vocabulary_.items()}
    return Tfidf(vocabulary, tfidf.idf_, svd.components_.T)
