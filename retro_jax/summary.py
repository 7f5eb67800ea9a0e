"""What a person reads at the end of a run, and the same as summary.json."""

import json
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from retro_jax import steps, workdir
from retro_jax.config import Experiment
from retro_jax.evaluate.conditions import meaning
from retro_jax.evaluate.signals import EFFECTS
from retro_jax.generate import show
from retro_jax.prepare import check_prepared

out = Console(highlight=False)


def summarise(experiment: Experiment, root: Path, sample: dict, seconds: dict[str, float]) -> dict:
    """Writes WORKDIR/summary.json and prints it as tables.

    Args:
      seconds: of each stage in this command; a stage that was complete before shows what it took
        when it was made.
    """
    root = Path(root)
    prepared = check_prepared(experiment, root)
    trained = {
        name: workdir.read_manifest(root / "train" / name) for name in experiment.train.models
    }
    evaluated = {
        split: workdir.read_manifest(root / "evaluate" / split)
        for split in steps.shard_splits(experiment)[1:]
    }
    result = evaluated["heldout"]["counts"]
    manifests = [*prepared.values(), *trained.values(), *evaluated.values()]
    made = {
        "prepare": sum(m["seconds"] for m in prepared.values()),
        "train": sum(m["seconds"] for m in trained.values()),
        "evaluate": sum(m["seconds"] for m in evaluated.values()),
    }
    summary = {
        "name": experiment.name,
        "bits_per_byte": result["bits_per_byte"],
        "bits_per_byte_filtered": result["bits_per_byte_filtered"],
        "filtered_share_of_bytes": result["filtered_share_of_bytes"],
        "verdict": result["verdict"],
        "effects": result["effects"],
        "violations": sum(sum(m["counts"]["violations"].values()) for m in evaluated.values()),
        "heldout_sources": {s: m["counts"] for s, m in evaluated.items() if s != "heldout"},
        "stages": {
            name: round(max(value, made.get(name, 0)), 1) for name, value in seconds.items()
        },
        "tokens_per_second": trained["retro"]["counts"]["tokens_per_second"],
        "parameters": trained["retro"]["counts"]["parameters"],
        "baseline": trained["baseline"]["counts"] if "baseline" in trained else None,
        "peak_memory_bytes": max(
            workdir.peak_memory(), *(m["peak_memory_bytes"] for m in manifests)
        ),
        "prepare": {name: m["counts"] for name, m in prepared.items()},
        "heldout": {k: result[k] for k in ("documents", "tokens", "bytes")},
        "share_with_fewer_than_k": result["share_with_fewer_than_k"],
        "own_continuation": experiment.train.own_continuation,
        "sample": sample,
        "versions": workdir.versions(),
    }
    workdir.write_json(root / "summary.json", summary)
    _print_summary(experiment, root, summary)
    print_evaluations({split: m["counts"] for split, m in evaluated.items()})
    show.print_sample(sample)
    return summary


def _copies(e: Experiment, counts: dict) -> int:
    """Training documents that repeat another's text and were kept."""
    return counts["exact_duplicates_in_train"] if e.corpus.exact_duplicates == "keep" else 0


def _print_summary(e: Experiment, root: Path, s: dict):
    p = s["prepare"]
    corpus, train, held_out = p["corpus"], p["chunks/train"], p["chunks/heldout"]
    database = p[f"chunks/{steps.database_split(e)}"]
    table = Table(title=f"{s['name']}: what was built", show_header=False, title_justify="left")
    rows = [
        (
            "training text",
            f"{train['documents']} documents, {corpus['train_bytes'] / 1e6:.2f} MB"
            + (f", {copies} of them exact copies" if (copies := _copies(e, corpus)) else ""),
        ),
        (
            "held-out text",
            f"{s['heldout']['documents']} documents, {s['heldout']['bytes'] / 1e6:.2f} MB, "
            f"{s['heldout']['tokens']:,} tokens",
        ),
        (
            "left out",
            f"{corpus['near_duplicates_dropped']} held-out near-duplicates, "
            f"{corpus['exact_duplicates_in_train'] - _copies(e, corpus)} exact copies, "
            f"{corpus['bad_documents_skipped']} unreadable, "
            f"{train['short_documents_skipped'] + held_out['short_documents_skipped']} shorter "
            "than a chunk",
        ),
        (
            "database",
            f"{database['chunks']:,} chunks of {e.model.chunk} tokens, {p['index']['kind']} index, "
            f"recall@{e.retrieval.neighbours} {p['index']['recall']:.3f}",
        ),
        (
            "RETRO",
            _size(s["parameters"], s["tokens_per_second"]),
        ),
    ]
    if s["baseline"]:
        rows.append(
            (
                "baseline",
                _size(s["baseline"]["parameters"], s["baseline"]["tokens_per_second"]),
            )
        )
    rows += [
        ("seconds", ", ".join(f"{k} {v:.0f}" for k, v in s["stages"].items())),
        ("peak memory", f"{s['peak_memory_bytes'] / 2**30:.2f} GiB"),
        ("written to", str(root / "summary.json")),
    ]
    for name, value in rows:
        table.add_row(name, escape(value))
    out.print(table)


