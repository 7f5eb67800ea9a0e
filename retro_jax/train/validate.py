"""The held-out loss at a checkpoint: a few batches, always the same, so that checkpoints compare."""

import math
from collections.abc import Callable

import jax
import numpy as np

from retro_jax.config import TrainConfig
from retro_jax.model.retro import PAD
from retro_jax.store.records import Records
from retro_jax.train import sharding
from retro_jax.train.step import TrainState
from retro_jax.train.trainable import Trainable


def make_validation(
    train: TrainConfig, records: Records, mesh: jax.sharding.Mesh, method: Trainable
) -> Callable[[TrainState], float | None]:
    """A function from a state to nats a token of `train.validate` batches of held-out windows, spread
    evenly; or to None, if there are none."""
    size = train.batch // train.accumulate
    count = min(len(records), train.validate * train.batch)
    if not count:
        return lambda state: None
    chosen = np.linspace(0, len(records) - 1, count).astype(int)
    rows = sharding.rows_of(mesh, size)

    sums, rng = jax.jit(method.loss), np.random.default_rng(0)

    def validate(state: TrainState) -> float:
        total = tokens = 0.0
        for start in range(0, count, size):
            # The run being over, a method adds nothing of its own.
            examples = [
                method.example(records[i], rng, math.inf) for i in chosen[start : start + size]
            ]
            blank = {name: np.full_like(value, PAD) for name, value in examples[0].items()}
            examples += [blank] * (size - len(examples))
            local = {n: np.stack([examples[r][n] for r in rows]) for n in blank}
            nats, scored = sums(state.weights(), sharding.shard_batch(mesh, local, size))
            total, tokens = total + float(nats), tokens + float(scored)
        return total / max(tokens, 1)

    return validate
