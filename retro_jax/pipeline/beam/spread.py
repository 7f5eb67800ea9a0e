"""How the parts of each kind of step are made by workers, and what is left for the machine that launches them.

A function that takes a Job runs where the pipeline is launched; one that takes its key runs on a worker,
with what Beam hands it: the number of a part, or a key and what was grouped by it. These have no type
hints, because Beam would check them against its own.
"""

import functools
import itertools
import tempfile
from pathlib import Path

import numpy as np

from retro_jax import progress
from retro_jax.corpus.tokenizer import PAD
from retro_jax.pipeline.beam.job import Job
from retro_jax.pipeline.prepare import added
from retro_jax.pipeline.step import Files, Rows
from retro_jax.pipeline.steps.index import BuildIndex
from retro_jax.pipeline.steps.neighbours import FindNeighbours
from retro_jax.pipeline.steps.shards import WriteShards
from retro_jax.retrieval import sharded
from retro_jax.store import columns
from retro_jax.store.bucket import copy

_GATHERED = 4096  # chunks of the database whose tokens are read at a time


def spread(job: Job) -> dict:
    """Has a step's parts made and joined; returns the counts of its manifest."""
    for kind, function in (
        (FindNeighbours, _neighbours), (WriteShards, _shards), (BuildIndex, _index), (Rows, _rows),
        (Files, _files),
    ):  # fmt: skip
        if isinstance(job.step, kind):
            return function(job)
    raise TypeError(f"{job.step.name} is no step that workers make")


def _rows(job: Job) -> dict:
    """Blocks of rows: each is made as if it were the first, and then moved to where the others end."""
    parts = job.step.parts()
    job.map(range(parts), _make_rows)
    before, at, total = dict.fromkeys(job.step.layout, 0), {}, {}
    for part, counts in enumerate(job.counts(parts)):
        at[part] = part, dict(before)
        before |= added(before, counts["rows"])
        total |= added(total, counts["counts"])
    if _moves(job.step):
        job.map(range(parts), _move_rows, lambda counts: counts.get("moved"), at.get)
    job.join(parts, total)
    return job.step.finish(job.out, total)


def _moves(step) -> bool:
    return type(step).moved is not Rows.moved


def _make_rows(key, part):
    job = Job.of(key)
    rows, counts = job.step.make(part)
    data = columns.encode(job.step.layout, rows, {})
    lengths = {name: len(value) for name, value in rows.items()}
    job.put(part, data, {"rows": lengths, "counts": counts})


def _move_rows(key, element):
    job, (part, before) = Job.of(key), element
    layout, where = job.step.layout, job.part(part)
    rows = columns.decode(layout, lambda name: (where / name).read_bytes())
    counts = job.counts_of(part)
    data = columns.encode(layout, job.step.moved(rows, before), {})
    job.put(part, data, counts | {"moved": True})


def _files(job: Job) -> dict:
    """Parts that are files or directories of their own: the shards of an index."""
    parts = job.step.parts()
    job.map(range(parts), _make_file)
    return job.step.finish(job.out)


def _make_file(key, part):
    job = Job.of(key)
    with tempfile.TemporaryDirectory() as made:
        job.step.make(part, Path(made))
        copy(Path(made), job.out)
    job.put(part, {}, {})


def _index(job: Job) -> dict:
    """Shards of vectors in order are read where they lie; partitions, and lists of words, are sent what they are
    built of from every block."""
    import apache_beam as beam

    with tempfile.TemporaryDirectory() as made:
        division = job.step.division(Path(made))
        if not division.routed and not division.by_words:
            return _files(job)
        if division.routed and not (job.out / sharded.ROUTES).exists():
            division.centres  # noqa: B018 - made here, once
            copy(Path(made), job.out)
    job.make(
        range(division.shards),
        lambda missing: (
            missing.pipeline
            | "blocks" >> beam.Create(range(division.blocks))
            | "spread" >> beam.Reshuffle()
            | "place" >> beam.FlatMap(functools.partial(_place, job.key))
            | "by shard" >> beam.GroupByKey()
            | "build" >> beam.Map(functools.partial(_build, job.key))
        ),
    )
    return job.step.finish(job.out)


def _place(key, block):
    """(shard, what it is built of) of a block of the database."""
    job = Job.of(key)
    yield from job.step.division(job.out).sent(block)


def _build(key, sent):
    job, (shard, parts) = Job.of(key), sent
    if job.is_done(shard):
        return
    with tempfile.TemporaryDirectory() as made:
        job.step.division(Path(made)).build_sent(shard, parts)
        copy(Path(made), job.out)
    job.put(shard, {}, {})


