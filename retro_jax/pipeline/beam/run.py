"""`retro beam`: the steps of `prepare` on Apache Beam, for corpora larger than a machine.

What is made is what `retro prepare` makes, bit for bit (with an exact or BM25 index; a ScaNN index is
another one each time). The working directory is a folder that all workers share, or a bucket. The machine
that launches reads the source, trains the tokenizer, fits the embedder, and at last joins the blocks of a
step to one file; the workers do the rest, a block or an index shard at a time:

  chunks      tokenize a block of documents; count; place what was cut at its row
  embeddings  embed a block of chunks
  index       build a shard
  neighbours  search a block's queries in a shard; merge what the shards found (ties by id)
  shards      gather the tokens of the neighbours, by where they lie in the database; write

A step that is complete is skipped, and so is a block that is there.
"""

import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from upath import UPath

from retro_jax import progress
from retro_jax.errors import UserError
from retro_jax.pipeline.beam.job import Job
from retro_jax.pipeline.beam.spread import spread
from retro_jax.pipeline.prepare import check_given
from retro_jax.pipeline.recipe import recipe, shard_splits
from retro_jax.pipeline.step import Step, Whole
from retro_jax.store import artefact, files, records
from retro_jax.store.bucket import copy, remove
from retro_jax.store.workdir import WorkDir


def run(work: WorkDir, options: Iterable[str] = ()):
    """Prepares an experiment; options: of the pipeline, as Beam takes them, its runner among them."""
    e, base, options = work.experiment, UPath(work.prepared()), list(options)
    _check(options)
    work.own("prepare")
    check_given(e, base)
    with work.lock("prepare"):
        work.save()
        for name, step in recipe(e, base).items():
            inputs = [step.at(i) for i in step.inputs]
            done = artefact.check(step.out, step.settings, inputs)
            progress.say(f"beam/{name}" + (": complete" if done else ""))
            if not done:
                _make(step, inputs, Job(e, base, name, options))
        with tempfile.TemporaryDirectory() as made:
            records.write_tfds_info(base / "shards", shard_splits(e), Path(made))
            copy(Path(made), base / "shards")


def _make(step: Step, inputs: list, job: Job):
    start, out = time.perf_counter(), step.out
    purpose = artefact.purpose_of(out, step.settings, inputs)
    if artefact.read_purpose(out) != purpose:  # parts of another config are no parts of this one
        remove(out)
        out.mkdir(parents=True, exist_ok=True)
        files.write_json(out / artefact.PURPOSE, purpose)
    if isinstance(step, Whole):
        with tempfile.TemporaryDirectory() as made:
            counts = step.make(Path(made))
            copy(Path(made), out)
    else:
        counts = spread(job)
        remove(job.parts)
    seconds = time.perf_counter() - start
    sums = artefact.sums(out)
    artefact.write(out, step.settings, inputs, seconds, counts, files_of=sums)
    (out / artefact.PURPOSE).unlink()


def _check(options: list[str]):
    """Raises UserError for options with which no pipeline can be made: the first would begin late."""
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        raise UserError("retro beam needs Apache Beam: pip install 'retro_jax[beam]'") from error
    try:
        beam.Pipeline(options=PipelineOptions(options))
    except (ValueError, TypeError) as error:
        raise UserError(
            f"Beam does not take {' '.join(options)}: {' '.join(str(error).split())[:400]}"
        ) from error
