"""The held-out loss at a checkpoint: a few batches, always the same, so that checkpoints compare."""

from collections.abc import Callable

import jax
import numpy as np

from retro_jax.config import Experiment
from retro_jax.model.retro import PAD
from retro_jax.records import Records
from retro_jax.train import sharding
from retro_jax.train.step import TrainState, total_loss


def make_validation(
    e: Experiment, records: Records, mesh: jax.sharding.Mesh, retrieval: bool
) -> Callable[[TrainState], float | None]:
    """A function from a state to nats a token of `train.validate` batches of held-out windows, spread
    evenly; or to None, if there are none."""
    size = e.train.batch // e.train.accumulate
    count = min(len(records), e.train.validate * e.train.batch)
    if not count:
        return lambda state: None
    chosen = np.linspace(0, len(records) - 1, count).astype(int)
    rows = sharding.rows_of(mesh, size)

    @jax.jit
    def sums(weights, tokens, neighbours):
        return total_loss(e.model, weights, tokens, neighbours)

    def validate(state: TrainState) -> float:
        total = tokens = 0.0
        for start in range(0, count, size):
            examples = [records[i] for i in chosen[start : start + size]]
            blank = {name: np.full_like(value, PAD) for name, value in examples[0].items()}
            examples += [blank] * (size - len(examples))
            names = ("tokens", "neighbours") if retrieval else ("tokens",)
            local = {n: np.stack([examples[r][n] for r in rows]).astype(np.int32) for n in names}
            given = sharding.shard_batch(mesh, local, size)
            nats, scored = sums(state.weights(), given["tokens"], given.get("neighbours"))
            total, tokens = total + float(nats), tokens + float(scored)
        return total / max(tokens, 1)

    return validate
