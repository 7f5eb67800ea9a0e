"""Indexes of other libraries, tuned to a recall. Part of benchmarks/growth.py.

Each gives what searches 50 candidates of queries, the seconds and bytes that it took, and a note.
"""

import time

import common
import numpy as np
from larger import Data, recall

CANDIDATES = 50


class Numbered:
    """Chunks as lists of the numbers of their words, each made when it is read: all at once are gigabytes."""

    def __init__(self, words: np.ndarray, known: np.ndarray):
        self._words, self._known = words, known

    def __len__(self):
        return len(self._words)

    def __iter__(self):
        return (np.searchsorted(self._known, row[row >= 0]).tolist() for row in self._words)


def whole(data: Data) -> tuple:
    """bm25s, every posting of every word."""
    from bm25s import BM25

    start = time.perf_counter()
    known = data.statistics.words
    index = BM25()
    index.scores = index.build_index_from_ids(
        range(len(known)), Numbered(data.words, known), show_progress=False
    )
    seconds = time.perf_counter() - start

    def search(queries):
        out = np.full((len(queries), CANDIDATES), -1)
        for row, query in enumerate(queries):
            query = np.unique(query[query >= 0])
            at = np.minimum(np.searchsorted(known, query), len(known) - 1)
            at = at[known[at] == query]
            if len(at):
                scores = index.get_scores_from_ids(at)
                out[row] = np.argpartition(scores, len(scores) - CANDIDATES)[-CANDIDATES:]
        return out

    return search, seconds, sum(a.nbytes for a in index.scores.values() if hasattr(a, "nbytes")), ""


def by_faiss(data: Data, truth: np.ndarray, reached: float) -> tuple:
    """IVF-PQ with exact reordering, the fewest lists that reach a recall."""
    import faiss

    faiss.omp_set_num_threads(common.THREADS)
    start = time.perf_counter()
    width, lists = data.vectors.shape[1], int(4 * np.sqrt(len(data.vectors)))
    index = faiss.index_factory(width, f"IVF{lists},PQ{width // 2}x4fs,RFlat")
    index.train(data.vectors[np.random.default_rng(0).permutation(len(data.vectors))[: 64 * lists]])
    index.add(data.vectors)
    seconds = time.perf_counter() - start
    faiss.omp_set_num_threads(1)

    def searching(probes):
        parameters = faiss.IndexRefineSearchParameters(
            k_factor=4, base_index_params=faiss.SearchParametersIVF(nprobe=probes)
        )
        return lambda queries: index.search(queries, CANDIDATES, params=parameters)[1]

    probes = 1
    while recall(data.distances(searching(probes)(data.asked)), truth) < reached and probes < lists:
        probes *= 2
    return searching(probes), seconds, index.ntotal * (width * 4 + width // 4), f"nprobe {probes}"


def by_usearch(data: Data, truth: np.ndarray, reached: float) -> tuple:
    """HNSW, the narrowest beam that reaches a recall."""
    from usearch.index import Index

    start = time.perf_counter()
    index = Index(ndim=data.vectors.shape[1], metric="l2sq", dtype="f32")
    index.add(np.arange(len(data.vectors)), data.vectors, threads=common.THREADS)
    seconds = time.perf_counter() - start

    def search(queries):
        return index.search(queries, CANDIDATES, threads=1).keys.astype(np.int64)

    index.expansion_search = CANDIDATES
    while (
        recall(data.distances(search(data.asked)), truth) < reached
        and index.expansion_search < 4096
    ):
        index.expansion_search *= 2
    return search, seconds, index.memory_usage, f"beam {index.expansion_search}"
