"""Training batches: the order is a function of seed and step alone.

So a resumed run continues it, and any number of processes sees the same batches.
"""

import functools
from collections.abc import Iterator, Sequence

import grain
import numpy as np

from retro_jax.config import TrainConfig
from retro_jax.model.retro import PAD
from retro_jax.records import Records


def batches(
    records: Records,
    config: TrainConfig,
    start: int,
    retrieval: bool,
    rows: Sequence[int] | None = None,
) -> Iterator[dict]:
    """Batches of the steps from `start` on, read ahead while the caller computes.

    rows: those of each batch that this process wants; all, if None.

    Yields:
      tokens [B, L] int32, with retrieval neighbours [B, C, K, R] int32, and records [B] int64: where in
      the shards they are from.
    """
    rows = range(config.batch) if rows is None else rows
    make = functools.partial(_example, records=records, config=config, retrieval=retrieval)
    examples = order(len(records), config.seed).map_with_index(make)
    stream = iter(
        grain.MapDataset.source(_Share(examples, config.batch, rows))
        .batch(len(rows))
        .to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=8))
    )
    stream.set_state({"next_index": start})
    return stream


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
    index: int, record: int, records: Records, config: TrainConfig, retrieval: bool
) -> dict:
    read = records[record]
    example = {"tokens": read["tokens"].astype(np.int32), "records": np.int64(record)}
    if retrieval:
        neighbours = read["neighbours"].astype(np.int32)
        share = own_continuation_share(index // config.batch, config)
        if share > 0:
            rng = np.random.default_rng((config.seed, index))
            add_own_continuations(neighbours, example["tokens"], read["documents"], share, rng)
        example["neighbours"] = neighbours
    return example


def own_continuation_share(step: int, config: TrainConfig) -> float:
    """Share of the chunks that get their own continuation: constant, then falls linearly to 0."""
    end = config.own_continuation_until * config.steps
    return config.own_continuation * min(1.0, max(0.0, 2 * (1 - step / end))) if end else 0.0


def add_own_continuations(neighbours, tokens, documents, share: float, rng):
    """Replaces, for a share of the chunks, one neighbour by the chunk's own continuation.

    What it stands for is a neighbour that continues as the chunk does, which natural text gives too
    seldom for a small model to learn reading from. The copy is shifted by up to half a chunk and a
    twentieth of its tokens are replaced, so that only matching by content, and not position, finds the
    next token. This is made here, in training, and never in a shard.

    Args:
      neighbours: [C, K, R], changed in place.
      tokens: [L], the sequence.
      documents: [C], the document of each chunk; a continuation stays in its chunk's document.
    """
    chunks, k, width = neighbours.shape
    m = len(tokens) // chunks
    for c in np.flatnonzero(rng.random(chunks) < share):
        at = c * m + rng.integers(-m // 2, m // 2 + 1) + np.arange(width)
        inside = (at >= 0) & (at < len(tokens))
        at = np.where(inside, at, 0)
        inside &= documents[at // m] == documents[c]
        noise = rng.random(width) < 0.05
        at = np.where(noise, rng.integers(0, len(tokens), width), at)
        neighbours[c, rng.integers(k)] = np.where(inside, tokens[at], PAD)
