"""Text to shards: corpus, tokenizer, chunks, embeddings, index, neighbours, TFRecord shards.

This file has the order of the steps, what each depends on and where it lies; `steps.py` has what they
do. Each makes an artefact of its own in WORKDIR/prepare; what is there and was made with these
settings is not made again.

Splits: `train` and `heldout` of `corpus.source`; `database` of `retrieval.source`, if there is one (the
database is the training split otherwise); and one for each of `corpus.heldout_sources`.
"""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from retro_jax import progress, records, steps, workdir
from retro_jax.config import Experiment
from retro_jax.corpus import sources, tokenizer
from retro_jax.errors import UserError
from retro_jax.interop.base import check_model
from retro_jax.retrieval import embed


class Step(NamedTuple):
    """How an artefact is made: the config fields it depends on, the steps it reads, the function."""

    settings: dict
    inputs: tuple[str, ...]
    make: Callable[[Path], dict]


def recipe(e: Experiment, base: Path) -> dict[str, Step]:
    """The steps by name, which is also their directory under `base`, in order."""
    c, r = e.corpus, e.retrieval
    held_out = list(steps.heldout_sources(e))
    database = steps.database_split(e)
    reading = {
        f"corpus.{name}": value
        for name, value in dataclasses.asdict(c).items()
        if name in ("bad_documents", "heldout", "near_duplicate", "exact_duplicates")
    }
    vocabulary = {"corpus.tokenizer": c.tokenizer}
    if c.tokenizer == "train":
        vocabulary["corpus.vocab"] = c.vocab
    made = {}

    if r.source:
        # The training corpus says what is held out, and so left out of the database.
        settings = reading | {"retrieval.source": r.source, "corpus.source": c.source}
        made["corpora/database"] = Step(
            settings, (), lambda out: steps.collect_documents(e, base, "database", out)
        )
    retrieved = tuple(made)
    settings = reading | {"corpus.source": c.source}
    made["corpus"] = Step(
        settings, retrieved, lambda out: steps.collect_documents(e, base, "", out)
    )
    for name in held_out:
        settings = reading | {"corpus.heldout_sources": steps.heldout_sources(e)[name]}
        make = lambda out, n=name: steps.collect_documents(e, base, n, out)  # noqa: E731
        made[f"corpora/{name}"] = Step(settings, ("corpus", *retrieved), make)
    made["tokenizer"] = Step(vocabulary, ("corpus",), lambda out: steps.tokenize(e, base, out))
    for split in ("train", "heldout", *(["database"] if r.source else []), *held_out):
        settings = {"model.chunk": e.model.chunk, "corpus.bad_documents": c.bad_documents}
        inputs = (steps.corpus_of(split), "tokenizer")
        make = lambda out, s=split: steps.cut(e, base, s, out)  # noqa: E731
        made[f"chunks/{split}"] = Step(settings, inputs, make)
    settings = {f"retrieval.{name}": getattr(r, name) for name in ("embedder", "dim")}
    inputs = (f"chunks/{database}", "tokenizer")
    made["embedder"] = Step(settings, inputs, lambda out: steps.fit_embedder(e, base, out))
    for split in [name.partition("/")[2] for name in made if name.startswith("chunks/")]:
        inputs = (f"chunks/{split}", "tokenizer", "embedder")
        make = lambda out, s=split: steps.embed_chunks(e, base, s, out)  # noqa: E731
        made[f"embeddings/{split}"] = Step({"retrieval.dtype": r.dtype}, inputs, make)
    settings = {
        f"retrieval.{name}": getattr(r, name)
        for name in ("index", "min_recall", "neighbours", "index_shard")
    }
    inputs = (f"embeddings/{database}",)
    made["index"] = Step(settings, inputs, lambda out: steps.build_index(e, base, out))
    length = {"train.length": e.train.length}
    for split in ("train", "heldout", *held_out):
        chunks = tuple(dict.fromkeys((f"chunks/{split}", f"chunks/{database}")))
        settings = {"retrieval.neighbours": r.neighbours} | (length if split == "train" else {})
        make = lambda out, s=split: steps.find_neighbours(e, base, s, out)  # noqa: E731
        inputs = (*chunks, f"embeddings/{split}", "index")
        made[f"neighbours/{split}"] = Step(settings, inputs, make)
        settings = length if split == "train" else length | {"evaluate.stride": e.evaluate.stride}
        make = lambda out, s=split: steps.write_shards(e, base, s, out)  # noqa: E731
        made[f"shards/{split}"] = Step(settings, (*chunks, f"neighbours/{split}"), make)
    return made


def prepare(experiment: Experiment, root: Path, rebuild: bool = False) -> dict[str, dict]:
    """Runs every step that is not done; returns each step's manifest by name.

    rebuild: delete steps that were made with other settings or from other inputs, and make them again;
    without it they are refused.
    """
    base, manifests, changed = Path(root) / "prepare", {}, False
    check_given(experiment, base)
    for name, (settings, inputs, make) in recipe(experiment, base).items():
        inputs = [base / i for i in inputs]
        try:
            done = workdir.check(base / name, settings, inputs)
        except UserError as error:
            if not rebuild:
                raise UserError(f"{error}; `retro prepare --rebuild` does the latter") from error
            shutil.rmtree(base / name)
            done = None
        changed |= not done
        progress.say(f"prepare/{name}" + (": complete" if done else ""))
        manifests[name] = done or workdir.build(base / name, settings, inputs, make)
    if changed or not (base / "shards" / "dataset_info.json").exists():
        records.write_tfds_info(base / "shards", steps.shard_splits(experiment), base / "shards")
    later = [str(Path(root) / s) for s in ("train", "evaluate") if (Path(root) / s).exists()]
    if rebuild and changed and later:
        progress.say(
            f"made from what was there before: {', '.join(later)}; delete, and run them again"
        )
    return manifests


def check_given(e: Experiment, base: Path):
    """Looks, before the first step begins, for the files that steps that are not there yet will need.

    Raises:
      UserError: a source that matches no file, a tokenizer that does not serve, an incomplete BERT, a model
        that the base's weights do not fit.
    """
    check_model(e)
    made = recipe(e, base)

    def begins(name: str) -> bool:
        """Whether the step itself is missing, or was made with other settings."""
        manifest = workdir.read_manifest(base / name)
        return not manifest or bool(workdir.differing(manifest["settings"], made[name].settings))

    retrieved = bool(e.retrieval.source) and begins("corpora/database")
    collected = retrieved or begins("corpus")
    tokenized = collected or begins("tokenizer")
    if retrieved:
        sources.check(e.retrieval.source, "retrieval.source")
    if collected:
        sources.check(e.corpus.source, "corpus.source")
    for name, source in steps.heldout_sources(e).items():
        if collected or begins(f"corpora/{name}"):
            sources.check(source, "corpus.heldout_sources")
    if tokenized and e.corpus.tokenizer != "train":
        tokenizer.load(Path(e.corpus.tokenizer))
    if tokenized or begins("embedder"):
        embed.check(e.retrieval)


def check_prepared(experiment: Experiment, root: Path) -> dict[str, dict]:
    """The manifests of a finished `prepare`, by step.

    Raises:
      UserError: a step is missing, or was made with another config.
    """
    base, manifests = Path(root) / "prepare", {}
    for name, (settings, inputs, _) in recipe(experiment, base).items():
        workdir.require(base / name, "prepare")
        manifests[name] = workdir.check(base / name, settings, [base / i for i in inputs])
    return manifests
