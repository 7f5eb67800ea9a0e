"""The steps `shards/SPLIT`: TFRecord shards of sequences with the neighbours of their chunks."""

import functools
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from retro_jax.corpus.chunks import ChunkTable
from retro_jax.pipeline import sequences
from retro_jax.pipeline.step import Advance, Files, Some, nothing_done
from retro_jax.store import records
from retro_jax.store.columns import Columns, equal
from retro_jax.store.records import Records


class WriteShards(Files):
    """Records of tokens and neighbours (`sequences.record`); a part is a shard, a file."""

    unit = "records"

    @property
    def doing(self) -> str:
        """For a progress bar."""
        return f"writing {self.split} shards"

    @functools.cached_property
    def table(self) -> ChunkTable:
        """The split's chunks."""
        return ChunkTable(self.at(self.inputs[0]))

    @functools.cached_property
    def database(self) -> ChunkTable:
        """The chunks that are retrieved; the split's own where that is the database."""
        return ChunkTable(self.at(self.inputs[-2]))

    @functools.cached_property
    def _near(self) -> tuple[np.ndarray, np.ndarray]:
        near = Columns(self.at(self.inputs[-1]))
        return near["ids"], near["distances"]

    @property
    def _cut(self) -> tuple[int, int]:
        """Chunks of a sequence, and between windows."""
        stride = self.settings.get("evaluate.stride", 0)  # training text has none
        return self.settings["train.length"] // self.table.chunk, stride // self.table.chunk

    def records(self) -> int:
        """How many there are."""
        return sequences.count(self.table, self.split, *self._cut)

    def examples(
        self, start: int, values: Callable | None = None
    ) -> Iterator[dict[str, np.ndarray]]:
        """The records from number `start` on; values: from ids to tokens, by default the database's."""
        values = values or self.database.values
        for rows, scored in sequences.cuts(self.table, self.split, *self._cut, start):
            yield sequences.record(self.table, values, rows, scored, *self._near)

    @functools.cached_property
    def first(self) -> dict[str, np.ndarray]:
        """The first record, whose neighbours are left out: what all of them are like."""
        width = 2 * self.table.chunk
        return next(self.examples(0, lambda ids: np.zeros((*ids.shape, width), np.int64)))

    @property
    def per_shard(self) -> int:
        """Records of a shard."""
        return records.per_shard(self.first)

    def parts(self) -> int:
        """Shards."""
        return -(-self.records() // self.per_shard)

    def there(self, part: int, out: Path) -> bool:
        """Whether a shard is complete."""
        return (out / records.shard_name(part)).exists()

    def make(self, part: int, out: Path, advance: Advance = nothing_done):
        """Writes a shard."""
        self.write(part, out, self.examples(part * self.per_shard))
        advance(1)

    def write(self, part: int, out: Path, examples: Iterator[dict[str, np.ndarray]]):
        """Writes a shard of the next examples, which are to be like the first."""
        records.write_shard(
            out, part, itertools.islice(examples, self.per_shard), records.describe(self.first)
        )

    def finish(self, out: Path) -> dict:
        """Writes what the records hold."""
        count = self.records()
        records.write_layout(out, records.describe(self.first), count)
        return {"records": count}

    def again(self, some: Some) -> Iterator[tuple[str, bool]]:
        """Some records made again; every record's checksum is looked at."""
        stored, count = Records(self.out), 0
        chosen = some(len(stored))
        for count, (rows, scored) in enumerate(
            sequences.cuts(self.table, self.split, *self._cut), 1
        ):
            if count > len(stored):
                continue
            record = stored[count - 1]
            if count - 1 in chosen:
                made = sequences.record(self.table, self.database.values, rows, scored, *self._near)
                same = made.keys() == record.keys() and all(
                    equal(record[name], made[name]) for name in made
                )
                yield f"record {count - 1}", same
        if count != len(stored):
            yield f"{len(stored)} records, not {count}", False
