"""The evaluate stage: score held-out text, count leaks, write evaluate/result.json."""

import dataclasses
from pathlib import Path

import numpy as np

from retro_jax import progress, workdir
from retro_jax.config import Experiment
from retro_jax.corpus.chunks import ChunkTable
from retro_jax.errors import UserError
from retro_jax.evaluate import likelihood, signals
from retro_jax.prepare import check_prepared
from retro_jax.records import Records
from retro_jax.train.loop import check_trained


def evaluate(experiment: Experiment, root: Path) -> dict:
    """Bits per byte on held-out text under each condition; the manifest of WORKDIR/evaluate.

    Raises:
      UserError: an earlier stage is missing, or the shards hold a leak.
    """
    e, root = experiment, Path(root)
    prepared = check_prepared(e, root)
    models = ["retro", "baseline"] if e.train.baseline else ["retro"]
    for name in models:
        check_trained(e, root, retrieval=name == "retro")
    settings = {f"evaluate.{k}": v for k, v in dataclasses.asdict(e.evaluate).items()}
    settings["train.baseline"] = e.train.baseline
    inputs = [root / "prepare" / "shards", *(root / "train" / name for name in models)]
    if done := workdir.check(root / "evaluate", settings, inputs):
        progress.say("evaluate: complete")
        return done
    return workdir.build(
        root / "evaluate", settings, inputs, lambda out: _evaluate(e, root, prepared, out)
    )


def _evaluate(e: Experiment, root: Path, prepared: dict, out: Path) -> dict:
    base = root / "prepare"
    tables = [ChunkTable(base / "chunks" / split) for split in ("train", "heldout")]
    shards = [Records(base / "shards" / split) for split in ("train", "heldout")]
    with progress.bar("looking for leaks", sum(map(len, shards))) as advance:
        leaks = signals.violations(*shards, *tables, advance)
    if any(leaks.values()):
        raise UserError(f"the shards of {base} leak, so no result would mean anything: {leaks}")
    rows = likelihood.score(e, root)
    np.savez(out / "tokens.npz", **rows)
    documents = tables[1].documents
    counts = {
        "documents": len(documents),
        "tokens": len(rows["bytes"]),
        "bytes": int(rows["bytes"].sum()),
    }
    expected = (sum(d["tokens"] for d in documents), sum(d["bytes"] for d in documents))
    if (counts["tokens"], counts["bytes"]) != expected:
        raise RuntimeError(f"scored {counts}, but the documents hold {expected} tokens and bytes")
    clean = rows["overlap"] < e.evaluate.filter_overlap
    result = counts | {
        "bits_per_byte": signals.bits_per_byte(rows),
        "bits_per_byte_filtered": signals.bits_per_byte(rows, clean),
        "filtered_share_of_bytes": float(rows["bytes"][clean].sum() / rows["bytes"].sum()),
        "content_effect": signals.effect(rows, "random", "on"),
        "presence_effect": signals.effect(rows, "off", "random"),
        "on_against_off": signals.effect(rows, "off", "on"),
        "violations": leaks,
        "share_with_fewer_than_k": {
            split: prepared["neighbours"]["counts"][f"{split}_share_with_fewer_than_k"]
            for split in ("train", "heldout")
        },
    }
    if e.train.baseline:
        result["system_effect"] = signals.effect(rows, "baseline", "on")
    workdir.write_json(out / "result.json", result)
    return result
