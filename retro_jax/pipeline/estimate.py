"""What preparing a corpus of a given size would cost, from the rates and sizes of a small sample.

Every step is run on the first megabytes of the source, and what it takes is scaled: most steps in proportion to
the text; the search for neighbours to the number of queries times what one takes:

  in order    the time of a shard of `retrieval.index_shard` vectors, times the shards
  by routes   the time of a partition, searched so widely that half of what may be missed is missed in it, times the
              partitions that a query is sent to
  by words    the time that the sample takes, in proportion to the postings that a query may read at most

and in every case the re-ranking of its candidates. How many partitions a query is sent to is measured on the sample
cut into _PARTS, at neighbours that are a hundredth of a partition at most, and grows as their number to the power of
_PROBES (benchmarks/partitions.py); finding them, and those of a vector, is a comparison with every centre.
"""

import dataclasses
import itertools
import json
import re
import tempfile
import time
from pathlib import Path

import numpy as np
from rich.table import Table

from retro_jax import progress
from retro_jax.config import CorpusConfig, Experiment, RetrievalConfig
from retro_jax.corpus import sources
from retro_jax.corpus.document import Document
from retro_jax.errors import UserError
from retro_jax.pipeline.prepare import prepare
from retro_jax.pipeline.prepared import Prepared
from retro_jax.retrieval import division, recall, routing, sharded
from retro_jax.retrieval.embedder import EMBEDDERS
from retro_jax.retrieval.index import INDEXES, Found, Given, distinct, merge
from retro_jax.store.workdir import WorkDir
from retro_jax.terminal import Terminal

_SAMPLE = 2**21  # bytes of text
_DOCUMENT = 20_000  # characters; longer documents are cut, so that there are some to hold out
_VOCAB = 4096  # of a trained tokenizer at most: more would not be found in the sample
_VECTORS, _QUERIES = 50_000, 2000  # of the index whose search is timed
_PARTS, _PROBES = 16, 0.5  # see above
_CENTRES = 4096  # that queries are compared with; the time of more is in proportion
_PAIR = 12  # bytes of an id and a distance
_POSTING = 14  # of a word, a chunk and a score
_FIXED = ("tokenizer", "statistics", "embedder")  # of a sample, whatever the corpus


def parse_size(text: str) -> float:
    """Bytes of '30GB', '1TB' or '5e11'; the units are powers of 1,000."""
    found = re.fullmatch(r"([0-9.]+(?:e[0-9]+)?)\s*([kMGTP]?)B?", text)
    try:
        size = float(found[1]) * 1000.0 ** " kMGTP".index(found[2] or " ")
    except (TypeError, ValueError):
        size = 0.0
    if size < 1:
        raise UserError(f"--estimate={text}: give bytes of text, for example --estimate=1TB")
    return size


def estimate(experiment: Experiment, size: float) -> dict:
    """Costs of `prepare` for `size` bytes of text like the source's: counts, and for each step vCPU
    hours and bytes on disk.

    Raises:
      UserError: the source is unreadable, or the sample does not go through.
    """
    for name, value in (
        ("retrieval.source", experiment.retrieval.source),
        ("corpus.heldout_sources", experiment.corpus.heldout_sources),
    ):
        if value:
            raise UserError(
                f"config field {name} = {value!r}: an estimate is of one corpus; leave it empty, and "
                "estimate each source by itself as corpus.source"
            )
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        sample = _sample(experiment, root / "sample.jsonl")
        work = WorkDir(root, sample)
        manifests = prepare(work)
        text = sum(manifests["corpus"]["counts"][f"{s}_bytes"] for s in ("train", "heldout"))
        chunks = sum(manifests[f"chunks/{s}"]["counts"]["chunks"] for s in ("train", "heldout"))
        tokens = sum(manifests[f"chunks/{s}"]["counts"]["tokens"] for s in ("train", "heldout"))
        scale = size / text
        costs = {}
        for name, manifest in manifests.items():
            step = name.partition("/")[0]
            by = 1.0 if step in _FIXED else scale
            cost = costs.setdefault(step, {"vcpu_hours": 0.0, "bytes": 0.0})
            cost["vcpu_hours"] += manifest["cpu_seconds"] / 3600 * by
            cost["bytes"] += by * sum(size for size, _ in manifest["files"].values())
        database = chunks * scale * (1 - experiment.corpus.heldout)
        search = _search(experiment, Prepared(work), database)
    costs["neighbours"]["vcpu_hours"] = chunks * scale * search["cpu_seconds_a_query"] / 3600
    costs["index"]["vcpu_hours"] = search["build_cpu_seconds_a_vector"] * database / 3600
    return {
        "text_bytes": size,
        "sample_bytes": text,
        "tokens": tokens * scale,
        "chunks": chunks * scale,
        "index": search,
        "sent_bytes": chunks * scale * search["sent_bytes_a_query"]
        + database * search["sent_bytes_a_vector"],
        "steps": costs,
        "vcpu_hours": sum(c["vcpu_hours"] for c in costs.values()),
        "bytes": sum(c["bytes"] for c in costs.values()),
    }


