"""What a person reads at the end of a run, and the same as summary.json."""

from rich.markup import escape
from rich.table import Table

from retro_jax.evaluate.signals import EFFECTS
from retro_jax.generate import show
from retro_jax.methods.method import METHODS
from retro_jax.pipeline.prepare import check_prepared
from retro_jax.pipeline.recipe import database_split, heldout_splits
from retro_jax.report.told import told
from retro_jax.store import artefact, files, provenance
from retro_jax.store.workdir import WorkDir
from retro_jax.terminal import Terminal

out = Terminal()


def summarise(work: WorkDir, sample: dict, seconds: dict[str, float]) -> dict:
    """Writes the working directory's summary.json and prints it as tables.

    Args:
      seconds: of each stage in this command; a stage that was complete before shows what it took
        when it was made.
    """
    e, prepared = work.experiment, check_prepared(work)
    trained = {
        name: artefact.read(work.trained(name))
        for name in e.methods
        if not METHODS[name].weights_of
    }
    evaluated = {split: artefact.read(work.evaluated(split)) for split in heldout_splits(e)}
    result = evaluated["heldout"]["counts"]
    made = {"prepare": prepared, "train": trained, "evaluate": evaluated}
    manifests = [m for of in made.values() for m in of.values()]
    took = {name: sum(m["seconds"] for m in of.values()) for name, of in made.items()}
    copied = (
        "bits_per_byte",
        "bits_per_byte_filtered",
        "filtered_share_of_bytes",
        "verdict",
        "effects",
        "training",
    )
    summary = {
        "name": e.name,
        **{name: result[name] for name in copied},
        "violations": sum(sum(m["counts"]["violations"].values()) for m in evaluated.values()),
        "heldout_sources": {s: m["counts"] for s, m in evaluated.items() if s != "heldout"},
        "stages": {name: round(max(t, took.get(name, 0)), 1) for name, t in seconds.items()},
        "methods": {name: m["counts"] for name, m in trained.items()},
        "peak_memory_bytes": max(
            provenance.peak_memory(), *(m["peak_memory_bytes"] for m in manifests)
        ),
        "prepare": {name: m["counts"] for name, m in prepared.items()},
        "heldout": {k: result[k] for k in ("documents", "tokens", "bytes")},
        "share_with_fewer_than_k": result["share_with_fewer_than_k"],
        "method_settings": e.method_settings,
        "sample": sample,
        "versions": provenance.versions(),
    }
    files.write_json(work.summary, summary)
    out.print(f"{e.name}: what came of it", style="bold", markup=False)
    for line in told(work, summary):
        out.print(line, markup=False, soft_wrap=line.startswith(" "))
    out.print()
    _print_summary(work, summary)
    print_evaluations({split: m["counts"] for split, m in evaluated.items()})
    show.print_sample(sample)
    return summary


def _print_summary(work: WorkDir, s: dict):
    e, p = work.experiment, s["prepare"]
    corpus, train, held_out = p["corpus"], p["chunks/train"], p["chunks/heldout"]
    database = p[f"chunks/{database_split(e)}"]
    dropped = e.corpus.exact_duplicates == "drop"
    copies, repeats = train["exact_copies"], corpus["exact_duplicates_in_train"] * dropped
    rows = [
        (
            "training text",
            f"{train['documents']} documents, {corpus['train_bytes'] / 1e6:.2f} MB"
            + (f", {copies} of them exact copies" if copies else ""),
        ),
        (
            "held-out text",
            f"{s['heldout']['documents']} documents, {s['heldout']['bytes'] / 1e6:.2f} MB, "
            f"{s['heldout']['tokens']:,} tokens",
        ),
        (
            "left out",
            f"{corpus['near_duplicates_dropped']} held-out near-duplicates, "
            f"{repeats} exact copies, "
            f"{sum(corpus['bad_documents'].values())} bad, "
            f"{train['short_documents_skipped'] + held_out['short_documents_skipped']} shorter "
            "than a chunk",
        ),
        (
            "database",
            f"{database['chunks']:,} chunks of {e.model.reading.chunk} tokens, "
            f"{p['index']['kind']} index, recall@{p['index']['k']} {p['index']['recall']:.3f}",
        ),
        *(
            (name, _size(m["parameters"], m["tokens_per_second"]))
            for name, m in s["methods"].items()
        ),
        ("seconds", ", ".join(f"{k} {v:.0f}" for k, v in s["stages"].items())),
        ("peak memory", f"{s['peak_memory_bytes'] / 2**30:.2f} GiB"),
        ("written to", str(work.summary)),
    ]
    table = Table(title=f"{s['name']}: what was built", show_header=False, title_justify="left")
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
        table.add_row(
            name, result["conditions"][name], f"{value:.4f}", "-" if few is None else f"{few:.4f}"
        )
    out.print(table)
    fewer = result["share_with_fewer_than_k"]
    for line in (
        f"{result['documents']} documents, {result['tokens']:,} tokens, {result['bytes']:,} bytes",
        "chunks with fewer than k neighbours: "
        + ", ".join(f"{share:.2%} of {name}" for name, share in fewer.items()),
        f"leaks (violations): {sum(result['violations'].values())}",
        "chunks whose whole text is in what is read before them: "
        + ", ".join(f"{of['chunks']:,} of {name}" for name, of in result["whole_chunks"].items()),
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
