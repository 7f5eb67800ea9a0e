"""What a look-up costs as the database grows: ours beside bm25s, faiss and usearch, and the exponents.

    pip install -e '.[faiss,report]' bm25s==0.3.16 usearch==2.26.6
    python benchmarks/growth.py --source='jsonl:corpus.jsonl#text' --plot=growth.png
    python benchmarks/growth.py --smoke      # does it run?

The chunks are those of the quickstart's `prepare` of --source, and more made of them (larger.py). Queries are
held-out chunks. Each size is a process of its own, and each row is kept in WORKDIR/growth, so that a run goes on
where it was stopped.

Every way finds 50 candidates, in batches of 1,024 queries, on one thread:

  lists            bm25, 4,096 postings a query
  BM25, whole      bm25s: every posting of every word of a query; what this project did before
  sketch           lexical, 512 numbers, ScaNN's hashes without a tree (up to --memory chunks)
  routed           TF-IDF vectors, partitions of --partition vectors, each with a ScaNN index
  ScaNN            the same vectors, one index
  faiss, usearch   the same vectors: IVF-PQ with exact reordering, and HNSW, tuned to the recall of `routed`
                   (a graph of 4 million takes an hour to build)

Recall is of the 10 nearest against exact search (of words: against exact BM25). Re-ranking 50 candidates is
timed apart. The exponent is the slope of log microseconds over log chunks, by least squares.
"""

import functools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import common
import numpy as np
import others
from by_faiss import threads
from larger import Data, K, recall

from retro_jax.config import RetrievalConfig
from retro_jax.retrieval import division, sharded
from retro_jax.retrieval.embedder import EMBEDDERS
from retro_jax.retrieval.embedders.lexical import Lexical
from retro_jax.retrieval.index import Given
from retro_jax.retrieval.indexes import scann
from retro_jax.retrieval.ranking import Queries, Ranking

SIZES = (50_000, 100_000, 200_000, 1_000_000, 4_000_000)
BATCH = 1024
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
    config = RetrievalConfig(embedder=embedder, index=index, index_shard=shard, settings=settings)
    given = Given(others.CANDIDATES, EMBEDDERS[embedder].clusters, data.statistics)
    start = time.perf_counter()
    report = division.build(column, out, config, given)
    seconds = time.perf_counter() - start
    opened = sharded.ShardedIndex(out)
    note = ""
    if report["probes"]:
        note = f"{report['probes']:.1f} of {report['shards']} partitions, {report['share']:.3f} of each"

    def search(queries):
        return opened.each(
            queries, others.CANDIDATES, lambda shard, rows: _one_thread(shard, queries[rows])
        )[0]

    return search, seconds, common.size(out), note


def _one_thread(shard, queries):
    """A shard's answer, in batches that ScaNN does not hand out to threads."""
    found = []
    for begin in range(0, len(queries), scann._BATCH):
        ids, distances = shard.search(queries[begin : begin + scann._BATCH], others.CANDIDATES)
        found.append((shard.numbers(ids), distances))
    return tuple(np.concatenate(x) for x in zip(*found))