def show(result: dict):
    """Prints an estimate as a table."""
    out = Terminal()
    out.print(
        f"{_bytes(result['text_bytes'])} of text: {result['tokens']:.3g} tokens, "
        f"{result['chunks']:.3g} chunks",
        soft_wrap=True,
    )
    table = Table()
    table.add_column("step")
    table.add_column("vCPU hours", justify="right")
    table.add_column("on disk", justify="right")
    total = {"vcpu_hours": result["vcpu_hours"], "bytes": result["bytes"]}
    for name, cost in (*result["steps"].items(), ("all", total)):
        hours = cost["vcpu_hours"]
        shown = f"{hours:,.0f}" if hours >= 10 else f"{hours:.2g}" if hours >= 0.01 else "0"
        table.add_row(name, shown, _bytes(cost["bytes"]))
    out.print(table)
    found = result["index"]
    out.print(
        f"measured on {_bytes(result['sample_bytes'])} of the source, on this machine's processor; "
        f"{found['shards']:,} index shards of {found['shard_vectors']:,.0f} chunks ({found['kind']}), "
        f"{found['visited']:,.0f} of them searched for each chunk, which sends at most "
        f"{_bytes(found['sent_bytes_a_query'])} between workers, {_bytes(result['sent_bytes'])} in all with what the "
        "index is built of; a shard "
        f"takes {_bytes(found['shard_bytes'])} of memory, and building one of ScaNN or faiss two to three "
        "times that",
        soft_wrap=True,
    )
    if (
        INDEXES[found["kind"]].takes == "vectors"
        and 2 * result["steps"]["neighbours"]["vcpu_hours"] > total["vcpu_hours"]
    ):
        out.print(
            "most of it is looking neighbours up; by words that takes a small part of the time, whatever the size: "
            "--config.retrieval.embedder=words --config.retrieval.index=bm25",
            soft_wrap=True,
        )


def _sample(e: Experiment, path: Path) -> Experiment:
    """The experiment on the first documents of its source, which are written to `path`."""
    progress.say(f"reading {_bytes(_SAMPLE)} of {e.corpus.source}")
    size = 0
    with path.open("w") as file:
        for id, text in _parts(e.corpus):
            file.write(json.dumps({"id": id, "text": text}) + "\n")
            size += len(text.encode())
            if size >= _SAMPLE:
                break
    corpus = dataclasses.replace(
        e.corpus, source=f"jsonl:{path}", heldout_sources=(), bad_documents="skip",
        heldout=0.1, vocab=min(e.corpus.vocab, _VOCAB),
    )  # fmt: skip
    return dataclasses.replace(
        e, corpus=corpus, retrieval=dataclasses.replace(e.retrieval, source="")
    )


def _parts(corpus: CorpusConfig):
    """Yields (id, text) of the documents of a source, long ones in parts."""
    for document in sources.documents(corpus.source, largest=corpus.largest_document):
        if isinstance(document, Document):
            for start in range(0, len(document.text), _DOCUMENT):
                yield f"{document.id} {start}", document.text[start : start + _DOCUMENT]


