"""How much of what comes next the neighbours of each embedder hold: tfidf, a frozen BERT, BM25, random.

    pip install -e .
    python benchmarks/embedders.py --source='jsonl:corpus.jsonl#text' --bert=DIRECTORY --chunks 20000
    python benchmarks/embedders.py --smoke      # does it run? little text, a BERT with random weights

On the chunk tables of the quickstart's `prepare`: the first --chunks training chunks (all without it)
are the database; a query is a held-out chunk that has a next chunk in its document (all of them, or
--queries, evenly spread); held-out documents are never in the database. Every embedder embeds the same
texts and is searched exactly for k = 2; BM25 is its own search; random draws chunks of the database. RETRO
predicts a query's *next* chunk with the neighbours and their continuations [N, F]; so what is measured is
what these hold of the next chunk:

  run      tokens of the longest run that the next chunk shares with one neighbour
  held     share of the next chunk's distinct tokens that occur in the neighbours
  rare     the same of its rare tokens: in fewer than 1 % of the database's chunks. Frequent ones occur
           anywhere; this is the honest part
  margin   `rare` less what random neighbours have

Means over queries (`rare` over those that have a rare token), with 95 % intervals: a bootstrap over
documents, the same resamples for all. Rates: chunks a second embedded (tfidf is fitted before, on a
sample, which does not count) and queries a second searched; a BERT's first batches compile.
"""

import tempfile
import time
from pathlib import Path

import common
import numpy as np

from retro_jax import progress
from retro_jax.config import RetrievalConfig
from retro_jax.corpus.tokenizer import BOS, EOS, PAD
from retro_jax.evaluate.overlap import runs
from retro_jax.pipeline.prepared import Prepared
from retro_jax.retrieval import sharded
from retro_jax.retrieval.embedder import open_embedder
from retro_jax.retrieval.embedders import tfidf
from retro_jax.train.sharding import set_up_cpu

K, RARE, BLOCK, RESAMPLES = 2, 0.01, 1024, 1000
DEVICES = 2  # that a BERT is spread over, as in the experiments
FORMATS = {"chunks/s": ",.0f", "queries/s": ",.0f", "run": ".2f", "held": ".4f", "rare": ".4f"}


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

    def _frequency(self) -> np.ndarray:
        """In how many chunks of the database each token occurs."""
        found = np.zeros(self.vocab, np.int64)
        with progress.bar("counting tokens", len(self.database)) as advance:
            for rows in _blocks(self.database):
                found += _occurs(self.train.tokens[rows], self.vocab).sum(axis=0)
                advance(len(rows))
        return found


def neighbours(
    data: Data, embedder, config: RetrievalConfig, out: Path
) -> tuple[np.ndarray, float, float]:
    """Rows of the training table [Q, K]; seconds of embedding and of searching."""
    start = time.perf_counter()
    vectors = []
    total = len(data.database) + len(data.queries)
    with progress.bar("embedding chunks", total) as advance:
        for table, chosen in ((data.train, data.database), (data.heldout, data.queries)):
            made = []
            for rows in _blocks(chosen):
                made.append(embedder.embed(table.texts_of(data.pieces, rows)))
                advance(len(rows))
            vectors.append(np.concatenate(made))
    embedded = time.perf_counter() - start
    sharded.build(vectors[0], out, config)
    opened, found = sharded.ShardedIndex(out), []
    start = time.perf_counter()
    with progress.bar("searching", len(data.queries)) as advance:
        for queries in _blocks(vectors[1]):
            found.append(opened.search(queries, K)[0])
            advance(len(queries))
    return np.concatenate(found), embedded, time.perf_counter() - start


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


def embedders(data: Data, bert: Path | None, dim: int):
    """Yields (name, embedder, the config of its index)."""

    def config(**fields) -> RetrievalConfig:
        return RetrievalConfig(neighbours=K, index_shard=len(data.database), **fields)

    chunk, nothing = data.train.chunk, Path()  # that the others have learned
    sample = tfidf.sample(len(data.database))
    fitted = tfidf.fit_tfidf(data.train.texts_of(data.pieces, sample), dim)
    yield f"tfidf, {dim}", fitted, config(index="exact")
    if bert:
        own = config(embedder="bert", index="exact", settings={"bert": {"directory": str(bert)}})
        yield f"BERT {bert.name}", open_embedder(own, nothing, chunk), own
    words = config(embedder="words", index="bm25")
    yield "BM25", open_embedder(words, nothing, chunk), words


def compare(data: Data, bert: Path | None, dim: int) -> list[dict]:
    """A row for each embedder, and one for random neighbours."""
    rng = np.random.default_rng(0)
    chance = measures(data, rng.choice(data.database, (len(data.queries), K)))
    results = []
    for name, embedder, config in embedders(data, bert, dim):
        progress.say(name)
        with tempfile.TemporaryDirectory() as out:
            ids, embedded, searched = neighbours(data, embedder, config, Path(out))
        rates = {
            "chunks/s": (len(data.database) + len(data.queries)) / embedded,
            "queries/s": len(data.queries) / searched,
        }
        results.append((name, measures(data, ids), rates))
    results.append(("random", chance, {"chunks/s": None, "queries/s": None}))
    return [
        {
            "neighbours": name,
            **rates,
            "run": float(found["run"].mean()),
            "held": float(np.nanmean(found["held"])),
            "held, 95 %": interval(found["held"], data.documents),
            "rare": float(np.nanmean(found["rare"])),
            "rare, 95 %": interval(found["rare"], data.documents),
            "margin, 95 %": interval(found["rare"] - chance["rare"], data.documents),
        }
        for name, found, rates in results
    ]


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
    args = common.parse(parser, chunks=150, queries=50, dim=16)
    set_up_cpu(DEVICES)
    data = Data(common.prepare(args), args.chunks, args.queries)
    rows = compare(data, args.bert, args.dim)
    title = (
        f"{args.source}: {len(data.queries):,} held-out chunks of "
        f"{len(np.unique(data.documents))} documents, {len(data.database):,} in the database, "
        f"k = {K}; {data.rare.mean():.0%} of {data.vocab:,} tokens are rare, "
        f"{data.rare[data.next[data.next != PAD]].mean():.1%} of the text of the next chunks"
    )
    common.show({title: rows}, FORMATS, args.json)


if __name__ == "__main__":
    main()