def _neighbours(job: Job) -> dict:
    """Queries are sent to the shards that they are searched in, what these found to the queries' block, and from there
    to where the words of the candidates lie; once more, to all shards, those that found too few."""
    import apache_beam as beam

    blocks = job.step.parts()

    def searched(elements, again):
        found = (
            elements
            | "send" >> beam.FlatMap(functools.partial(_send, job.key))
            | "by index shard" >> beam.GroupByKey()
            | "search" >> beam.FlatMap(functools.partial(_search, job.key))
            | "by block" >> beam.GroupByKey()
            | "together" >> beam.Map(functools.partial(_together, job.key, again))
        )
        scores = (
            found
            | "ask" >> beam.FlatMap(functools.partial(_ask_words, job.key))
            | "by place" >> beam.GroupByKey()
            | "score" >> beam.FlatMap(functools.partial(_score, job.key))
        )
        ranked = {"found": found, "scores": scores} | beam.CoGroupByKey()
        return ranked | "rank" >> beam.Map(functools.partial(_rank, job.key))

    job.make(
        range(blocks), functools.partial(searched, again=False), element=lambda block: (block, ())
    )
    few = {block: counts["few"] for block, counts in enumerate(job.counts(blocks))}
    job.make(
        range(blocks),
        functools.partial(searched, again=True),
        lambda counts: not counts["few"],
        lambda block: (block, few[block]),
    )
    total = {}
    for counts in job.counts(blocks):
        total |= added(total, {name: n for name, n in counts.items() if name != "few"})
    progress.say(f"{job.step.name}: {total.pop('sent'):,} bytes came from the index's shards")
    job.join(blocks, total)
    return job.step.finish(job.out, total)


def _send(key, element):
    """(shard, (block, which of its queries, these))."""
    block, few = element
    for shard, rows, queries in Job.of(key).step.search.requests(block, few):
        yield shard, (block, rows, queries)


def _search(key, sent):
    """(block, (shard, which of its queries, what was found)); one shard is open at a time."""
    search, (shard, requests) = Job.of(key).step.search, sent
    for block, rows, queries in requests:
        yield block, (shard, rows, search.answer(shard, block, rows, queries))


def _together(key, again, found):
    """(block, its candidates, and counts)."""
    search, (block, answers) = Job.of(key).step.search, found
    ordered = sorted(answers, key=lambda answer: answer[0])
    together = search.together(block, ((rows, said) for _, rows, said in ordered))
    sent = sum(array.nbytes for _, rows, said in ordered for array in (rows, *said))
    return block, (together, {"sent": sent, "few": [] if again else search.few(together)})


def _ask_words(key, found):
    """(place of the database, (block, what is asked there))."""
    block, (candidates, _) = found
    for place, asked in Job.of(key).step.asked(block, candidates[0]):
        yield place, (block, asked)


def _score(key, asked):
    """(block, (queries, numbers of their candidates, scores))."""
    step, (place, requests) = Job.of(key).step, asked
    for block, request in requests:
        yield block, (*request[:2], step.scored(place, request))


def _rank(key, grouped):
    job, (block, parts) = Job.of(key), grouped
    ((candidates, counts),) = parts["found"]
    scores = None
    if job.step.reranks:
        scores = np.zeros(candidates[0].shape, np.float32)
        for query, number, score in parts["scores"]:
            scores[query, number] = score
    rows, told = job.step.ranked(block, candidates, scores)
    job.put(block, columns.encode(job.step.layout, rows, {}), told | counts)


def _shards(job: Job) -> dict:
    """The chunks that are neighbours are asked for by records, and read where they lie."""
    import apache_beam as beam

    job.make(
        range(job.step.parts()),
        lambda numbers: (
            numbers
            | "ask" >> beam.FlatMap(functools.partial(_ask, job.key))
            | "by place" >> beam.GroupByKey()
            | "read" >> beam.FlatMap(functools.partial(_read, job.key))
            | "by shard" >> beam.GroupByKey()
            | "write" >> beam.Map(functools.partial(_write, job.key))
        ),
    )
    return job.step.finish(job.out)


def _ask(key, shard):
    """(block of the database, (shard, ids in it)) for the neighbours in a shard."""
    step, wanted = Job.of(key).step, []

    def note(ids):
        wanted.append(ids)
        return np.zeros((*ids.shape, 1), np.int64)

    for _ in itertools.islice(step.examples(shard * step.per_shard, note), step.per_shard):
        pass
    ids = np.unique(np.concatenate([w.reshape(-1) for w in wanted]))
    yield -1, (shard, ids[:0])  # so that a shard without any neighbour is written too
    for block in np.unique(ids[ids >= 0] // _GATHERED):
        yield int(block), (shard, ids[ids // _GATHERED == block])


def _read(key, asked):
    """(shard, (ids, tokens of them and of their continuations)) of a block of the database."""
    step, (block, requests) = Job.of(key).step, asked
    begin = max(0, block) * _GATHERED
    part = step.database.part(begin, begin + _GATHERED)
    for shard, ids in requests:
        yield shard, (ids, part.values(np.asarray(ids) - begin))


def _write(key, gathered):
    job, (shard, parts) = Job.of(key), gathered
    ids, tokens = (np.concatenate(x) for x in zip(*parts))
    order = np.argsort(ids)
    ids, tokens = ids[order], tokens[order]

    def values(wanted):
        found = tokens[np.minimum(np.searchsorted(ids, wanted), len(ids) - 1)] if len(ids) else 0
        width = 2 * job.step.table.chunk
        return np.where((wanted < 0)[..., None], PAD, found) + np.zeros(width, np.int64)

    job.out.mkdir(parents=True, exist_ok=True)
    job.step.write(shard, job.out, job.step.examples(shard * job.step.per_shard, values))
    job.put(shard, {}, {})
