"""Collecting: the evaluations of a study's runs, and the rows that it keeps of earlier ones, to one file of rows."""

from pathlib import Path

import numpy as np

from retro_jax import progress
from retro_jax.errors import UserError
from retro_jax.evaluate import beside, rows
from retro_jax.evaluate.rows import Rows
from retro_jax.methods.method import Method, methods_of
from retro_jax.model import functional
from retro_jax.pipeline.prepared import Prepared
from retro_jax.pipeline.recipe import heldout_splits, shard_splits
from retro_jax.store import artefact, files
from retro_jax.store.workdir import WorkDir
from retro_jax.study import sums
from retro_jax.study.contained import contained
from retro_jax.study.runs import HELDOUT, Runs, reads
from retro_jax.train.log import run_flops


def collect(runs: Runs) -> Path:
    """Writes the rows of all runs that are done, here or in what the study keeps; the file.

    Raises:
      UserError: none is done, or one was scored on other text than another.
    """
    here = [name for name in runs.names if runs.done_here(name)]
    kept = [name for name in runs.names if name not in here and runs.done(name)]
    if not here and not kept:
        raise UserError(f"{runs.root}: no run of the study is done yet")
    cuts, made, facts, look_ups = {}, [], {}, {}
    with progress.bar("collecting", len(here)) as advance:
        for name in sorted(here, key=lambda n: not reads(runs.study.experiment(n))):
            made += _rows(runs, name, cuts)
            facts[name] = _facts(runs, name, look_ups)
            advance(1)
    columns = {n: [m[n] for m in made] for n in sums.COLUMNS}
    for name in sums.TEXTS:
        columns[name] = [np.repeat(m[name], len(m["document"])) for m in made]
    documents: dict[str, list[str]] = {}
    for (where, split), cut in cuts.items():
        if documents.setdefault(split, cut["documents"]) != cut["documents"]:
            raise UserError(
                f"{where}: has other documents held out as {split} than the runs before it, which no row can compare; "
                "give all runs of a study the same text"
            )
    shares = {
        split: found
        for where in dict.fromkeys(runs.prepared(n) for n in here)
        for split, found in contained(WorkDir(where), HELDOUT, list(runs.study.databases)).items()
    }
    if kept:
        before = runs.kept.facts
        for split, ids in before["documents"].items():
            if documents.setdefault(split, ids) != ids or not _same_text(runs.kept, split, cuts):
                raise UserError(
                    f"{runs.study.rows}: its runs were scored on other text of {split} than those of {runs.root}; "
                    "prepare the same text, or leave Study(rows=) out"
                )
        shares = before["contained"] | shares
        keep = np.isin(runs.kept.columns["run"].astype(str), kept)
        facts |= {name: before["runs"][name] for name in kept}
        for name in sums.COLUMNS:
            columns[name].append(runs.kept.columns[name][keep])
    facts = {name: facts[name] for name in runs.names if name in facts}
    whole = {
        "name": runs.study.name, "runs": facts, "missing": [n for n in runs.names if n not in facts],
        "documents": documents, "contained": shares,
        "curves": {m: [n for n in of if n in facts] for m, of in runs.study.curves.items()},
    }  # fmt: skip
    file = runs.root / sums.FILE
    files.make_directory(runs.root)
    sums.write(file, sums.Sums(whole, {n: np.concatenate(x) for n, x in columns.items()}))
    return file


def _same_text(kept: sums.Sums, split: str, cuts: dict) -> bool:
    """Whether the documents of a split have as many bytes as in the rows that are kept."""
    before = kept.of(split=split, part="all")
    size = dict(zip(before["document"].tolist(), before["bytes"].tolist()))
    for cut in (cut for (_, name), cut in cuts.items() if name == split):
        now = np.bincount(cut["document"], cut["bytes"], len(cut["documents"]))
        if any(now[document] != count for document, count in size.items()):
            return False
    return True


def _splits(runs: Runs, name: str) -> dict[str, str]:
    """Split of an evaluation: the prepared split whose tokens it has."""
    splits = {s: s for s in heldout_splits(runs.study.experiment(name))}
    return splits | {f"{HELDOUT}-{d}": HELDOUT for d in runs.study.databases}


