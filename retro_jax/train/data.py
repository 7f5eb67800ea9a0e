"""Training batches: the order is a function of seed and step alone.

So a resumed run continues it, and any number of processes sees the same batches.
"""

import functools
from collections.abc import Iterator, Sequence

import grain
import numpy as np

from retro_jax.config import TrainConfig
from retro_jax.store.records import Records
from retro_jax.train.trainable import Trainable


def batches(
    records: Records,
    config: TrainConfig,
    method: Trainable,
    start: int,
    rows: Sequence[int] | None = None,
) -> Iterator[dict]:
    """Batches of the steps from `start` on, read ahead while the caller computes.

    Args:
      rows: those of each batch that this process wants; all, if None.

    Yields:
      What the method has of an example, with a first axis [B]; and records [B] int64: where in the
      shards they are from.
    """
    rows = range(config.batch) if rows is None else rows
    make = functools.partial(_example, records=records, config=config, method=method)
    examples = order(len(records), config.seed).map_with_index(make)
    stream = iter(
        grain.MapDataset.source(_Share(examples, config.batch, rows))
        .batch(len(rows))
        .to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=8))
    )
    stream.set_state({"next_index": start})
    return stream


def arrays(batch: dict) -> dict:
    """Of a batch what a step is given: not which records its rows are from."""
    return {name: array for name, array in batch.items() if name != "records"}


def order(count: int, seed: int) -> grain.MapDataset:
    """The record of the i-th example of a run: a new permutation of `count` records in every epoch."""
    return grain.MapDataset.range(count).seed(seed).shuffle().repeat()


class _Share:
    """Of examples that come in batches, the rows that one process wants."""

    def __init__(self, examples: grain.MapDataset, batch: int, rows: Sequence[int]):
        self._examples, self._batch, self._rows = examples, batch, rows

    def __len__(self) -> int:
        return len(self._examples) // self._batch * len(self._rows)

    def __getitem__(self, i: int) -> dict:
        step, row = divmod(i, len(self._rows))
        return self._examples[step * self._batch + self._rows[row]]


def _example(
    index: int, record: int, records: Records, config: TrainConfig, method: Trainable
) -> dict:
    rng = np.random.default_rng((config.seed, index))
    made = method.example(records[record], rng, index // config.batch)
    return made | {"records": np.int64(record)}
