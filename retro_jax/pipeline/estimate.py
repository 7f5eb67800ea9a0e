"""What preparing a corpus of a given size would cost, from the rates and sizes of a small sample.

Every step is run on the first megabytes of the source, and what it takes is scaled: most steps in
proportion to the text; the search for neighbours to the number of queries times that of shards, at the
time that a shard of `retrieval.index_shard` vectors takes.
"""

import dataclasses
import itertools
import json
import re
import tempfile
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from retro_jax import progress
from retro_jax.config import Experiment
from retro_jax.corpus import sources
from retro_jax.errors import UserError
from retro_jax.pipeline.prepare import prepare
from retro_jax.pipeline.prepared import Prepared
from retro_jax.retrieval import division, sharded
from retro_jax.retrieval.embedder import EMBEDDERS
from retro_jax.retrieval.index import INDEXES, Given
from retro_jax.store.workdir import WorkDir

_SAMPLE = 2**21  # bytes of text
_DOCUMENT = 20_000  # characters; longer documents are cut, so that there are some to hold out
_VOCAB = 4096  # of a trained tokenizer at most: more would not be found in the sample
_VECTORS, _QUERIES = 50_000, 2000  # of the index whose search is timed
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
        "steps": costs,
        "vcpu_hours": sum(c["vcpu_hours"] for c in costs.values()),
        "bytes": sum(c["bytes"] for c in costs.values()),
    }


def show(result: dict):
    """Prints an estimate as a table."""
    out = Console(highlight=False)
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
        f"{found['shards']:,} index shards of {found['shard_vectors']:,.0f} vectors ({found['kind']}), "
        f"each searched for every chunk; a shard's vectors take {_bytes(found['shard_bytes'])} of "
        "memory, and building an approximate index of them two to three times that",
        soft_wrap=True,
    )


def _sample(e: Experiment, path: Path) -> Experiment:
    """The experiment on the first documents of its source, which are written to `path`."""
    progress.say(f"reading {_bytes(_SAMPLE)} of {e.corpus.source}")
    size = 0
    with path.open("w") as file:
        for id, text in _parts(e.corpus.source):
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


def _parts(source: str):
    """Yields (id, text) of the documents of a source, long ones in parts."""
    for document in sources.documents(source):
        if not isinstance(document, sources.BadDocument):
            for start in range(0, len(document.text), _DOCUMENT):
                yield f"{document.id} {start}", document.text[start : start + _DOCUMENT]


def _search(e: Experiment, made: Prepared, database: float) -> dict:
    """CPU seconds of looking one query up in a database of so many chunks like those that were prepared,
    and of building an index, a vector."""
    r = e.retrieval
    shards = max(1, int(-(-database // r.index_shard)))
    size = database / shards
    kind = INDEXES[r.index].kind_for(int(size))
    name = next(n for n in INDEXES if INDEXES[n] is kind)
    vectors, words = np.asarray(made.searched("train")), made.words("train")
    sample = len(vectors)
    queries = made.queries("train").rows(slice(_QUERIES))
    if kind.takes == "vectors":
        rng = np.random.default_rng(0)
        # As many as are timed: the sample's, moved a little each time they are repeated.
        spread = 0.1 * vectors.std(axis=0)
        parts = itertools.islice(itertools.cycle([vectors]), -(-_VECTORS // len(vectors)))
        parts = [v + spread * rng.normal(size=v.shape) for v in parts]
        vectors = np.concatenate(parts)[:_VECTORS].astype(np.float32)
    progress.say(f"timing {name} search in {len(vectors):,} chunks")
    fetch = made.ranking.fetch(r.neighbours)
    given = Given(fetch, EMBEDDERS[r.embedder].clusters, made.statistics)
    with tempfile.TemporaryDirectory() as directory:
        start = time.process_time()
        whole = dataclasses.replace(r, index_shard=len(vectors))
        division.build(vectors, Path(directory), whole, given, kind=name)
        build = time.process_time() - start
        opened = sharded.ShardedIndex(Path(directory))
        start = time.process_time()
        found = opened.search(queries.searched, 2 * fetch + 12)  # as `nearest_valid` asks at first
        search = (time.process_time() - start) / len(queries.searched)
        start = time.process_time()
        made.ranking.order(
            queries, words, (found[0][:, :fetch] % sample, found[1][:, :fetch]), r.neighbours
        )
        ranking = (time.process_time() - start) / len(queries.searched)
    return {
        "kind": name,
        "shards": shards,
        "shard_vectors": size,
        "shard_bytes": size * vectors.shape[1] * vectors.dtype.itemsize,
        "build_cpu_seconds_a_vector": build / len(vectors),
        "cpu_seconds_a_query": search * (size / len(vectors)) ** kind.growth * shards + ranking,
    }


def _bytes(size: float) -> str:
    """1.5e9 -> 1.5 GB."""
    for unit in ("B", "kB", "MB", "GB", "TB", "PB"):
        if size < 1000 or unit == "PB":
            return f"{size:,.3g} {unit}"
        size /= 1000
    raise AssertionError
