"""Exact search for few vectors, ScaNN for many: what is chosen where nothing is said."""

from pathlib import Path

import numpy as np

from retro_jax.retrieval.index import Given, Index
from retro_jax.retrieval.indexes import scann
from retro_jax.retrieval.indexes.exact import Exact

SCANN_FROM = 20_000  # vectors; below it exact search is fast enough and has no recall to lose


class Auto(Index):
    """Builds one of the others."""

    Settings = scann.Settings

    @classmethod
    def kind_for(cls, size: int) -> type[Index]:
        """ScaNN from SCANN_FROM vectors on, where it has a build."""
        return scann.Scann if size >= SCANN_FROM and scann.library() else Exact

    @classmethod
    def build(cls, vectors: np.ndarray, directory: Path, settings, given: Given) -> dict:
        """See `Index.build`."""
        return cls.kind_for(len(vectors)).build(vectors, directory, settings, given)
