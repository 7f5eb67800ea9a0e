"""What a look-up costs as the database grows: ours beside bm25s, faiss and usearch, and the exponents.

    pip install -e '.[faiss,report]' bm25s==0.3.16 usearch==2.26.6
    python benchmarks/growth.py --source='jsonl:corpus.jsonl#text' --plot=growth.png
    python benchmarks/growth.py --smoke      # does it run?

The chunks are those of the quickstart's `prepare` of --source, and more made of them (larger.py). Queries are
held-out chunks. Each size is a process of its own, and what it told is kept in WORKDIR/growth, so
that a run goes on where it was stopped.

Every way finds 50 candidates, in batches of 1,024 queries, on one thread:

  lists            bm25, 4,096 postings a query
  BM25, whole      bm25s: every posting of every word of a query; what this project did before
  sketch           lexical, 512 numbers, ScaNN's hashes without a tree (up to --sketches chunks: memory)
  routed           TF-IDF vectors, partitions of --partition vectors, each with a ScaNN index
  ScaNN            the same vectors, one index
  faiss, usearch   the same vectors: IVF-PQ with exact reordering, and HNSW, tuned to the recall of `routed`
                   (up to --graphs chunks: a graph of 4 million takes an hour to build)

Recall is of the 10 nearest against exact search (of words: against exact BM25). Re-ranking 50 candidates is
timed apart. The exponent is the slope of log microseconds over log chunks, by least squares.
"""

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import common
import numpy as np
from larger import Data, K, recall

SIZES = (50_000, 100_000, 200_000, 1_000_000, 4_000_000)
CANDIDATES, BATCH = 50, 1024
FORMATS = {"µs": ",.0f", "queries/s": ",.0f", "recall@10": ".3f", "build s": ",.0f", "MB": ",.0f"}


def timed(search: Callable[[np.ndarray], np.ndarray], queries: np.ndarray, rounds: int):
    """(ids [Q, 50], median microseconds a query)."""
    seconds, ids = [], []
    search(queries[:64])
    for _ in range(rounds):
        start, ids = time.perf_counter(), []
        for begin in range(0, len(queries), BATCH):
            ids.append(search(queries[begin : begin + BATCH]))
        seconds.append(time.perf_counter() - start)
    return np.concatenate(ids), 1e6 * statistics.median(seconds) / len(queries)


def ours(column, data: Data, out: Path, embedder: str, index: str, shard: int, **settings) -> tuple:
    """(search, seconds of building, bytes) of one of our indexes."""
    from retro_jax.config import RetrievalConfig
    from retro_jax.retrieval import division, sharded
    from retro_jax.retrieval.embedder import EMBEDDERS
    from retro_jax.retrieval.index import Given

    config = RetrievalConfig(embedder=embedder, index=index, index_shard=shard, settings=settings)
    given = Given(CANDIDATES, EMBEDDERS[embedder].clusters, data.statistics)
    start = time.perf_counter()
    report = division.build(column, out, config, given)
    seconds = time.perf_counter() - start
    opened = sharded.ShardedIndex(out)
    note = f"{report['probes']} of {report['shards']} partitions" if report["probes"] else ""

    def search(queries):
        return opened.each(
            queries, CANDIDATES, lambda shard, rows: _one_thread(shard, queries[rows])
        )[0]

    return search, seconds, common.size(out), note


def _one_thread(shard, queries):
    """A shard's answer, in batches that ScaNN does not hand out to threads."""
    from retro_jax.retrieval.indexes import scann

    found = []
    for begin in range(0, len(queries), scann._BATCH):
        ids, distances = shard.search(queries[begin : begin + scann._BATCH], CANDIDATES)
        found.append((shard.numbers(ids), distances))
    return tuple(np.concatenate(x) for x in zip(*found))


