"""The rows of a study: sums by document, in one small file from which every figure is computed.

A row is a run, a split, a part of it (`beside.PARTS`), a condition and a document: tokens, bytes, nats. What the runs
are (fields, parameters, FLOPs) stands with them.
"""

import functools
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from retro_jax.errors import UserError
from retro_jax.evaluate import likelihood
from retro_jax.store import files

FILE = "rows.parquet"
TEXTS = ("run", "split", "part", "condition")
_SCHEMA = [(name, pa.dictionary(pa.int32(), pa.string())) for name in TEXTS]
_SCHEMA += [
    ("document", pa.int32()),
    ("tokens", pa.int32()),
    ("bytes", pa.int32()),
    ("nats", pa.float64()),
]


COLUMNS = tuple(name for name, _ in _SCHEMA)


@dataclass
class Sums:
    """The rows as arrays.

    Attributes:
      facts: name, runs {run: what it is}, missing: runs that are not done, documents {split: ids}, curves {method:
        runs}, contained {split: of each document the largest share of its 13-grams that stands in one document of the
        database}.
      columns: run, split, part, condition, document, tokens, bytes, nats, one entry a row.
    """

    facts: dict
    columns: dict[str, np.ndarray]

    def of(self, **chosen: str) -> dict[str, np.ndarray]:
        """The columns of those rows that have these values: of(run="a", part="all")."""
        found = [
            rows
            for values, rows in self._groups
            if all(values[TEXTS.index(name)] == value for name, value in chosen.items())
        ]
        keep = np.sort(np.concatenate(found)) if found else np.empty(0, int)
        return {name: x[keep] for name, x in self.columns.items()}

    @functools.cached_property
    def _groups(self) -> list[tuple[tuple[str, ...], np.ndarray]]:
        """Run, split, part and condition, and the numbers of the rows that have them: a page asks thousands of times,
        and comparing the texts of all rows each time would take minutes."""
        columns = [pa.array(self.columns[n]).dictionary_encode() for n in TEXTS]
        codes = np.stack([c.indices.to_numpy() for c in columns])
        values, of = np.unique(codes, axis=1, return_inverse=True)
        ends = np.cumsum(np.bincount(of, minlength=values.shape[1]))
        rows = np.split(np.argsort(of, kind="stable"), ends[:-1])
        names = [[c.dictionary[i].as_py() for i in own] for c, own in zip(columns, values)]
        return list(zip(zip(*names), rows))


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


def write(file: Path, sums: Sums):
    """Writes rows to a file."""
    schema = pa.schema(_SCHEMA, {"retro_jax": json.dumps(sums.facts)})
    arrays = [pa.array(sums.columns[n]).cast(kind) for n, kind in _SCHEMA]
    with pq.ParquetWriter(files.aside(file), schema, **likelihood.WRITING) as writer:
        writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
    files.replace(files.aside(file), file)
