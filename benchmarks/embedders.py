"""How much of what comes next the neighbours of each retriever hold, and what finding them takes.

    pip install -e '.[report]' bm25s==0.3.16
    python benchmarks/embedders.py --source='jsonl:corpus.jsonl#text' --bert=DIRECTORY --plot=quality.png
    python benchmarks/embedders.py --smoke      # does it run? little text, a BERT with random weights

On the chunk tables of the quickstart's `prepare`: the first --chunks training chunks (all without it)
are the database; a query is a held-out chunk that has a next chunk in its document (all of them, or
--queries, evenly spread); held-out documents are never in the database. Every retriever gives k = 2:
BM25 with whole lists (bm25s, what this project searched with before), lists of bounded length, sketches,
TF-IDF and a BERT, with and without re-ranking by BM25; random draws chunks of the database. RETRO
predicts a query's *next* chunk with the neighbours and their continuations [N, F]; so what is measured is
what these hold of the next chunk:

  run      tokens of the longest run that the next chunk shares with one neighbour
  held     share of the next chunk's distinct tokens that occur in the neighbours
  rare     the same of its rare tokens: in fewer than 1 % of the database's chunks. Frequent ones occur
           anywhere; this is the honest part
  margin   `rare` less what random neighbours have

Means over queries (`rare` over those that have a rare token), with 95 % intervals: a bootstrap over
documents, the same resamples for all. Chunks a second are embedded after the fit; a BERT's first batches
compile. Microseconds a query are of batches of 1,024 in this process, with the threads that each takes
(search of vectors: all; words and re-ranking: one).
"""

import functools
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import common
import numpy as np

from retro_jax import progress
from retro_jax.config import RetrievalConfig
from retro_jax.corpus.tokenizer import BOS, EOS, PAD
from retro_jax.evaluate.overlap import runs
from retro_jax.pipeline.prepared import Prepared
from retro_jax.retrieval import bm25, division, words
from retro_jax.retrieval.embedder import EMBEDDERS, settings_of
from retro_jax.retrieval.encoder import Encoder
from retro_jax.retrieval.index import Given
from retro_jax.retrieval.ranking import Ranking
from retro_jax.retrieval.sharded import ShardedIndex
from retro_jax.train.sharding import set_up_cpu

K, RARE, BLOCK, RESAMPLES = 2, 0.01, 1024, 1000
DEVICES = 2  # that a BERT is spread over, as in the experiments
FORMATS = {
    "chunks/s": ",.0f",
    "candidates µs": ",.0f",
    "rerank µs": ",.0f",
    "run": ".2f",
    "held": ".4f",
    "rare": ".4f",
}


class Data:
    """The database and the queries.

    database, queries: rows of the training and of the held-out chunk table.
    """

    def __init__(self, prepared: Prepared, count: int | None, asked: int | None):
        self.train, self.heldout = prepared.table("train"), prepared.table("heldout")
        self.pieces = prepared.tokenizer
        self.vocab = self.pieces.vocab
        self.database = np.arange(min(count or len(self.train), len(self.train)))
        queries = np.flatnonzero(np.asarray(self.heldout.continuation) >= 0)
        spread = np.linspace(0, len(queries) - 1, min(asked or len(queries), len(queries)))
        self.queries = queries[spread.astype(int)]
        self.documents = np.asarray(self.heldout.document)[self.queries]
        self.next = self.heldout.rows(np.asarray(self.heldout.continuation)[self.queries])
        self.rare = self._frequency() < RARE * len(self.database)
        self.rare[[PAD, BOS, EOS]] = False

    @functools.cached_property
    def statistics(self) -> bm25.Statistics:
        """Of the words of the database."""
        texts = (self.train.texts_of(self.pieces, rows) for rows in _blocks(self.database))
        width = words.width_of(self.train.chunk)
        return bm25.statistics(np.concatenate([words.words_of(t, width) for t in texts]))

    def _frequency(self) -> np.ndarray:
        """In how many chunks of the database each token occurs."""
        found = np.zeros(self.vocab, np.int64)
        with progress.bar("counting tokens", len(self.database)) as advance:
            for rows in _blocks(self.database):
                found += _occurs(self.train.tokens[rows], self.vocab).sum(axis=0)
                advance(len(rows))
        return found


