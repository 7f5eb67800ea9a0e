"""faiss: inverted lists of product-quantized vectors, compared exactly at the end (Douze et al. 2024).

For who has it already, or no ScaNN: `pip install 'retro_jax[faiss]'`.
"""

import importlib.util
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from retro_jax.config.fields import require_share, setting
from retro_jax.errors import UserError
from retro_jax.retrieval.index import Given, Index, checked, nothing
from retro_jax.retrieval.indexes.exact import Exact
from retro_jax.retrieval.indexes.truth import Truth

_NEEDS = 1000  # vectors; its quantizer cannot be trained on fewer than some hundreds
_COMPARED = 100  # candidates that are compared exactly, at least
_FILE = "index.faiss"


@dataclass(frozen=True)
class Settings:
    """The fields `retrieval.settings.faiss.*`."""

    min_recall: float = setting(
        0.9, "recall@k against exact search on a sample; below it, prepare fails"
    )

    def __post_init__(self):
        require_share("retrieval.settings.faiss.", self, "min_recall")


class Faiss(Index):
    """About 4 sqrt(N) lists, 4 bits for every two numbers, exact reordering."""

    Settings = Settings
    approximate, small = True, "faiss"
    growth = 0.47  # benchmarks/growth.py, as ScaNN's

    @classmethod
    def check(cls, settings):
        """Raises UserError if faiss is not installed."""
        if not importlib.util.find_spec("faiss"):
            raise UserError(
                "config field retrieval.index = 'faiss': faiss is not installed; "
                "pip install 'retro_jax[faiss]', or give auto"
            )

    @classmethod
    def build(cls, vectors: np.ndarray, directory: Path, settings, given: Given) -> dict:
        """See `Index.build`; of fewer than a thousand vectors the index is exact."""
        size, width = vectors.shape
        if size < _NEEDS:
            return Exact.build(vectors, directory, settings, given)
        import faiss

        lists = min(int(4 * np.sqrt(size)), size // 39)  # faiss wants 39 vectors to train one
        quantized = f"PQ{width // 2}x4fs" if width % 2 == 0 else f"PQ{width}x4fs"
        made = faiss.index_factory(width, f"IVF{lists},{quantized},RFlat")
        made.train(vectors)
        made.add(vectors)
        probes, compared, recall = 1, max(_COMPARED, 4 * given.k), None
        index = cls(made, lists, probes, compared)
        measure = Truth(vectors, given.k).recall_of if given.tuned else None
        # First more lists, then more candidates; what is searched is time.
        while measure and (recall := measure(index)) < settings.min_recall:
            if probes < lists:
                probes = min(lists, 2 * probes)
            elif compared < size:
                compared *= 2
            else:
                raise UserError(
                    f"config field retrieval.settings.faiss.min_recall = {settings.min_recall}: the faiss index "
                    f"reaches recall@{given.k} {recall:.3f} with everything searched; lower it or use "
                    "retrieval.index = 'exact'"
                )
            index = cls(made, lists, probes, compared)
        faiss.write_index(made, str(directory / _FILE))
        report = {"kind": "faiss", "recall": recall, "lists": lists}
        return report | {"probes": probes, "compared": compared}

    @classmethod
    def open(cls, directory: Path, report: dict) -> "Faiss":
        """Reads the whole index into memory."""
        cls.check(None)
        import faiss

        made = faiss.read_index(str(directory / _FILE))
        return cls(made, report["lists"], report["probes"], report["compared"])

    def again(self, vectors: np.ndarray, settings, given: Given) -> tuple[str, bool]:
        """Its recall, measured again."""
        recall = Truth(vectors, given.k).recall_of(self)
        return f"recall {recall:.3f}", recall >= settings.min_recall

    def __init__(self, index, lists: int, probes: int, compared: int):
        self._index, self._lists, self._probes, self._compared = index, lists, probes, compared

    def __len__(self) -> int:
        return self._index.ntotal

    def wide(self, share: float) -> "Faiss":
        """See `Index.wide`."""
        compared = max(_COMPARED, int(share**3 * len(self)))
        return Faiss(self._index, self._lists, math.ceil(share * self._lists), compared)

    def operations(self, k: int) -> float:
        """See `Index.operations`: products with the lists' centres, tables of products with the 16 codes of every two
        numbers, a sum over the codes of each vector in the lists, products with the candidates."""
        lists = max(self._probes, math.ceil(min(1.0, 10 * k / len(self)) * self._lists))
        compared = min(len(self), max(4 * k, self._compared))
        summed = lists / self._lists * len(self) / 2
        return self._index.d * (2.0 * (self._lists + 16 + compared) + summed)

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """queries [Q, E] -> ids [Q, k] int64, distances [Q, k] float32."""
        import faiss

        queries = checked(queries, self._index.d)
        ids, distances = nothing(len(queries), k)
        found = min(k, len(self))
        if not found or not len(queries):
            return ids, distances
        # Whoever asks for many neighbours is about to discard most: lists in proportion, see scann.py.
        share = min(1.0, 10 * found / len(self))
        lists = faiss.SearchParametersIVF(
            nprobe=max(self._probes, int(np.ceil(share * self._lists)))
        )
        wide = faiss.IndexRefineSearchParameters(
            k_factor=min(max(4, self._compared / found), len(self) / found), base_index_params=lists
        )
        d, near = self._index.search(queries, found, params=wide)
        ids[:, :found] = near
        distances[:, :found] = np.where(near < 0, np.inf, np.maximum(d, 0))
        return ids, distances
