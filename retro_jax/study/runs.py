"""The runs of a study: each a working directory of its own, all of them on text that is prepared once.

A study's directory holds

prepared/KEY      a working directory with the text, for each way in which its runs have it prepared
runs/NAME         the working directory of a run
runs/NAME/log     what it printed, where the study ran it
rows.parquet      what all runs that are done say (sums.py)
report.html       and its plots beside it (page.py)
"""

import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

from retro_jax import progress
from retro_jax.config import Experiment, Study
from retro_jax.config.fields import binding
from retro_jax.corpus import sources
from retro_jax.corpus.document import BadDocument, Document, digest
from retro_jax.corpus.near_duplicates import HeldOut
from retro_jax.databases.database import Databases
from retro_jax.errors import UserError
from retro_jax.evaluate.beside import BASE
from retro_jax.evaluate.compare import scored_alone
from retro_jax.evaluate.evaluate import evaluate, evaluate_against, possible
from retro_jax.methods.method import methods_of
from retro_jax.methods.train_all import train_all
from retro_jax.pipeline.prepare import prepare
from retro_jax.pipeline.prepared import Prepared
from retro_jax.pipeline.recipe import corpus_of, heldout_splits, recipe, shard_splits
from retro_jax.store import artefact, files
from retro_jax.store.columns import Columns
from retro_jax.store.lock import lock
from retro_jax.store.workdir import WorkDir
from retro_jax.study.contained import contained
from retro_jax.study.sums import Sums, load
from retro_jax.train.log import run_flops

DONE = "done.json"
HELDOUT = "heldout"  # the split that further databases are for


class Runs:
    """The runs of a study in a directory.

    Args:
      study: which they are. root: where they lie.
    """

    def __init__(self, study: Study, root: Path):
        self.study, self.root = study, Path(root)

    @functools.cached_property
    def names(self) -> list[str]:
        """Of all runs, the cheapest first: so the first plot is there early."""
        cost = {name: training_flops(self.study.experiment(name)) for name in self.study.runs}
        return sorted(cost, key=cost.get)

    def prepared(self, name: str) -> Path:
        """The working directory with the text of a run. Runs share it that have their text prepared in one way; other
        databases are in another one."""
        e = self.study.experiment(name)
        made: dict = {n: step.settings for n, step in recipe(e, Path()).items()}
        made |= {"databases": dict(self.study.databases)}
        key = hashlib.sha256(json.dumps(files.as_json(made), sort_keys=True).encode())
        return self.root / "prepared" / key.hexdigest()[:8]

    def work(self, name: str) -> WorkDir:
        """The working directory of a run."""
        return WorkDir(self.root / "runs" / name, self.study.experiment(name), self.prepared(name))

    def done(self, name: str) -> bool:
        """Whether a run is finished and scored with the fields that it has now, here or in what the study keeps."""
        kept = self.kept.facts["runs"].get(name) if self.kept else None
        return self.done_here(name) or (kept is not None and kept["what"] == self.what(name))

    def done_here(self, name: str) -> bool:
        """Whether it is so in this directory."""
        file, remedy = self.root / "runs" / name / DONE, "delete it, and run the study again"
        return file.exists() and files.read_json(file, remedy) == self.what(name)

    def done_before(self, name: str) -> bool:
        """Whether it is finished in this directory, with whatever fields."""
        return (self.root / "runs" / name / DONE).exists()

    @functools.cached_property
    def kept(self) -> Sums | None:
        """The rows that the study keeps of runs that were done elsewhere, if it names such a file."""
        if not self.study.rows:
            return None
        kept = load(Path(self.study.rows))
        own = kept.facts["runs"]
        same = sum(n in self.study.runs and own[n]["what"] == self.what(n) for n in own)
        progress.say(f"{self.study.rows}: {same} of its {len(own)} runs are those of this study")
        return kept

    def what(self, name: str) -> dict:
        """All fields of a run that decide what it is, by name, and the study's databases."""
        own = binding(self.study.experiment(name)) | {"databases": dict(self.study.databases)}
        return _wherever(files.as_json(own), self.study.folder)

    def prepare(self, name: str):
        """Prepares the text of a run, and the study's further databases; nothing if that is done. Whoever comes while
        another process does so waits for it."""
        e, there = self.study.experiment(name), self.prepared(name)
        work = WorkDir(there, dataclasses.replace(e, name=there.name))
        with lock(there / ".locks", "study", wait=True):
            prepare(work)
            databases = Databases(Prepared(work))
            for database, source in self.study.databases.items():
                if database in databases.names():
                    continue
                with progress.bar(f"adding to {database}", None) as advance:
                    databases.add(database, _not_held_out(work, source), advance)
            contained(work, HELDOUT, list(self.study.databases))
        self._as_kept(name, Prepared(work))

    def _as_kept(self, name: str, prepared: Prepared):
        """Raises UserError if other documents are held out than where the rows come from that the study keeps."""
        before = self.kept.facts["documents"] if self.kept else {}
        for split in set(before) & set(heldout_splits(self.study.experiment(name))):
            own = [d["id"] for d in prepared.table(split).documents]
            if own != before[split]:
                raise UserError(
                    f"{self.study.rows}: its runs were scored on other documents of {split} than "
                    f"{self.prepared(name)} has, {len(before[split]):,} and {len(own):,} of them; prepare the same "
                    "text, or leave Study(rows=) out"
                )

    def run(self, name: str):
        """Trains and scores a run whose text is prepared, as far as that is not done.

        Raises:
          UserError: another process runs it, or it cannot be run as it is asked for.
        """
        work = self.work(name)
        prepare(work)
        train_all(work)
        if reads(work.experiment):
            evaluate(work)
            for database in self.study.databases:
                evaluate_against(work, (database,), database, (HELDOUT,))
        else:
            for method in methods_of(work.experiment):
                scored_alone(work, method)
        files.write_json(work.root / DONE, self.what(name))

    def check(self, texts: bool = True):
        """Raises UserError for what cannot be run, before anything slow has begun; texts: or whose text is not here."""
        for name in self.study.runs:
            e = self.study.experiment(name)
            heldout_splits(e, own=True)
            if reads(e):
                possible(e)
            elif e.methods != (BASE,):
                raise UserError(
                    f"study {self.study.name}, run {name}: methods = {e.methods}: a study has methods whose network "
                    f"reads what was prepared, or {BASE} alone; others: `retro compare`"
                )
        if not texts:
            return
        new = [n for n in self.study.runs if not self.prepared(n).exists() and not self.done(n)]
        own = self.study.databases.items() if new else ()
        found = {source: f"databases.{n}" for n, source in own}
        found |= {self.study.experiment(n).corpus.source: "corpus.source" for n in new}
        for source, name in found.items():
            sources.check(source, f"study {self.study.name}, {name}")

    def check_text(self, name: str):
        """Raises UserError if a run was begun on text that was prepared otherwise, before that is prepared anew."""
        work = WorkDir(self.root / "runs" / name)
        if not work.exists or work.prepared_in.resolve() == self.prepared(name).resolve():
            return
        before, after = (
            {n: s.settings for n, s in recipe(e, Path()).items()}
            for e in (work.experiment, self.study.experiment(name))
        )
        changed = [c for n in after for c in artefact.differing(before.get(n, {}), after[n])]
        raise UserError(
            f"{work.root} was begun on text that was prepared with other fields"
            f"{f' ({changed[0]})' if changed else ''}: give the same, another --workdir, or delete it"
        )