def _size(parameters: int, speed: float | None) -> str:
    how = "as it is in train.base" if speed is None else f"{speed:,.0f} training tokens/s"
    return f"{parameters:,} parameters, {how}"


def print_evaluations(results: dict[str, dict]):
    """A table for each held-out split."""
    for split, result in results.items():
        _print_evaluation(split, result)


def _print_evaluation(split: str, result: dict):
    """Bits per byte by condition, of all bytes and of the filtered ones."""
    name = "held-out" if split == "heldout" else f"{split}:"
    table = Table(title=f"{name} bits per byte (lower is better)", title_justify="left")
    table.add_column("condition")
    table.add_column("what the model reads")
    table.add_column("all bytes", justify="right")
    share = result["filtered_share_of_bytes"]
    table.add_column(f"little overlap ({share:.0%} of bytes)", justify="right")
    filtered = result["bits_per_byte_filtered"]
    for name, value in result["bits_per_byte"].items():
        few = filtered[name]
        table.add_row(name, meaning(name), f"{value:.4f}", "-" if few is None else f"{few:.4f}")
    out.print(table)
    fewer = result["share_with_fewer_than_k"]
    for line in (
        f"{result['documents']} documents, {result['tokens']:,} tokens, {result['bytes']:,} bytes",
        "chunks with fewer than k neighbours: "
        + ", ".join(f"{share:.2%} of {name}" for name, share in fewer.items()),
        f"leaks (violations): {sum(result['violations'].values())}",
    ):
        out.print(line, markup=False, soft_wrap=True)
    for name in ("content", "on_against_off", "system"):
        if e := result["effects"].get(name):
            label = " - ".join(EFFECTS[name])
            out.print(
                f"{label:>14} = {e['value']:+.4f} bits per byte, 95 % interval over documents "
                f"[{e['low']:+.4f}, {e['high']:+.4f}]",
                markup=False,
                soft_wrap=True,
            )


def print_sizes(rows: list[dict], as_json: bool):
    """The paper's sizes, as a table or as JSON."""
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    table = Table(
        title="the paper's sizes, in millions of parameters and GFLOP a token (forward)",
        caption="params: projections; total: embeddings (vocabulary 128,000) and all\n"
        "retrieval: FLOPs it adds (k = 2, 2048 tokens)",
        box=box.SIMPLE,
        padding=0,
        title_justify="left",
        caption_justify="left",
    )
    for name in ("model", "d", "L", "heads", "CCA"):
        table.add_column(name, no_wrap=True)
    for name in ("params", "total", "GFLOP", "retrieval"):
        table.add_column(name, justify="right", no_wrap=True)
    for r in rows:
        cca = r["cca_layers"]
        table.add_row(
            f"{r['kind']} {r['name']}",
            str(r["d"]),
            str(r["layers"]),
            f"{r['heads']}x{r['head_size']}",
            f"{cca[0]}-{cca[-1]} by 3" if cca else "",
            f"{r['parameters_non_embedding'] / 1e6:.2f}",
            f"{r['parameters_total'] / 1e6:.2f}",
            f"{r['flops_per_token'] / 1e9:.2f}",
            f"+{r['retrieval_overhead']:.0%}" if cca else "",
        )
    out.print(table)