def _search(e: Experiment, made: Prepared, database: float) -> dict:
    """What looking one query up takes in a database of so many chunks like those that were prepared, and what
    building an index takes, a vector: CPU seconds, and bytes that a query sends and receives between workers."""
    r = e.retrieval
    vectors, words = np.asarray(made.searched("train")), made.words("train")
    sample, queries = len(vectors), made.queries("train").rows(slice(_QUERIES))
    shards = visited = division.shards(database, r)
    size = database / shards
    kind = INDEXES[r.index].kind_for(int(size))
    name = next(n for n in INDEXES if INDEXES[n] is kind)
    clusters = EMBEDDERS[r.embedder].clusters
    given = Given(made.ranking.fetch(r.neighbours), clusters, made.statistics)
    if kind.takes == "vectors":
        rng = np.random.default_rng(0)
        # As many as are timed: the sample's, moved a little each time they are repeated.
        spread = 0.1 * vectors.std(axis=0)
        parts = itertools.islice(itertools.cycle([vectors]), -(-_VECTORS // len(vectors)))
        parts = [v + spread * rng.normal(size=v.shape) for v in parts]
        vectors = np.concatenate(parts)[:_VECTORS].astype(np.float32)
    routed = kind.takes == "vectors" and shards > 1 and kind.approximate and clusters
    if routed:
        shards *= routing.TWICE
        half = (1 + INDEXES.settings_of(name, r.settings).min_recall) / 2
        visited = _probes(vectors[:sample], r, given, name, shards, half)
    progress.say(f"timing {name} search in {len(vectors):,} chunks")
    with tempfile.TemporaryDirectory() as directory:
        start = time.process_time()
        whole = dataclasses.replace(r, index_shard=len(vectors))
        if routed:
            settings = dict(r.settings) | {name: {"min_recall": half}}
            whole = dataclasses.replace(whole, settings=settings)
        division.build(vectors, Path(directory), whole, given, name)
        build = (time.process_time() - start) / len(vectors)
        opened = sharded.ShardedIndex(Path(directory)).shard(0).index
        start = time.process_time()
        # As many as `nearest_valid` asks for at first.
        found = opened.search(queries.searched, 2 * given.k + 12)
        search = (time.process_time() - start) / len(queries.searched)
        start = time.process_time()
        candidates = found[0][:, : given.k] % sample, found[1][:, : given.k]
        made.ranking.order(queries, words, candidates, r.neighbours)
        ranking = (time.process_time() - start) / len(queries.searched)
        held = row = vectors.shape[1] * vectors.dtype.itemsize
        if kind.takes == "words":
            held = sum(f.stat().st_size for f in Path(directory).rglob("*.npy")) / len(vectors)
            most = sharded.read_report(Path(directory) / sharded.shard_name(0))["postings"]
            read = opened.read_by(queries.searched)
    placed = 0.0  # bytes of a chunk that are sent to where an index is built
    growth = kind.growth if clusters or not kind.approximate else 1.0  # without a tree
    if kind.takes == "words":
        search *= max(1.0, most / max(1.0, read))
        asked = np.asarray(queries.searched)
        visited = min(shards, float(np.mean([len(np.unique(q[q >= 0])) for q in asked])))
        sent, times = row + 8 * most, 1
        placed = _POSTING * float(made.statistics.frequencies.sum() / made.statistics.chunks)
    else:
        if routed:
            route, place = _routing(vectors, shards)
            build, ranking = routing.TWICE * build + place, ranking + route
            ranking += visited * _merging(found, given.k)
            placed = routing.TWICE * row
        sent, times = visited * (row + given.k * _PAIR), visited
    if r.rerank != "none":  # a query's words are sent to where each candidate's are
        sent += given.k * 4 * float((np.asarray(queries.words) >= 0).sum(axis=1).mean())
    return {
        "kind": name,
        "shards": shards,
        "visited": visited,
        "shard_vectors": size,
        "shard_bytes": size * held,
        "build_cpu_seconds_a_vector": build,
        "cpu_seconds_a_query": search * (size / len(vectors)) ** growth * times + ranking,
        "sent_bytes_a_query": sent,
        "sent_bytes_a_vector": placed,
    }


def _probes(
    vectors: np.ndarray, r: RetrievalConfig, given: Given, name: str, parts: int, least: float
) -> float:
    """Of so many partitions, how many a query is sent to for a recall of at least that, each searched whole."""
    shard = -(-routing.TWICE * len(vectors) // _PARTS)
    k = max(r.neighbours, min(given.k, shard // 100))
    with tempfile.TemporaryDirectory() as directory:
        few = dataclasses.replace(r, index_shard=shard)
        report = division.build(vectors, Path(directory), few, given._replace(k=k), name)
        visited = recall.visits(Path(directory), vectors, k, least)
    return min(parts, visited * max(1.0, parts / report["shards"]) ** _PROBES)


def _merging(found: Found, k: int) -> float:
    """CPU seconds that it takes to put what one partition found for a query [Q, C] to what others did."""
    near = found[0][:, :k], found[1][:, :k]
    start = time.process_time()
    merge(distinct([near, near]), k)
    return (time.process_time() - start) / len(near[0])


def _routing(vectors: np.ndarray, parts: int) -> tuple[float, float]:
    """CPU seconds that it takes to find the partitions that a query is sent to, and those of a vector."""
    centres, asked = vectors[:_CENTRES], vectors[-_QUERIES:]
    start = time.process_time()
    routing.nearest(asked, centres)
    middle = time.process_time()
    routing.place(asked, centres)
    scale = parts / len(centres) / len(asked)
    return (middle - start) * scale, (time.process_time() - middle) * scale


def _bytes(size: float) -> str:
    """1.5e9 -> 1.5 GB."""
    for unit in ("B", "kB", "MB", "GB", "TB", "PB"):
        if size < 1000 or unit == "PB":
            return f"{size:,.3g} {unit}"
        size /= 1000
    raise AssertionError
