"""Per-token log-probabilities of held-out text under each retrieval condition.

on: the chunk's real neighbours. off: none; every chunked cross-attention is the identity. random:
chunks drawn uniformly from the database. baseline: a language model trained without retrieval.
"""

from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

from retro_jax import progress, steps
from retro_jax.config import Experiment
from retro_jax.corpus.tokenizer import PAD
from retro_jax.evaluate.overlap import chunk_overlap
from retro_jax.model import functional
from retro_jax.records import Records
from retro_jax.train import sharding
from retro_jax.train.loop import restore_trained


def score(experiment: Experiment, root: Path, split: str) -> dict[str, np.ndarray]:
    """Scores every token of every document of a held-out split exactly once.

    Returns:
      Arrays of one row a token: document, bytes, overlap (of its chunk), and nats under each
      condition: on, off, random and, if there is one, baseline.
    """
    e, base = experiment, Path(root) / "prepare"
    mesh = sharding.make_mesh(e.mesh)
    tokenizer = steps.load_tokenizer(base)
    sharding.check_divides(mesh, e.model, tokenizer.vocab, evaluate_batch=e.evaluate.batch)
    records = Records(base / "shards" / split)
    database = steps.table_of(base, steps.database_split(e))
    byte_counts, rng, rows = tokenizer.byte_counts, np.random.default_rng(0), []
    with jax.set_mesh(mesh):
        models = {"retro": restore_trained(e, root, True, mesh)}
        if "baseline" in e.train.models:
            models["baseline"] = restore_trained(e, root, False, mesh)
        logprobs = jax.jit(lambda p, x, n: functional.token_logprobs(e.model, p, x, n))
        with progress.bar(f"scoring {split} windows", len(records)) as advance:
            for batch, count in _batches(records, e.evaluate.batch):
                drawn = rng.integers(0, len(database), batch["neighbour_ids"].shape)
                drawn = np.where(batch["neighbour_ids"] < 0, -1, drawn)
                arrays = sharding.shard_batch(
                    mesh,
                    {
                        "tokens": batch["tokens"].astype(np.int32),
                        "on": batch["neighbours"].astype(np.int32),
                        "random": database.values(drawn).astype(np.int32),
                    },
                )
                x = arrays["tokens"]
                nats = {
                    "on": logprobs(models["retro"], x, arrays["on"]),
                    "off": logprobs(models["retro"], x, None),
                    "random": logprobs(models["retro"], x, arrays["random"]),
                }
                if "baseline" in models:
                    nats["baseline"] = logprobs(models["baseline"], x, None)
                nats = {name: -np.asarray(value) for name, value in nats.items()}
                rows.append(_rows(batch, count, nats, byte_counts, e.model.chunk))
                advance(count)
    return {name: np.concatenate([r[name] for r in rows]) for name in rows[0]}


def _batches(records: Records, size: int) -> Iterator[tuple[dict, int]]:
    """Batches of `size` records, the last one filled with PAD, and how many are real."""
    for start in range(0, len(records), size):
        examples = [records[i] for i in range(start, min(start + size, len(records)))]
        count = len(examples)
        blank = {name: np.zeros_like(value) for name, value in examples[0].items()}
        examples += [blank] * (size - count)
        yield {name: np.stack([x[name] for x in examples]) for name in blank}, count


def _rows(batch: dict, count: int, nats: dict, byte_counts: np.ndarray, m: int) -> dict:
    """The scored tokens of a batch, one row each."""
    tokens = batch["tokens"]
    size, length = tokens.shape
    position = np.arange(length)
    # Special tokens hold no byte of the text; position 0 is predicted by nothing.
    scored = (byte_counts[tokens] > 0) & (tokens != PAD)
    scored &= (position >= batch["first_scored"]) & (position > 0)
    scored &= np.arange(size)[:, None] < count
    overlap = chunk_overlap(tokens.reshape(size, -1, m), batch["neighbours"])
    return {
        "document": batch["documents"].repeat(m, axis=1)[scored],
        "overlap": overlap.repeat(m, axis=1)[scored].astype(np.float32),
        "bytes": byte_counts[tokens][scored],
        **{name: value[scored] for name, value in nats.items()},
    }