def neighbours(data: Data, config: RetrievalConfig, out: Path) -> dict:
    """ids [Q, K], and what it took: rows embedded a second, and microseconds a query."""
    texts = {
        "database": (data.train, data.database), "queries": (data.heldout, data.queries),
    }  # fmt: skip
    statistics = data.statistics
    kind, chunk = EMBEDDERS[config.embedder], data.train.chunk
    if kind.gives == "vectors":
        kind.fit(
            settings_of(config),
            lambda rows: data.train.texts_of(data.pieces, data.database[rows]),
            len(data.database), out, statistics,
        )  # fmt: skip
    encoder, made, start = Encoder(config, out, chunk), {}, time.perf_counter()
    total = len(data.database) + len(data.queries)
    with progress.bar("embedding chunks", total) as advance:
        for name, (table, chosen) in texts.items():
            parts = []
            for rows in _blocks(chosen):
                parts.append(encoder(table.texts_of(data.pieces, rows)))
                advance(len(rows))
            made[name] = {n: np.concatenate([p[n] for p in parts]) for n in parts[0]}
    embedded = time.perf_counter() - start
    ranking = Ranking.of(config, statistics)
    given = Given(ranking.fetch(K), kind.clusters, statistics)
    (out / "index").mkdir()
    division.build(made["database"][encoder.searched], out / "index", config, given)
    opened, queries = ShardedIndex(out / "index"), encoder.as_queries(made["queries"])
    opened.search(
        queries.searched[:BLOCK], ranking.fetch(K)
    )  # what is compiled, and read from disk
    ids, searching, ordering = [], 0.0, 0.0
    for rows in _blocks(np.arange(len(data.queries))):
        part, start = queries.rows(rows), time.perf_counter()
        found = opened.search(part.searched, ranking.fetch(K))
        searching, start = searching + time.perf_counter() - start, time.perf_counter()
        ids.append(ranking.order(part, made["database"].get("words"), found, K)[0])
        ordering += time.perf_counter() - start
    return {
        "ids": np.concatenate(ids), "chunks/s": total / embedded,
        "candidates µs": 1e6 * searching / len(data.queries),
        "rerank µs": 1e6 * ordering / len(data.queries) if ranking.candidates else None,
    }  # fmt: skip


def whole(data: Data, split: Callable[[str], list[str]]) -> dict:
    """BM25 with whole lists, by the bm25s library, each different word of a query once."""
    from bm25s import BM25

    known: dict[str, int] = {}
    words = [
        [known.setdefault(w, len(known)) for w in split(text)]
        for rows in _blocks(data.database)
        for text in data.train.texts_of(data.pieces, rows)
    ]
    index = BM25()
    index.index((words, {str(i): i for i in range(len(known))}), show_progress=False)
    asked = [
        np.array(sorted({known[w] for w in split(text) if w in known}), np.int64)
        for text in data.heldout.texts_of(data.pieces, data.queries)
    ]
    ids, start = np.full((len(asked), K), -1), time.perf_counter()
    for row, query in enumerate(asked):
        if len(query):
            scores = index.get_scores_from_ids(query)
            best = np.argpartition(scores, len(scores) - K)[-K:]
            ids[row] = best[np.lexsort((best, -scores[best]))]
    seconds = time.perf_counter() - start
    return {
        "ids": ids,
        "chunks/s": None,
        "candidates µs": 1e6 * seconds / len(asked),
        "rerank µs": None,
    }


def measures(data: Data, ids: np.ndarray) -> dict[str, np.ndarray]:
    """run, held and rare of each query [Q]; `rare` is NaN where the next chunk has no rare token."""
    out = {name: [] for name in ("run", "held", "rare")}
    with progress.bar("comparing with what comes next", len(ids)) as advance:
        for rows in _blocks(np.arange(len(ids))):
            following, near = data.next[rows], data.train.values(ids[rows])  # [n, M], [n, K, R]
            shared = runs(following.repeat(K, axis=0), near.reshape(-1, near.shape[-1]))
            out["run"].append(shared.reshape(len(rows), -1).max(axis=1))
            wanted = _occurs(following, data.vocab)
            held = wanted & _occurs(near.reshape(len(rows), -1), data.vocab)
            for name, which in (("held", slice(None)), ("rare", data.rare)):
                sizes = wanted[:, which].sum(axis=1)
                share = held[:, which].sum(axis=1) / np.maximum(sizes, 1)
                out[name].append(np.where(sizes, share, np.nan))
            advance(len(rows))
    return {name: np.concatenate(values) for name, values in out.items()}


def interval(values: np.ndarray, documents: np.ndarray) -> str:
    """A 95 % interval of the mean of the values that are not NaN, by resampling documents."""
    _, of = np.unique(documents, return_inverse=True)
    sums = np.bincount(of, np.nan_to_num(values))
    sizes = np.bincount(of, np.isfinite(values))
    rng, means = np.random.default_rng(0), []
    for _ in range(RESAMPLES):
        drawn = rng.integers(0, len(sums), len(sums))
        means.append(sums[drawn].sum() / max(1, sizes[drawn].sum()))
    return "[{:.4f}, {:.4f}]".format(*np.percentile(means, [2.5, 97.5]))


