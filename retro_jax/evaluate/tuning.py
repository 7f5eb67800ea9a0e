"""Settings that a method can choose: chosen on one half of the held-out documents, and scored on the other.

Every second document, in the order of their ids, is of the one half; the halves change places, so that every token is
scored with settings that its own document had no part in choosing. A method with random neighbours, or with what it
looks up drawn at random, has the settings that were chosen for its real ones.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from retro_jax.evaluate.likelihood import WRITING, Column


def settle(raw: Path, file: Path, columns: Sequence[Column]):
    """Rows (`likelihood.schema`) whose tuned columns have the log-probabilities of every choice [A], to rows that have
    those of what was chosen. The facts get `tuned`: of each method the settings of either half."""
    source = pq.ParquetFile(raw)
    schema = source.schema_arrow
    facts = json.loads(schema.metadata[b"retro_jax"])
    half = halves([d["id"] for d in facts["documents"]])
    tuned = [c for c in columns if c.tuned]
    real = {c.method.name: c for c in tuned if c.name == c.method.name}
    chosen = {name: _chosen(source, c, half) for name, c in real.items()}
    facts["tuned"] = {
        name: [dataclasses.asdict(c.method.choices()[i]) for i in chosen[name]]
        for name, c in real.items()
    }
    names = {f"logp_{c.name}": chosen[c.method.name] for c in tuned}
    fields = [pa.field(f.name, pa.float32()) if f.name in names else f for f in schema]
    out = pa.schema(fields, metadata={"retro_jax": json.dumps(facts)})
    with pq.ParquetWriter(file, out, **WRITING) as writer:
        for batch in source.iter_batches():
            of = half[batch["document"].to_numpy()]
            arrays = [
                pa.array(_matrix(batch[f.name])[np.arange(len(of)), np.array(names[f.name])[of]])
                if f.name in names
                else batch[f.name]
                for f in schema
            ]
            writer.write_table(pa.Table.from_arrays(arrays, schema=out))


def halves(ids: list[str]) -> np.ndarray:
    """Of each document, by its id, in which half it is: 0 or 1 [D]."""
    return np.argsort(np.argsort(ids, kind="stable")) % 2


def _chosen(source: pq.ParquetFile, column: Column, half: np.ndarray) -> list[int]:
    """Which choice either half is scored with: the best of the other one, or a method's own settings where the other
    half has no token."""
    name = f"logp_{column.name}"
    total = np.zeros((2, len(column.method.choices())))
    for batch in source.iter_batches(columns=["document", name]):
        of, logp = half[batch["document"].to_numpy()], _matrix(batch[name]).astype(np.float64)
        for h in (0, 1):
            total[h] += logp[of == h].sum(axis=0)
    return [int(total[1 - h].argmax()) for h in (0, 1)]


def _matrix(column: pa.Array) -> np.ndarray:
    return column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)
