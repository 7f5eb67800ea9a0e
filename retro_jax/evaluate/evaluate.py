"""The evaluate stage: score held-out text, count leaks, write evaluate/SPLIT/result.json."""

import dataclasses
from pathlib import Path

import numpy as np

from retro_jax import progress, steps, workdir
from retro_jax.config import Experiment
from retro_jax.errors import UserError
from retro_jax.evaluate import likelihood, signals
from retro_jax.prepare import check_prepared
from retro_jax.records import Records
from retro_jax.train.loop import check_trained


def evaluate(experiment: Experiment, root: Path) -> dict[str, dict]:
    """Bits per byte on held-out text under each condition; the manifests of WORKDIR/evaluate/SPLIT.

    Raises:
      UserError: an earlier stage is missing, or the shards hold a leak.
    """
    e, root = experiment, Path(root)
    prepared = check_prepared(e, root)
    models = e.train.models
    if "retro" not in models:
        raise UserError(
            f"config field train.models: {models}: `retro evaluate` needs retro; for its baseline beside "
            "it --config.train.models=\"('retro', 'baseline')\""
        )
    for name in models:
        check_trained(e, root, retrieval=name == "retro")
    settings = {f"evaluate.{k}": v for k, v in dataclasses.asdict(e.evaluate).items()}
    settings["train.models"] = models
    shards, results = root / "prepare" / "shards", {}
    for split in steps.shard_splits(e)[1:]:
        inputs = [shards / "train", shards / split, *(root / "train" / name for name in models)]
        out = root / "evaluate" / split
        if done := workdir.check(out, settings, inputs):
            progress.say(f"evaluate/{split}: complete")
        results[split] = done or workdir.build(
            out, settings, inputs, lambda out, s=split: _evaluate(e, root, s, prepared, out)
        )
    return results


def _evaluate(e: Experiment, root: Path, split: str, prepared: dict, out: Path) -> dict:
    base = root / "prepare"
    tables = {s: steps.table_of(base, s) for s in ("train", split)}
    shards = {s: Records(base / "shards" / s) for s in tables}
    database = steps.table_of(base, steps.database_split(e))
    with progress.bar("looking for leaks", sum(map(len, shards.values()))) as advance:
        leaks = signals.violations(shards, tables, database, advance)
    if any(leaks.values()):
        raise UserError(f"the shards of {base} leak, so no result would mean anything: {leaks}")
    rows = likelihood.score(e, root, split)
    np.savez(out / "tokens.npz", **rows)
    documents = tables[split].documents
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
            s: prepared[f"neighbours/{s}"]["counts"]["share_with_fewer_than_k"] for s in tables
        },
    }
    if "baseline" in e.train.models:
        result["system_effect"] = signals.effect(rows, "baseline", "on")
    workdir.write_json(out / "result.json", result)
    return result