def _rows(runs: Runs, name: str, cuts: dict) -> list[dict]:
    """The sums of a run; cuts: {(prepared, split): documents, targets and parts}, which a run that reads adds to."""
    work, where, out = runs.work(name), runs.prepared(name), []
    evaluated = reads(work.experiment)
    for split, of in _splits(runs, name).items():
        if evaluated:
            found = [rows.load(work.evaluated(split) / "tokens.parquet")]
        else:
            methods = methods_of(work.experiment)
            found = [rows.load(work.scored(of, m.name) / "tokens.parquet") for m in methods]
        if (where, split) not in cuts:
            if not evaluated and split != of:
                progress.say(
                    f"{name}: left out of {split}: no run that reads is here, which would cut it in parts"
                )
                continue
            cuts[where, split] = _cut(found[0])
        for one in found:
            out += _summed(name, split, one, cuts[where, split])
    return out


def _cut(found: Rows) -> dict:
    return {
        "documents": [d["id"] for d in found.facts["documents"]],
        "target": found["target"],
        "parts": beside.parts_of(found),
        "document": found["document"],
        "bytes": found["bytes"],
    }


def _summed(name: str, split: str, found: Rows, cut: dict) -> list[dict]:
    if not np.array_equal(found["target"], cut["target"]):
        raise UserError(
            f"run {name}: was scored on other tokens of {split} than the runs before it"
        )
    out, count = [], len(cut["documents"])
    for part, mask in cut["parts"].items():
        number, size = cut["document"][mask], cut["bytes"][mask]
        tokens = np.bincount(number, minlength=count)
        some = np.flatnonzero(tokens)
        said = {"document": some, "tokens": tokens[some]}
        said["bytes"] = np.bincount(number, size, count)[some].astype(np.int64)
        for condition, nats in found.nats.items():
            own = {"run": name, "split": split, "part": part, "condition": condition}
            out.append(own | said | {"nats": np.bincount(number, nats[mask], count)[some]})
    return out


def _facts(runs: Runs, name: str, look_ups: dict) -> dict:
    """What a run is: fields, by which it differs; what, by which it is known again (`Runs.what`); chunk;
    database_chunks; search_flops, of the neighbours of the training text; of each method `_of`.

    look_ups: FLOPs of one, by where the text is prepared and the number of neighbours, to which what is new is added.
    """
    work, e = runs.work(name), runs.study.experiment(name)
    prepared = Prepared(work)
    vocab, of = prepared.tokenizer.vocab, (work.prepared_in, e.retrieval.neighbours)
    if of not in look_ups:
        look_ups[of] = prepared.look_up(e.retrieval.neighbours)
    return {
        "fields": {
            k: list(v) if isinstance(v, tuple) else v for k, v in runs.study.runs[name].items()
        },
        "what": runs.what(name),
        "chunk": e.model.reading.chunk,
        "database_chunks": len(prepared.database),
        "search_flops": look_ups[of] * len(prepared.table(shard_splits(e)[0])),
        "methods": {m.name: _of(work, m, vocab, look_ups[of]) for m in methods_of(e)},
    }


def _of(work, m: Method, vocab: int, look_up: float) -> dict:
    """parameters: all; layers: of the decoder, without embeddings and what retrieval adds; training_flops, without
    the search; flops_per_token: forward, of held-out text, with a look-up for each chunk; seconds of training."""
    e, whole = work.experiment, functional.shapes(m.model, vocab, m.network)
    decoder = functional.shapes(m.model, vocab, False)
    made = artefact.read(work.trained(m.trained_as))
    searching = look_up / e.model.reading.chunk if m.look_ups else 0.0
    return {
        "parameters": functional.count(whole),
        "layers": functional.count(
            {n: s for n, s in decoder.items() if n not in ("embedding", "readout")}
        ),
        "training_flops": run_flops(m, e.train, vocab, 0, made["counts"]["steps"]),
        "flops_per_token": m.flops(vocab, e.train.length) / e.train.length + searching,
        "seconds": made["seconds"],
    }
