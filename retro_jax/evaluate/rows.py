"""The rows that `likelihood.score` wrote, as arrays."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from retro_jax.errors import UserError

_ANEW = "delete the folder that it is in, and run `retro evaluate`"


@dataclass
class Rows:
    """One entry a token in every array; see `likelihood.schema`.

    Attributes:
      facts: what was evaluated, and with what; ms_per_token: what scoring a token took, by condition, in batches.
      nats: -log p of each token, by condition.
      columns: the other columns; lists are [T, n].
    """

    facts: dict
    nats: dict[str, np.ndarray]
    columns: dict[str, np.ndarray]

    def __getitem__(self, name: str) -> np.ndarray:
        return self.columns[name]

    def __len__(self) -> int:
        return len(self.columns["target"])

    @property
    def rank(self) -> np.ndarray:
        """Of each document its number in the order of their ids [D]: what is drawn goes by it, so that it does
        not matter how they came."""
        return np.argsort(np.argsort([d["id"] for d in self.facts["documents"]], kind="stable"))

    @property
    def conditions(self) -> list[str]:
        """Those that were scored, in order."""
        return list(self.nats)

    def where(self, keep: np.ndarray) -> "Rows":
        """The rows of a mask [T]."""
        nats, others = ({n: x[keep] for n, x in d.items()} for d in (self.nats, self.columns))
        return Rows(self.facts, nats, others)


def load(file: Path) -> Rows:
    """Reads the rows, but for the texts.

    Raises:
      UserError: the file is missing or none of ours.
    """
    try:
        table = pq.ParquetFile(file, page_checksum_verification=True)
        facts = json.loads(table.schema_arrow.metadata[b"retro_jax"])
        facts["ms_per_token"] = json.loads(
            (table.metadata.metadata or {}).get(b"ms_per_token", "{}")
        )
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{file}: no rows of an evaluation ({error}); run `retro evaluate`"
        ) from error
    names = [f.name for f in table.schema_arrow if f.name not in ("read", "sources")]
    try:
        data, nats, others = table.read(names), {}, {}
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: is damaged ({error}); {_ANEW}") from error
    for name in names:
        column = data[name].combine_chunks()
        kind = column.type
        if name.startswith("logp_"):
            nats[name[5:]] = -column.to_numpy().astype(np.float64)
        elif hasattr(kind, "list_size"):
            others[name] = (
                column.flatten().to_numpy(zero_copy_only=False).reshape(-1, kind.list_size)
            )
        else:
            others[name] = column.to_numpy()
    return Rows(facts, nats, others)


def texts(file: Path, begins: set[int]) -> dict[int, tuple[np.ndarray, list[str]]]:
    """What chunks read whose first rows are `begins`: the tokens of the neighbours [K, R], and where each is
    from."""
    found, row = {}, 0
    for batch in pq.ParquetFile(file, page_checksum_verification=True).iter_batches(
        columns=["read", "sources"]
    ):
        tokens, sources = batch.columns
        for at in sorted(b - row for b in begins if row <= b < row + len(tokens)):
            names = sources[at].as_py()
            read = np.array(tokens[at].as_py(), np.int32).reshape(len(names), -1)
            found[row + at] = read, names
        row += len(tokens)
    return found