def fields_of(fields: dict) -> str:
    """The fields of a run in a line, by short names."""
    short = {n.removeprefix("train.").removeprefix("model."): value for n, value in fields.items()}
    return ", ".join(f"{n}={value}" for n, value in short.items())


def reads(e: Experiment) -> bool:
    """Whether a run is scored as `retro evaluate` does: one of its methods has a trained network that reads."""
    return any(m.network and m.trained for m in methods_of(e))


def training_flops(e: Experiment) -> float:
    """What a run's training takes, FLOPs (`log.run_flops`), if its tokenizer has the pieces that were asked for."""
    return sum(
        run_flops(m, e.train, e.corpus.vocab, 0, e.train.steps) for m in methods_of(e) if m.trained
    )


def _wherever(value, folder: str):
    """A value of JSON without the folder, where a text in it begins with that or has it after a colon."""
    if isinstance(value, dict):
        return {n: _wherever(x, folder) for n, x in value.items()}
    if isinstance(value, list):
        return [_wherever(x, folder) for x in value]
    if isinstance(value, str) and folder:
        return re.sub(rf"(^|[:\s]){re.escape(folder)}/", r"\1", value)
    return value


def _not_held_out(work: WorkDir, source: str) -> Iterator[Document | BadDocument]:
    """The documents of a source but for those that are held out or nearly repeat what is, and for copies of what is
    trained on."""
    e, of = work.experiment, Prepared(work)
    known = {bytes(t).ljust(16, b"\0") for s in shard_splits(e) for t in of.table(s).texts}
    texts = []
    for split in heldout_splits(e):
        heldout = Columns(work.prepared(corpus_of(split)))["heldout"]
        texts += [(f"{split}/{i}", d["text"]) for i, d in enumerate(heldout)]
    sketches = HeldOut(texts, e.corpus.near_duplicate)
    for document in sources.documents(source, "databases of the study", e.corpus.largest_document):
        good = isinstance(document, Document)
        if good and (digest(document.text, 16) in known or sketches.near(document.text)):
            continue
        yield document