def reranked(data: Data, found: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """A function from numbers of queries to their ten best candidates, of those that were found [Q, 50]."""
    from retro_jax.config import RetrievalConfig
    from retro_jax.retrieval.ranking import Queries, Ranking

    ranking = Ranking.of(RetrievalConfig(), data.statistics)
    queries, distances = Queries(data.queries, data.queries), np.zeros(found.shape)
    return lambda rows: ranking.order(
        queries.rows(rows), data.words, (found[rows], distances[rows]), K
    )[0]


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


def measure(args, size: int) -> list[dict]:
    """The rows of one size."""
    from by_faiss import threads

    from retro_jax.retrieval.embedders.lexical import Lexical

    data, rows = Data(common.prepare(args, "reranked"), size, args.queries), []
    best, nearest = data.best(), data.nearest()
    by_words, by_vectors = (data.scores, best), (data.distances, nearest)

    def row(way, made, queries, judged) -> np.ndarray:
        search, seconds, held, note = made
        threads(1)
        ids, micros = timed(search, queries, args.rounds)
        threads(common.THREADS)
        rows.append({
            "way": way, "chunks": size, "µs": micros, "queries/s": 1e6 / micros,
            "recall@10": recall(judged[0](ids), judged[1]),
            "build s": seconds, "MB": held / 1e6, "note": note,
        })  # fmt: skip
        return ids

    with tempfile.TemporaryDirectory(dir=args.workdir) as root:

        def built(name, column, embedder, index, shard):
            (out := Path(root, name)).mkdir()
            return ours(column, data, out, embedder, index, shard)

        lists = built("lists", data.words, "words", "bm25", size)
        found = row("lists", lists, data.queries, by_words)
        rerank = reranked(data, found), 0, 0, "of the 50 of the lists"
        row("re-ranking", rerank, np.arange(len(found)), by_words)
        if common.installed("bm25s", "bm25s"):
            row("BM25, whole", whole(data), data.queries, by_words)
        if size <= args.sketches:
            lexical = Lexical(512, data.statistics)
            blocks = (data.words[i : i + 2**14] for i in range(0, size, 2**14))
            sketches = np.concatenate([lexical.embed(b) for b in blocks])
            sketch = built("sketch", sketches, "lexical", "scann", size)
            row("sketch", sketch, lexical.embed(data.queries), by_words)
            del sketches, sketch
        routed = built("routed", data.vectors, "tfidf", "scann", args.partition)
        row("routed", routed, data.asked, by_vectors)
        reached = rows[-1]["recall@10"]
        if size <= args.graphs:
            one = built("scann", data.vectors, "tfidf", "scann", size)
            row("ScaNN", one, data.asked, by_vectors)
        if common.installed("faiss", "faiss"):
            row("faiss", by_faiss(data, nearest, reached), data.asked, by_vectors)
        if size <= args.graphs and common.installed("usearch", "usearch"):
            row("usearch", by_usearch(data, nearest, reached), data.asked, by_vectors)
    return rows


def exponents(rows: list[dict]) -> list[dict]:
    """A row for each way: how its microseconds grow with the chunks."""
    out = []
    for way in dict.fromkeys(r["way"] for r in rows):
        own = [r for r in rows if r["way"] == way]
        if len(own) > 1:
            x, y = (np.log([r[n] for r in own]) for n in ("chunks", "µs"))
            first, last = own[0], own[-1]
            out.append({
                "way": way, "exponent": float(np.polyfit(x, y, 1)[0]),
                "from": f"{first['chunks']:,}", "to": f"{last['chunks']:,}",
                "times as long": last["µs"] / first["µs"],
            })  # fmt: skip
    return out


def plot(rows: list[dict], file: Path):
    """Microseconds over chunks, a line for each way."""
    from matplotlib.figure import Figure

    figure = Figure((8, 5), layout="constrained")
    axes = figure.subplots()
    for way in dict.fromkeys(r["way"] for r in rows):
        own = [r for r in rows if r["way"] == way]
        axes.plot([r["chunks"] for r in own], [r["µs"] for r in own], "o-", label=way)
    axes.set(xscale="log", yscale="log", xlabel="chunks of the database",
             ylabel="microseconds a query, one thread")  # fmt: skip
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(file, dpi=120)


def main():
    parser = common.parser(__doc__)
    parser.add_argument("--sizes", type=int, nargs="*", default=SIZES, metavar="CHUNKS")
    parser.add_argument("--queries", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--partition", type=int, default=50_000, help="vectors in memory at a time")
    parser.add_argument("--sketches", type=int, default=1_000_000)
    parser.add_argument("--graphs", type=int, default=1_000_000)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--worker", type=int, help="for itself")
    args = common.parse(parser, sizes=(300, 900), queries=64, partition=150)
    if args.worker:
        return common.serve({"measure": lambda: measure(args, args.worker)})
    rows, kept = [], args.workdir / "growth"
    kept.mkdir(parents=True, exist_ok=True)
    given = [a for a in sys.argv[1:] if not a.startswith("--json")]
    for size in args.sizes:
        file = kept / f"{size}.json"
        if not file.exists():
            worker = common.Worker(*given, f"--worker={size}")
            file.write_text(json.dumps(worker.ask("measure")["result"]))
            worker.close()
        rows += json.loads(file.read_text())
    tables = {"growth": exponents(rows)}
    tables |= {f"{size:,} chunks": [r for r in rows if r["chunks"] == size] for size in args.sizes}
    common.show(
        tables, FORMATS | {"exponent": ".2f", "times as long": ".2f", "chunks": ",d"}, args.json
    )
    if args.plot:
        plot(rows, args.plot)
    return None


if __name__ == "__main__":
    main()
