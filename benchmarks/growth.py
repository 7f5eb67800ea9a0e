"""What a look-up costs as the database grows: ours beside bm25s, faiss and usearch, and the exponents.

    pip install -e '.[faiss,report]' bm25s==0.3.16 usearch==2.26.6
    python benchmarks/growth.py --source='jsonl:corpus.jsonl#text' --plot=growth.png
    python benchmarks/growth.py --smoke      # does it run?

The chunks are those of the quickstart's `prepare` of --source. Where there are fewer than a size, more are made:
the words of one chunk's first half and of another's second half, at random, so that words are as frequent
as in the text and no two chunks are the same; a chunk's vector is the sum of two vectors, of unit length again.
Queries are held-out chunks. Each size is a process of its own, and what it told is kept in WORKDIR/growth, so
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

SIZES = (50_000, 200_000, 1_000_000, 4_000_000)
K, CANDIDATES, BATCH = 10, 50, 1024
FORMATS = {"µs": ",.0f", "queries/s": ",.0f", "recall@10": ".3f", "build s": ",.0f", "MB": ",.0f"}


class Data:
    """The words [N, W] and vectors [N, E] of a database of any size, and of queries."""

    def __init__(self, prepared, size: int, queries: int):
        from retro_jax.retrieval import bm25

        rng = np.random.default_rng(0)
        own, held = prepared.words("train"), prepared.words("heldout")
        vectors, asked = prepared.searched("train"), prepared.searched("heldout")
        used = int((own[:4096] >= 0).sum(axis=1).max()) + 8
        rows = np.linspace(0, len(held) - 1, min(queries, len(held))).astype(int)
        self.queries, self.asked = np.asarray(held[rows]), np.asarray(asked[rows])
        many = max(0, size - len(own))
        one, two = (rng.integers(0, len(own), many) for _ in range(2))
        self.words = np.full((size, used), -1, np.int32)
        self.vectors = np.empty((size, vectors.shape[1]), np.float32)
        first = min(size, len(own))
        self.words[:first], self.vectors[:first] = own[:first, :used], vectors[:first]
        for begin in range(0, many, 2**16):
            at = slice(begin, begin + 2**16)
            out = slice(first + begin, first + min(many, begin + 2**16))
            self.words[out] = _mixed(own[one[at], :used], own[two[at], :used])
            both = vectors[one[at]] + vectors[two[at]]
            norms = np.linalg.norm(both, axis=1, keepdims=True)
            self.vectors[out] = both / np.maximum(norms, 1e-6)
        self.statistics = bm25.statistics(self.words)


def _mixed(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The first half of the words of one chunk and the second half of another's, words at the front."""
    width = first.shape[1]
    half = [(x >= 0).sum(axis=1, keepdims=True) // 2 for x in (first, second)]
    place = np.arange(width)
    a = np.where(place < half[0], first, -1)
    b = np.where((place >= half[1]) & (second >= 0), second, -1)
    both = np.concatenate([a, b], axis=1)
    order = np.argsort(both < 0, axis=1, kind="stable")[:, :width]
    return np.take_along_axis(both, order, 1)


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


def recall(ids: np.ndarray, truth: np.ndarray) -> float:
    """Share of the ten best that are among the candidates."""
    found = [len(set(a) & set(b[b >= 0])) / max(1, (b >= 0).sum()) for a, b in zip(ids, truth)]
    return float(np.mean(found))


def by_score(data: Data) -> np.ndarray:
    """The ten best of a query by exact BM25, of all chunks [Q, 10]."""
    from scipy import sparse

    from retro_jax.retrieval.bm25 import pairs

    known = np.unique(data.queries[data.queries >= 0])
    asked = [np.searchsorted(known, np.unique(q[q >= 0])) for q in data.queries]
    ends = np.cumsum([0, *map(len, asked)])
    wants = sparse.csr_array((np.ones(ends[-1], np.float32), np.concatenate(asked), ends),
                             (len(asked), len(known)))  # fmt: skip
    best = np.zeros((len(asked), 0)), np.zeros((len(asked), 0), int)
    for begin in range(0, len(data.words), 2**15):
        made = pairs(data.words[begin : begin + 2**15], data.statistics)
        at = np.minimum(np.searchsorted(known, made.word), len(known) - 1)
        has = known[at] == made.word
        value = made.saturation[has] * data.statistics.idf(made.word[has])
        size = len(data.words[begin : begin + 2**15])
        block = sparse.csr_array((value, (at[has], made.chunk[has])), (len(known), size))
        scores = (wants @ block).toarray()
        top = np.argpartition(-scores, min(K, size - 1), axis=1)[:, :K]
        scores = np.concatenate([best[0], np.take_along_axis(scores, top, 1)], axis=1)
        ids = np.concatenate([best[1], top + begin], axis=1)
        keep = np.argsort(-scores, axis=1, kind="stable")[:, :K]
        best = np.take_along_axis(scores, keep, 1), np.take_along_axis(ids, keep, 1)
    return best[1]


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


def whole(data: Data) -> tuple:
    """bm25s, every posting of every word."""
    from bm25s import BM25

    start = time.perf_counter()
    known = np.unique(data.words)
    known = known[known >= 0]
    numbers = [np.searchsorted(known, row[row >= 0]).tolist() for row in data.words]
    index = BM25()
    index.index((numbers, {str(i): i for i in range(len(known))}), show_progress=False)
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


def by_faiss(data: Data, truth, reached: float) -> tuple:
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
    while recall(searching(probes)(data.asked), truth) < reached and probes < lists:
        probes *= 2
    return searching(probes), seconds, index.ntotal * (width * 4 + width // 4), f"nprobe {probes}"


def by_usearch(data: Data, truth, reached: float) -> tuple:
    """HNSW, the narrowest beam that reaches a recall."""
    from usearch.index import Index

    start = time.perf_counter()
    index = Index(ndim=data.vectors.shape[1], metric="l2sq", dtype="f32")
    index.add(np.arange(len(data.vectors)), data.vectors, threads=common.THREADS)
    seconds = time.perf_counter() - start

    def search(queries):
        return index.search(queries, CANDIDATES, threads=1).keys.astype(np.int64)

    index.expansion_search = CANDIDATES
    while recall(search(data.asked), truth) < reached and index.expansion_search < 4096:
        index.expansion_search *= 2
    return search, seconds, index.memory_usage, f"beam {index.expansion_search}"


def measure(args, size: int) -> list[dict]:
    """The rows of one size."""
    from by_faiss import threads

    from retro_jax.config import RetrievalConfig
    from retro_jax.retrieval.bm25 import Statistics  # noqa: F401 - what `Data` has
    from retro_jax.retrieval.embedders.lexical import Lexical
    from retro_jax.retrieval.indexes.exact import Exact
    from retro_jax.retrieval.ranking import Queries, Ranking

    data, rows = Data(common.prepare(args, "reranked"), size, args.queries), []

    def row(name, made, queries, truth):
        search, seconds, held, note = made
        threads(1)
        ids, micros = timed(search, queries, args.rounds)
        threads(common.THREADS)
        rows.append({
            "way": name, "chunks": size, "µs": micros, "queries/s": 1e6 / micros,
            "recall@10": recall(ids, truth), "build s": seconds, "MB": held / 1e6, "note": note,
        })  # fmt: skip
        print(rows[-1], file=sys.stderr, flush=True)
        return ids

    with tempfile.TemporaryDirectory(dir=args.workdir) as root:

        def out(name):
            path = Path(root, name)
            path.mkdir()
            return path

        truth = by_score(data)
        lists = ours(data.words, data, out("lists"), "words", "bm25", size)
        ids = row("lists", lists, data.queries, truth)
        ranking = Ranking.of(RetrievalConfig(), data.statistics)
        asked, near = Queries(data.queries, data.queries), (ids, np.zeros(ids.shape))

        def rerank(queries):
            del queries
            return ranking.order(asked, data.words, near, K)[0]

        started = [time.perf_counter()]
        for _ in range(args.rounds):
            best = rerank(None)
            started.append(time.perf_counter())
        micros = 1e6 * statistics.median(np.diff(started)) / len(data.queries)
        rows.append({
            "way": "re-ranking", "chunks": size, "µs": micros, "queries/s": 1e6 / micros,
            "recall@10": recall(best, truth), "build s": None, "MB": None, "note": "of the lists' 50",
        })  # fmt: skip
        if common.installed("bm25s", "bm25s"):
            row("BM25, whole", whole(data), data.queries, truth)
        if size <= args.sketches:
            made = Lexical(512, data.statistics)
            blocks = (data.words[i : i + 2**14] for i in range(0, size, 2**14))
            sketches = np.concatenate([made.embed(b) for b in blocks])
            found = ours(sketches, data, out("sketch"), "lexical", "scann", size)
            row("sketch", found, made.embed(data.queries), truth)
            del sketches, found
        near = Exact(data.vectors).search(data.asked, K)[0]
        routed = ours(data.vectors, data, out("routed"), "tfidf", "scann", args.partition)
        row("routed", routed, data.asked, near)
        reached = rows[-1]["recall@10"]
        if size <= args.graphs:
            row(
                "ScaNN",
                ours(data.vectors, data, out("scann"), "tfidf", "scann", size),
                data.asked,
                near,
            )
        if common.installed("faiss", "faiss"):
            row("faiss", by_faiss(data, near, reached), data.asked, near)
        if size <= args.graphs and common.installed("usearch", "usearch"):
            row("usearch", by_usearch(data, near, reached), data.asked, near)
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
