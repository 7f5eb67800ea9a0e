"""What workers do for each step, and what is left for the machine that launches them.

A function that takes a Job runs where the pipeline is launched; one that takes its key runs on a worker,
with what Beam hands it: the number of a part, or a key and what was grouped by it. These have no type
hints, because Beam would check them against its own.
"""

import functools
import itertools
import json
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from retro_jax import columns, records, sequences, steps
from retro_jax.beam.job import Job, copy, local
from retro_jax.corpus import chunks, collect, sources
from retro_jax.corpus.chunks import ChunkTable
from retro_jax.corpus.tokenizer import PAD
from retro_jax.retrieval import embed, index

_GROUP = 16  # blocks of queries that a shard is opened for
_GATHERED = 4096  # chunks of the database whose tokens are read at a time


def cut(job: Job) -> dict:
    blocks = -(-steps.documents_in(job.base, job.split) // sources.BLOCK)
    job.map(range(blocks), _tokenize)
    counts, row, number, at = job.counts(blocks), 0, 0, {}
    for block, c in enumerate(counts):
        at[block] = (block, row, number)
        row, number = row + c["chunks"], number + c["documents"]
    short = sum(c["short"] for c in counts)
    # Each part is placed where the ones before it end.
    job.map(range(blocks), _place, lambda c: c.get("placed"), at.get)
    state = {"read": steps.documents_in(job.base, job.split), "short": short}
    layout = chunks.layout(steps.load_tokenizer(job.base), job.e.model.chunk)
    job.join(layout, blocks, state)
    return steps.chunk_counts(ChunkTable(job.out), job.split, short)


def _tokenize(key, block):
    job = Job.of(key)
    begin = block * sources.BLOCK
    documents = list(steps.documents_of(job.base, job.split, begin, begin + sources.BLOCK))
    refuse = functools.partial(collect.refuse_or_skip, job.e.corpus)
    pieces = steps.load_tokenizer(job.base)
    tokens, entries = chunks.encode(documents, pieces, job.e.model.chunk, refuse)
    counts = {
        "chunks": len(tokens),
        "documents": len(entries),
        "short": len(documents) - len(entries),
    }
    files = {"cut": tokens.astype("<i4").tobytes(), "entries": json.dumps(entries).encode()}
    job.put(block, files, counts)


def _place(key, at):
    job, (block, row, number) = Job.of(key), at
    part, m = job.part(block), job.e.model.chunk
    tokens = np.frombuffer((part / "cut").read_bytes(), "<i4").reshape(-1, m)
    entries = json.loads((part / "entries").read_bytes())
    layout = chunks.layout(steps.load_tokenizer(job.base), m)
    files = columns.encode(layout, chunks.place(tokens, entries, row, number), {})
    job.put(block, files, json.loads((part / "counts.json").read_text()) | {"placed": True})


def embed_chunks(job: Job) -> dict:
    count = len(steps.table_of(job.base, job.split))
    blocks = -(-count // steps.EMBEDDED)
    job.map(range(blocks), _embed)
    job.join(steps.embedding_columns(_embedder(job.key)), blocks, {})
    return {"vectors": count}


@functools.lru_cache(maxsize=1)
def _embedder(key: str):
    job = Job.of(key)
    directory = local(str(job.base / "embedder"))
    return embed.load(job.e.retrieval, directory, job.e.model.chunk)


def _embed(key, block):
    job, embedder = Job.of(key), _embedder(key)
    pieces, table = steps.load_tokenizer(job.base), steps.table_of(job.base, job.split)
    vectors = steps.embed_block(embedder, pieces, table, block * steps.EMBEDDED)
    files = columns.encode(steps.embedding_columns(embedder), {"vectors": vectors}, {})
    job.put(block, files, {})


def build_index(job: Job) -> dict:
    vectors = steps.vectors_of(job.base, steps.database_split(job.e))
    shards = len(index.shard_bounds(len(vectors), job.e.retrieval.index_shard)) - 1
    job.map(range(shards), _build)
    return index.finish(job.out, shards)


def _build(key, shard):
    job = Job.of(key)
    r, vectors = job.e.retrieval, steps.vectors_of(job.base, steps.database_split(job.e))
    begin, end = index.shard_bounds(len(vectors), r.index_shard)[shard : shard + 2]
    with tempfile.TemporaryDirectory() as aside:
        part = np.asarray(vectors[begin:end])
        index.build_shard(part, Path(aside), r.index, r.min_recall, r.neighbours, begin)
        copy(Path(aside), job.out / index.shard_name(shard))
    job.put(shard, {}, {})


def find_neighbours(job: Job) -> dict:
    """Every block of queries meets every shard, and what the shards found of it is merged."""
    shards, blocks, groups = _searched(job)
    job.map(range(blocks, blocks + shards * groups), _search)
    job.map(range(blocks), _merge)
    fewer = sum(c["fewer"] for c in job.counts(blocks))
    job.join(steps.neighbour_columns(job.e.retrieval.neighbours), blocks, {"fewer": fewer})
    return {"share_with_fewer_than_k": fewer / len(steps.table_of(job.base, job.split))}


def _searched(job: Job) -> tuple[int, int, int]:
    """Shards of the index, blocks of queries, and groups of blocks that are searched in one go."""
    shards = json.loads((job.base / "index" / "index.json").read_text())["shards"]
    block = steps.searched_at_a_time(job.e, job.split, shards)
    blocks = -(-len(steps.table_of(job.base, job.split)) // block)
    return shards, blocks, -(-blocks // _GROUP)


def _search(key, number):
    """One group of blocks in one shard; these parts stand after those of the blocks."""
    job = Job.of(key)
    _, blocks, groups = _searched(job)
    shard, group = divmod(number - blocks, groups)
    size = len(steps.vectors_of(job.base, steps.database_split(job.e)))
    begin = index.shard_bounds(size, job.e.retrieval.index_shard)[shard]
    opened = index.load_shard(local(str(job.base / "index" / index.shard_name(shard))))
    search = steps.Search(job.e, job.base, job.split, opened, begin)
    layout, files = steps.neighbour_columns(job.e.retrieval.neighbours), {}
    for block in range(group * _GROUP, min((group + 1) * _GROUP, blocks)):
        ids, distances = search.neighbours(block * search.block)
        made = columns.encode(layout, {"ids": ids, "distances": distances}, {})
        files |= {f"{block}.{name}": data for name, data in made.items()}
    job.put(number, files, {})


def _merge(key, block):
    job = Job.of(key)
    shards, blocks, groups = _searched(job)
    k, best = job.e.retrieval.neighbours, None
    for shard in range(shards):
        part = job.part(blocks + shard * groups + block // _GROUP)
        ids, distances = (
            np.frombuffer((part / f"{block}.{name}.bin").read_bytes(), dtype).reshape(-1, k)
            for name, dtype in (("ids", "<i8"), ("distances", "<f4"))
        )
        best = index.merge([best, (ids, distances)], k) if best else (ids, distances)
    ids, distances = best
    layout = steps.neighbour_columns(k)
    files = columns.encode(layout, {"ids": ids, "distances": distances}, {})
    job.put(block, files, {"fewer": int((ids < 0).any(axis=1).sum())})


def write_shards(job: Job) -> dict:
    """The chunks that are neighbours are asked for by records, and read where they lie."""
    import apache_beam as beam

    e, table = job.e, steps.table_of(job.base, job.split)
    count = sequences.count(table, job.split, e.chunks, e.evaluate.stride // table.chunk)
    layout, per_shard = _record_layout(job)
    shards = -(-count // per_shard)
    job.make(
        range(shards),
        lambda numbers: (
            numbers
            | "ask" >> beam.FlatMap(functools.partial(_ask, job.key, per_shard))
            | "by place" >> beam.GroupByKey()
            | "read" >> beam.FlatMap(functools.partial(_read, job.key))
            | "by shard" >> beam.GroupByKey()
            | "write" >> beam.Map(functools.partial(_write, job.key, per_shard))
        ),
    )
    records.write_layout(job.out, layout, count)
    return {"records": count}


def _record_layout(job: Job) -> tuple[dict, int]:
    """What the records hold, read off the first one; records of a shard."""
    missing = lambda ids: np.zeros((*ids.shape, 2 * job.e.model.chunk), np.int64)  # noqa: E731
    first = next(_records(job, 0, missing))
    return records.describe(first), records.per_shard(first)


def _records(job: Job, start: int, values) -> Iterable[dict]:
    """The records from number `start` on."""
    e, table = job.e, steps.table_of(job.base, job.split)
    near = columns.Columns(job.base / "neighbours" / job.split)
    stride = e.evaluate.stride // table.chunk
    for rows, scored in sequences.cuts(table, job.split, e.chunks, stride, start):
        yield sequences.record(table, values, rows, scored, near["ids"], near["distances"])


def _ask(key, per_shard, shard):
    """(block of the database, (shard, ids in it)) for the neighbours in a shard."""
    job, wanted = Job.of(key), []
    missing = lambda ids: wanted.append(ids) or np.zeros((*ids.shape, 1), np.int64)  # noqa: E731
    for _ in itertools.islice(_records(job, shard * per_shard, missing), per_shard):
        pass
    ids = np.unique(np.concatenate([w.reshape(-1) for w in wanted]))
    yield -1, (shard, ids[:0])  # so that a shard without any neighbour is written too
    for block in np.unique(ids[ids >= 0] // _GATHERED):
        yield int(block), (shard, ids[ids // _GATHERED == block])


def _read(key, asked):
    """(shard, (ids, tokens of them and of their continuations)) of a block of the database."""
    job, (block, requests) = Job.of(key), asked
    database = steps.table_of(job.base, steps.database_split(job.e))
    begin = max(0, block) * _GATHERED
    part = database.part(begin, begin + _GATHERED)
    for shard, ids in requests:
        yield shard, (ids, part.values(np.asarray(ids) - begin))


def _write(key, per_shard, gathered):
    job, (shard, parts) = Job.of(key), gathered
    ids, tokens = (np.concatenate(x) for x in zip(*parts))
    order = np.argsort(ids)
    ids, tokens = ids[order], tokens[order]

    def values(wanted):
        found = tokens[np.minimum(np.searchsorted(ids, wanted), len(ids) - 1)] if len(ids) else 0
        width = 2 * job.e.model.chunk
        return np.where((wanted < 0)[..., None], PAD, found) + np.zeros(width, np.int64)

    made = itertools.islice(_records(job, shard * per_shard, values), per_shard)
    data = b"".join(map(records.framed, made))
    job.out.mkdir(parents=True, exist_ok=True)
    (job.out / records.shard_name(shard)).write_bytes(data)
    job.put(shard, {}, {})