def reranked(data: Data, found: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """A function from numbers of queries to their ten best candidates, of those that were found [Q, 50]."""
    ranking = Ranking.of(RetrievalConfig(), data.statistics)
    queries, distances = Queries(data.queries, data.queries), np.zeros(found.shape)
    return lambda rows: ranking.order(
        queries.rows(rows), data.words, (found[rows], distances[rows]), K
    )[0]


class Ways:
    """The ways of a database of so many chunks. A method gives what searches, the queries, whether words or vectors
    say what is best, the seconds and the bytes that the index took, and a note."""

    def __init__(self, args, size: int, root: Path):
        self.args, self.size, self.root = args, size, root
        self.data = Data(common.prepare(args, "reranked"), size, args.queries)
        self.truth = {
            True: functools.cache(self.data.best),
            False: functools.cache(self.data.nearest),
        }

    def built(self, column: np.ndarray, embedder: str, index: str, shard: int) -> tuple:
        """One of our indexes."""
        return ours(
            column, self.data, Path(tempfile.mkdtemp(dir=self.root)), embedder, index, shard
        )

    def lists(self):
        found = self.built(self.data.words, "words", "bm25", self.size)
        return found[0], self.data.queries, True, *found[1:]

    def reranking(self):
        search, queries, *_ = self.lists()
        rerank = reranked(self.data, search(queries))
        return rerank, np.arange(len(queries)), True, 0, 0, "of the 50 of the lists"

    def whole(self):
        search, *cost = others.whole(self.data)
        return search, self.data.queries, True, *cost

    def sketch(self):
        lexical = Lexical(512, self.data.statistics)
        blocks = (self.data.words[i : i + 2**14] for i in range(0, self.size, 2**14))
        sketches = np.concatenate([lexical.embed(b) for b in blocks])
        search, *cost = self.built(sketches, "lexical", "scann", self.size)
        return search, lexical.embed(self.data.queries), True, *cost

    def routed(self):
        search, *cost = self.built(self.data.vectors, "tfidf", "scann", self.args.partition)
        return search, self.data.asked, False, *cost

    def scann(self):
        search, *cost = self.built(self.data.vectors, "tfidf", "scann", self.size)
        return search, self.data.asked, False, *cost

    def faiss(self):
        search, *cost = others.by_faiss(self.data, self.truth[False](), self.reached())
        return search, self.data.asked, False, *cost

    def usearch(self):
        search, *cost = others.by_usearch(self.data, self.truth[False](), self.reached())
        return search, self.data.asked, False, *cost

    def reached(self) -> float:
        """The recall that the routed index has."""
        return json.loads(kept(self.args, self.size, "routed").read_text())["recall@10"]

    def row(self, way: str) -> dict:
        """What is measured of a way."""
        search, queries, by_words, seconds, held, note = WAYS[way](self)
        threads(1)
        ids, micros = timed(search, queries, self.args.rounds)
        threads(common.THREADS)
        found = self.data.scores(ids) if by_words else self.data.distances(ids)
        reached = recall(found, self.truth[by_words]())
        return {
            "way": way, "chunks": self.size, "µs": micros, "queries/s": 1e6 / micros,
            "recall@10": reached, "build s": seconds, "MB": held / 1e6, "note": note,
        }  # fmt: skip


WAYS = {
    "lists": Ways.lists,
    "re-ranking": Ways.reranking,
    "BM25, whole": Ways.whole,
    "sketch": Ways.sketch,
    "routed": Ways.routed,
    "ScaNN": Ways.scann,
    "faiss": Ways.faiss,
    "usearch": Ways.usearch,
}
NEEDS = {"BM25, whole": "bm25s", "faiss": "faiss", "usearch": "usearch"}


def kept(args, size: int, way: str) -> Path:
    """Where a row is kept."""
    return args.workdir / "growth" / f"{size} {way}.json"


def measure(args, size: int) -> list[str]:
    """Measures the ways that are not kept yet; returns those that were asked for."""
    ways = [w for w in args.ways if w not in NEEDS or common.installed(w, NEEDS[w])]
    ways = [w for w in ways if w not in ("sketch", "ScaNN", "usearch") or size <= args.memory]
    missing = [w for w in ways if not kept(args, size, w).exists()]
    if missing:
        with tempfile.TemporaryDirectory(dir=args.workdir) as root:
            made = Ways(args, size, Path(root))
            for way in missing:
                kept(args, size, way).write_text(json.dumps(made.row(way)))
    return ways


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
    parser.add_argument("--ways", nargs="*", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--memory", type=int, default=1_000_000,
                        help="chunks of which sketches, one ScaNN index and a graph are tried")  # fmt: skip
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--worker", type=int, help="for itself")
    args = common.parse(parser, sizes=(300, 900), queries=64, partition=150)
    if args.worker:
        return common.serve({"measure": lambda: measure(args, args.worker)})
    (args.workdir / "growth").mkdir(parents=True, exist_ok=True)
    rows, given = [], [a for a in sys.argv[1:] if not a.startswith("--json")]
    for size in args.sizes:
        worker = common.Worker(*given, f"--worker={size}")
        ways = worker.ask("measure")["result"]
        worker.close()
        rows += [json.loads(kept(args, size, way).read_text()) for way in ways]
    grown = exponents(rows)
    tables = {"growth": grown} if grown else {}
    tables |= {f"{size:,} chunks": [r for r in rows if r["chunks"] == size] for size in args.sizes}
    common.show(
        tables, FORMATS | {"exponent": ".2f", "times as long": ".2f", "chunks": ",d"}, args.json
    )
    if args.plot:
        plot(rows, args.plot)
    return None


if __name__ == "__main__":
    main()
