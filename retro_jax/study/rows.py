"""What the runs of a study say: sums by document, in one small file from which every figure is computed.

A row is a run, a split, a part of it (`beside.PARTS`), a condition and a document: tokens, bytes, nats. What the runs
are (fields, parameters, FLOPs) stands with them.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from retro_jax import progress
from retro_jax.errors import UserError
from retro_jax.evaluate import beside, likelihood, rows
from retro_jax.evaluate.rows import Rows
from retro_jax.methods.method import Method, methods_of
from retro_jax.model import functional
from retro_jax.pipeline.prepared import Prepared
from retro_jax.pipeline.recipe import shard_splits
from retro_jax.store import artefact
from retro_jax.store.workdir import WorkDir
from retro_jax.study.contained import contained
from retro_jax.study.runs import HELDOUT, Runs
from retro_jax.train.log import run_flops

FILE = "rows.parquet"
_TEXTS = ("run", "split", "part", "condition")
_SCHEMA = [(name, pa.dictionary(pa.int32(), pa.string())) for name in _TEXTS]
_SCHEMA += [
    ("document", pa.int32()),
    ("tokens", pa.int32()),
    ("bytes", pa.int32()),
    ("nats", pa.float64()),
]


@dataclass
class Sums:
    """The rows as arrays.

    Attributes:
      facts: name, runs {run: what it is}, documents {split: ids}, curves {method: runs}, contained {split: of each
        document the largest share of its 13-grams that stands in one document of the database}.
      columns: run, split, part, condition, document, tokens, bytes, nats, one entry a row.
    """

    facts: dict
    columns: dict[str, np.ndarray]

    def of(self, **chosen: str) -> dict[str, np.ndarray]:
        """The columns of those rows that have these values: of(run="a", part="all")."""
        keep = np.ones(len(self.columns["nats"]), bool)
        for name, value in chosen.items():
            keep &= self.columns[name] == value
        return {name: x[keep] for name, x in self.columns.items()}


def collect(runs: Runs) -> Path:
    """Writes the rows of all runs that are done; the file.

    Raises:
      UserError: none is done, or one was scored on other text than another.
    """
    done = [name for name in runs.names if runs.done(name)]
    if not done:
        raise UserError(f"{runs.root}: no run of the study is done yet")
    reading = [n for n in done if _reads(runs, n)]
    cuts, made, facts = {}, [], {}
    with progress.bar("collecting", len(done)) as advance:
        for name in [*reading, *(n for n in done if n not in reading)]:
            made += _rows(runs, name, cuts)
            facts[name] = _facts(runs, name)
            advance(1)
    documents = {split: cut["documents"] for (_, split), cut in cuts.items()}
    metadata = {"name": runs.study.name, "runs": facts, "documents": documents}
    metadata["contained"] = {
        split: shares
        for where in dict.fromkeys(runs.prepared(n) for n in done)
        for split, shares in contained(WorkDir(where), HELDOUT, list(runs.study.databases)).items()
    }
    metadata["curves"] = {
        m: [n for n in names if n in facts] for m, names in runs.study.curves.items()
    }
    schema = pa.schema(_SCHEMA, {"retro_jax": json.dumps(metadata)})
    arrays = [
        pa.array([m[n] for m in made for _ in m["document"]]).cast(kind)
        if n in _TEXTS
        else pa.array(np.concatenate([m[n] for m in made]), kind)
        for n, kind in _SCHEMA
    ]
    file = runs.root / FILE
    with pq.ParquetWriter(file, schema, **likelihood.WRITING) as writer:
        writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
    return file


def load(file: Path) -> Sums:
    """The rows of a file.

    Raises:
      UserError: it is missing, or none of ours.
    """
    try:
        table = pq.read_table(file)
        facts = json.loads(table.schema.metadata[b"retro_jax"])
        columns = {n: table[n].to_numpy() for n, _ in _SCHEMA}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{file}: no rows of a study ({error}); run `retro study`") from error
    return Sums(facts, columns)


def _reads(runs: Runs, name: str) -> bool:
    return any(m.network and m.trained for m in methods_of(runs.study.experiment(name)))


def _splits(runs: Runs, name: str) -> dict[str, str]:
    """Split of an evaluation: the prepared split whose tokens it has."""
    splits = {s: s for s in shard_splits(runs.study.experiment(name))[1:]}
    return splits | {f"{HELDOUT}-{d}": HELDOUT for d in runs.study.databases}


def _rows(runs: Runs, name: str, cuts: dict) -> list[dict]:
    """The sums of a run; cuts: {(prepared, split): documents, targets and parts}, which a run that reads adds to."""
    work, where, out = runs.work(name), runs.prepared(name), []
    reads = _reads(runs, name)
    for split, of in _splits(runs, name).items():
        if reads:
            found = [rows.load(work.evaluated(split) / "tokens.parquet")]
        else:
            methods = methods_of(work.experiment)
            found = [rows.load(work.scored(of, m.name) / "tokens.parquet") for m in methods]
        if (where, split) not in cuts:
            if not reads and split != of:
                continue  # nobody has looked these chunks up in that database
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
        sums = {"document": some, "tokens": tokens[some]}
        sums["bytes"] = np.bincount(number, size, count)[some].astype(np.int64)
        for condition, nats in found.nats.items():
            own = {"run": name, "split": split, "part": part, "condition": condition}
            out.append(own | sums | {"nats": np.bincount(number, nats[mask], count)[some]})
    return out


def _facts(runs: Runs, name: str) -> dict:
    """What a run is: its fields, methods, seed, steps, tokens seen, and of each method `_of`."""
    work, e = runs.work(name), runs.study.experiment(name)
    prepared = Prepared(work)
    vocab = prepared.tokenizer.vocab
    return {
        "fields": {
            k: list(v) if isinstance(v, tuple) else v for k, v in runs.study.runs[name].items()
        },
        "seed": e.train.seed,
        "tokens": e.train.steps * e.train.batch * e.train.length,
        "chunk": e.model.reading.chunk,
        "training_chunks": len(prepared.table("train")),
        "database_chunks": len(prepared.database),
        "methods": {m.name: _of(work, m, vocab) for m in methods_of(e)},
    }


def _of(work, m: Method, vocab: int) -> dict:
    """parameters: all; layers: of the decoder, without embeddings and what retrieval adds; training_flops;
    flops_per_token: forward, of held-out text, without the search; seconds of training."""
    e, whole = work.experiment, functional.shapes(m.model, vocab, m.network)
    decoder = functional.shapes(m.model, vocab, False)
    made = artefact.read(work.trained(m.trained_as))
    return {
        "parameters": functional.count(whole),
        "layers": functional.count(
            {n: s for n, s in decoder.items() if n not in ("embedding", "readout")}
        ),
        "training_flops": run_flops(m, e.train, vocab, 0, made["counts"]["steps"]),
        "flops_per_token": m.flops(vocab, e.train.length) / e.train.length,
        "seconds": made["seconds"],
        "tokens_per_second": made["counts"]["tokens_per_second"],
    }
