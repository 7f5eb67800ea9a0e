"""Methods beside each other: what each said of the same tokens, in one file, and the figures of a comparison."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from retro_jax.evaluate import likelihood, rows, signals
from retro_jax.evaluate.overlap import is_little
from retro_jax.evaluate.rows import Rows
from retro_jax.evaluate.where import is_far, passages, where
from retro_jax.store import artefact, files

BASE = "language_model"  # what every method is compared with
# The parts of a text (`parts_of`), and what a table calls them.
PARTS = {"all": "all", "filtered": "little overlap", "novel": "no copy", "far": "far"}


def join(parts: dict[str, list[Path]], meanings: dict[str, str], out: Path) -> dict:
    """Puts what methods said of the same tokens into `out`/tokens.parquet, and figures into summary.json, which it
    returns.

    Columns are logp_METHOD, logp_METHOD random, logp_METHOD k=1; of the second training of each `logp_METHOD@1`.

    Args:
      parts: of each method the directories of what it said, one a training. meanings: of each, what it reads.
    """
    files_of = {
        name: [pq.ParquetFile(path / "tokens.parquet") for path in paths]
        for name, paths in parts.items()
    }
    base, file = files_of[BASE][0], out / "tokens.parquet"
    schema = base.schema_arrow
    facts = json.loads(schema.metadata[b"retro_jax"]) | {"tuned": {}}
    facts["methods"], facts["seeds"] = meanings, len(parts[BASE])
    said = {}
    for name, opened in files_of.items():
        facts["tuned"] |= _facts(opened[0])["tuned"]
        for seed, part in enumerate(opened):
            columns = [n for n in part.schema_arrow.names if n.startswith("logp_")]
            known = set() if seed or name != BASE else set(columns)
            for n in (n for n in columns if n not in known):
                to = f"{n}@{seed}" if seed else n
                said[to] = part.read([n])[n].combine_chunks()
    schema = pa.schema(
        [*schema, *((n, pa.float32()) for n in said)], {"retro_jax": json.dumps(facts)}
    )
    # What any method read: so all have the same tokens that share little, or end no copy.
    every = [part for opened in files_of.values() for part in opened]
    shared = {n: _most(every, n) for n in ("copied", "overlap")}
    at = 0
    with pq.ParquetWriter(file, schema, **likelihood.WRITING) as writer:
        for batch in base.iter_batches():
            now = slice(at, at + len(batch))
            arrays = [
                pa.array(shared[f.name][now]) if f.name in shared else batch[f.name]
                for f in base.schema_arrow
            ]
            arrays += [column.slice(at, len(batch)) for column in said.values()]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
            at += len(batch)
    cost = {name: artefact.read(paths[0])["counts"] for name, paths in parts.items()}
    result = summary(rows.load(file), cost)
    files.write_json(out / "summary.json", result)
    return result


def _facts(part: pq.ParquetFile) -> dict:
    return json.loads(part.schema_arrow.metadata[b"retro_jax"])


def _most(parts, name: str) -> np.ndarray:
    """The largest value of a column in any of the files."""
    return np.max([part.read([name])[name].to_numpy() for part in parts], axis=0)


def trainings(found: Rows) -> list[Rows]:
    """The rows of each training, under the same names."""
    out = [Rows(found.facts, {}, found.columns) for _ in range(found.facts.get("seeds", 1))]
    for name, nats in found.nats.items():
        plain, _, seed = name.partition("@")
        out[int(seed or 0)].nats[plain] = nats
    return out


def mean(each: list[Rows]) -> Rows:
    """The mean of trainings, of what all of them have."""
    names = [n for n in each[0].nats if all(n in r.nats for r in each)]
    nats = {n: np.mean([r.nats[n] for r in each], axis=0) for n in names}
    only = {n: x for n, x in each[0].nats.items() if n not in nats}
    return Rows(each[0].facts, nats | only, each[0].columns)


def parts_of(found: Rows) -> dict[str, np.ndarray]:
    """PARTS of a text, as masks of its tokens [T]: all; filtered, what shares little with what was read; novel,
    the tokens that end no copy; far, the half whose nearest neighbour is farther, or that has none. filtered and novel
    choose by what came of reading; far by what is known before (`where.is_far`)."""
    facts = found.facts
    little = is_little(found["overlap"], facts["filter_overlap"], facts["chunk"])
    return {
        "all": np.ones(len(found), bool),
        "filtered": little,
        "novel": found["copied"] == 0,
        "far": is_far(found),
    }


def summary(found: Rows, cost: dict[str, dict]) -> dict:
    """Of each method: bits per byte, what it gains over the language model, what its neighbours' content is worth,
    on all text, on what shares little with what was read, and on tokens that end no copy; help and harm; costs; bits,
    gains and costs with fewer neighbours (`fewer`; what they change is of the first training). pairs: bits per byte
    that the second is better than the first. where, passages: see where.py. Of several trainings all are means; `seeds`
    has the bits of each; `tuned` is of the first."""
    facts, each = found.facts, trainings(found)
    whole, out, keep = mean(each), {}, parts_of(found)
    cut = {part: [r.where(mask) for r in each] for part, mask in keep.items()}
    for name in facts["methods"]:
        out[name] = {"reads": facts["methods"][name], **cost[name]}
        for part, of in cut.items():
            out[name][part] = _figures(of, name) if len(of[0]) else None
        if name != BASE:
            out[name]["harm"] = _mean([signals.harm(r, BASE, name) for r in each])
        if len(each) > 1:
            out[name]["seeds"] = [signals.bits_per_byte(r)[name] for r in each]
        prefix = f"{name} k="
        fewer = {n.removeprefix(prefix): n for n in found.nats if n.startswith(prefix)}
        out[name]["fewer"] = {}
        for k, n in fewer.items():  # of the first training, which is not the mean of all
            less = signals.bits_per_byte(each[0])
            bits = out[name]["all"]["bits_per_byte"] + less[n] - less[name]
            gain = {
                part: signals.effect_over(of[:1], BASE, n) if len(of[0]) else None
                for part, of in cut.items()
            }
            costs = out[name].pop(f"k={k}")
            out[name]["fewer"][k] = {"bits_per_byte": bits, "gain": gain, **costs}
    size = found["bytes"].sum()
    return {
        "methods": out,
        "documents": len(facts["documents"]),
        "tokens": len(found),
        "bytes": int(size),
        "trainings": len(each),
        "filtered_share_of_bytes": float(found["bytes"][keep["filtered"]].sum() / size),
        "novel_share_of_bytes": float(found["bytes"][keep["novel"]].sum() / size),
        "violations": facts["violations"],
        "whole_chunks": facts["whole_chunks"],
        "tuned": facts["tuned"],
        "pairs": {
            a: {b: signals.effect_over(each, a, b) for b in out if b != a} for a in out if a != BASE
        },
        "where": where(whole, BASE, [n for n in out if n != BASE]),
        "passages": passages(whole, list(out)),
    }


def _mean(each: list[dict]) -> dict:
    """Of numbers by name; None where one is."""
    return {
        n: None if None in (values := [of[n] for of in each]) else float(np.mean(values))
        for n in each[0]
    }


def _figures(each: list[Rows], name: str) -> dict:
    random = f"{name} random"
    of = {"bits_per_byte": float(np.mean([signals.bits_per_byte(r)[name] for r in each]))}
    if name != BASE:
        of["gain"] = signals.effect_over(each, BASE, name)
    if random in each[0].nats:
        of["content"] = signals.effect_over(each, random, name)
    return of
