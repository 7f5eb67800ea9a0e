"""The steps of `prepare` on Apache Beam, for corpora larger than a machine.

    python -m retro_jax.beam --config=FILE --workdir=gs://BUCKET/RUN \
        --runner=DataflowRunner --project=P --region=R --temp_location=gs://BUCKET/tmp ...

What is made is what `retro prepare` makes, bit for bit (with an exact or BM25 index; a ScaNN index is
another one each time). WORKDIR is a folder that all workers share, or a bucket. The machine that
launches reads the source, trains the tokenizer, fits the embedder, and at last joins the blocks of a
step to one file; the workers do the rest, a block or an index shard at a time:

  chunks      tokenize a block of documents; count; place what was cut at its row
  embeddings  embed a block of chunks
  index       build a shard
  neighbours  search a block's queries in a shard; merge what the shards found (ties by id)
  shards      gather the tokens of the neighbours, by where they lie in the database; write

A step that is complete is skipped, and so is a block that is there.
"""

import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from upath import UPath

from retro_jax import flags, prepare, progress, records, steps, workdir
from retro_jax.beam import work
from retro_jax.beam.job import Job, copy, remove
from retro_jax.config import Experiment
from retro_jax.errors import UserError


def main(argv: list[str]) -> int:
    """Entry point: --config and --workdir as `retro prepare` has them, the rest is for Beam."""
    if not argv or {"-h", "--help"} & set(argv):
        print(__doc__)
        return 0 if argv else 2
    ours = [a for a in argv if a.startswith(("--config", "--workdir"))]
    where = [a.partition("=")[2] for a in ours if a.startswith("--workdir=")]
    try:
        if not where:
            raise UserError(
                "--workdir is missing: a folder that all workers share, or gs://BUCKET/RUN"
            )
        experiment, _, _ = flags.parse("prepare", ours)
        run(experiment, where[-1], [a for a in argv if a not in ours])
    except UserError as error:
        print(f"retro_jax.beam: {error}", file=sys.stderr)
        return 2
    return 0


def run(experiment: Experiment, where: str, options: Iterable[str] = ()):
    """Prepares an experiment in `where` (a path or a URL), the runner being one of Beam's options."""
    e, base, options = experiment, UPath(where) / "prepare", list(options)
    _check(options)
    prepare.check_given(e, base)
    by_workers = {
        "chunks": work.cut,
        "embeddings": work.embed_chunks,
        "index": work.build_index,
        "neighbours": work.find_neighbours,
        "shards": work.write_shards,
    }
    for name, step in prepare.recipe(e, base).items():
        kind, _, split = name.partition("/")
        inputs, out = [base / i for i in step.inputs], base / name
        done = workdir.check(out, step.settings, inputs)
        progress.say(f"beam/{name}" + (": complete" if done else ""))
        if done:
            continue
        start = time.perf_counter()
        purpose = workdir.purpose_of(out, step.settings, inputs)
        if workdir.read_purpose(out) != purpose:  # parts of another config are no parts of this one
            remove(out)
            out.mkdir(parents=True, exist_ok=True)
            workdir.write_json(out / workdir.PURPOSE, purpose)
        if kind in by_workers:
            job = Job(e, base, split, out, options)
            counts = by_workers[kind](job)
            remove(job.parts)
        else:
            with tempfile.TemporaryDirectory() as aside:
                counts = step.make(Path(aside))
                copy(Path(aside), out)
        workdir.write_manifest(out, step.settings, inputs, time.perf_counter() - start, counts)
        (out / workdir.PURPOSE).unlink()
    with tempfile.TemporaryDirectory() as aside:
        records.write_tfds_info(base / "shards", steps.shard_splits(e), Path(aside))
        copy(Path(aside), base / "shards")


def _check(options: list[str]):
    """Raises UserError for options with which no pipeline can be made: the first would begin late."""
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions

    try:
        beam.Pipeline(options=PipelineOptions(options))
    except (ValueError, TypeError) as error:
        raise UserError(
            f"Beam does not take {' '.join(options)}: {' '.join(str(error).split())[:400]}"
        ) from error