def ways(data: Data, bert: Path | None, dim: int) -> Iterator[tuple[str, Callable[[Path], dict]]]:
    """Yields (name, what finds neighbours in an empty directory)."""

    def way(embedder: str, index: str = "auto", rerank: str = "bm25", candidates=50, **settings):
        config = RetrievalConfig(
            embedder=embedder, index=index, rerank=rerank, candidates=candidates, neighbours=K,
            index_shard=len(data.database), settings=settings,
        )  # fmt: skip
        return functools.partial(neighbours, data, config)

    if common.installed("BM25 with whole lists", "bm25s"):
        yield "BM25, whole lists", lambda out: whole(data, words.split)
        old = re.compile(r"\w+")
        yield "BM25, whole lists, \\w+", lambda out: whole(data, lambda t: old.findall(t.lower()))
    for most in (512, 1024, 2048, 4096, 16384):
        yield f"{most} postings, BM25", way("words", "bm25", bm25={"postings": most})
    for width in (256, 512, 1024):
        yield f"lexical {width}, BM25", way("lexical", lexical={"dim": width})
    yield f"tfidf {dim}", way("tfidf", rerank="none", tfidf={"dim": dim})
    for candidates in (50, 200):
        yield (
            f"tfidf {dim}, BM25 of {candidates}",
            way("tfidf", candidates=candidates, tfidf={"dim": dim}),
        )
    if bert:
        own = {"bert": {"directory": str(bert)}}
        yield f"{bert.name}", way("bert", rerank="none", **own)
        yield f"{bert.name}, BM25 of 50", way("bert", **own)


def compare(data: Data, bert: Path | None, dim: int, chosen: list[str]) -> list[dict]:
    """A row for each way whose name has one of `chosen` in it (all without), and one for random neighbours."""
    rng = np.random.default_rng(0)
    chance = measures(data, rng.choice(data.database, (len(data.queries), K)))
    empty = {"chunks/s": None, "candidates µs": None, "rerank µs": None}
    results = []
    for name, find in ways(data, bert, dim):
        if chosen and not any(part in name for part in chosen):
            continue
        progress.say(name)
        with tempfile.TemporaryDirectory() as out:
            found = find(Path(out))
        results.append((name, measures(data, found.pop("ids")), found))
    results.append(("random", chance, empty))
    return [
        {
            "neighbours": name,
            **rates,
            "run": float(found["run"].mean()),
            "held": float(np.nanmean(found["held"])),
            "rare": float(np.nanmean(found["rare"])),
            "rare, 95 %": interval(found["rare"], data.documents),
            "margin, 95 %": interval(found["rare"] - chance["rare"], data.documents),
        }
        for name, found, rates in results
    ]


def plot(rows: list[dict], title: str, file: Path):
    """Quality against microseconds a query."""
    from matplotlib.figure import Figure

    figure = Figure((9, 5), layout="constrained")
    axes = figure.subplots()
    families = {"BM25, whole": "C7", "postings": "C0", "lexical": "C1", "tfidf": "C2"}
    for number, row in enumerate((row for row in rows if row["candidates µs"]), 1):
        spent = row["candidates µs"] + (row["rerank µs"] or 0)
        colour = next((c for f, c in families.items() if f in row["neighbours"]), "C4")
        marker = "s" if row["rerank µs"] else "o"
        label = f"{number}  {row['neighbours']}"
        axes.plot(spent, row["rare"], marker, color=colour, label=label)
        axes.annotate(str(number), (spent, row["rare"]), xytext=(4, 4), textcoords="offset points")
    axes.set(xscale="log", xlabel="microseconds a query, candidates and re-ranking",
             ylabel="rare: share of the next chunk's rare tokens that is found", title=title)  # fmt: skip
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=9)
    figure.savefig(file, dpi=120)


def _blocks(values):
    return (values[start : start + BLOCK] for start in range(0, len(values), BLOCK))


def _occurs(tokens: np.ndarray, vocab: int) -> np.ndarray:
    """Which tokens occur in each row [n, T] -> [n, vocab] bool; PAD, BOS and EOS never do."""
    out = np.zeros((len(tokens), vocab), bool)
    out[np.arange(len(tokens))[:, None], tokens] = True
    out[:, [PAD, BOS, EOS]] = False
    return out


def main():
    parser = common.parser(__doc__)
    parser.add_argument("--bert", type=Path, help="config.json, *.safetensors, tokenizer.json")
    parser.add_argument("--chunks", type=int, help="training chunks in the database")
    parser.add_argument("--dim", type=int, default=256, help="of tfidf's vectors")
    parser.add_argument("--queries", type=int, help="held-out chunks, spread evenly")
    parser.add_argument(
        "--ways", nargs="*", default=[], metavar="NAME", help="only those with one of these in it"
    )
    parser.add_argument("--plot", type=Path, help="a PNG of quality against microseconds")
    args = common.parse(parser, chunks=150, queries=50, dim=16)
    set_up_cpu(DEVICES)
    data = Data(common.prepare(args), args.chunks, args.queries)
    rows = compare(data, args.bert, args.dim, args.ways)
    name = Path(args.source.partition("#")[0]).name
    title = (
        f"{name}: {len(data.queries):,} held-out chunks of "
        f"{len(np.unique(data.documents))} documents, {len(data.database):,} in the database, "
        f"k = {K}; {data.rare.mean():.0%} of {data.vocab:,} tokens are rare, "
        f"{data.rare[data.next[data.next != PAD]].mean():.1%} of the text of the next chunks"
    )
    common.show({title: rows}, FORMATS, args.json)
    if args.plot:
        plot(rows, f"{name}, {len(data.database):,} chunks", args.plot)


if __name__ == "__main__":
    main()
