"""What preparing text costs, step by step: the quickstart's `prepare` on a source, in one process.

    pip install -e .
    python benchmarks/pipeline.py --source='jsonl:corpus.jsonl#text' --workdir=runs/benchmark
    python benchmarks/pipeline.py --smoke      # does it run? a few files of Python's library

Runs `retro prepare` once, in a process of its own, and reads the manifests that it leaves; a working
directory that is complete is not made again, and a step that was interrupted counts from where it went
on. Prints a row a step: what it goes through and how many of that a second, tokens a second, wall-clock
and CPU seconds, bytes on disk, also for each token, and the peak memory of the process up to the end of
the step. Tokenizer and embedder are fitted on samples, so that they have no rate; building the index
includes measuring its recall. Other benchmarks read the same
working directory, WORKDIR/tfidf.
"""

from pathlib import Path

import common

# What a step goes through, and how many: of its counts, and of its split's chunk table's.
ITEMS = {
    "corpus": ("documents", lambda c, _: c["train_documents"] + c["heldout_documents"]),
    "chunks": ("documents", lambda c, _: c["documents"]),
    "embeddings": ("chunks", lambda c, _: c["vectors"]),
    "index": ("vectors", lambda c, _: c["size"]),
    "neighbours": ("queries", lambda c, table: table["chunks"]),
    "shards": ("records", lambda c, _: c["records"]),
}
FORMATS = {
    "number": ",d", "a second": ",.0f", "tokens/s": ",.0f", "seconds": ",.2f", "CPU s": ",.2f",
    "MB": ",.2f", "bytes/token": ".3f", "peak GiB": ".2f",
}  # fmt: skip


def measured(base: Path) -> list[dict]:
    """A row for each step below `base`, in the order in which they were made."""
    from retro_jax.store import artefact

    found = [p.parent for p in base.rglob("manifest.json")]
    manifests = {str(p.relative_to(base)): artefact.read(p) for p in found}
    splits = {n.partition("/")[2]: m["counts"] for n, m in manifests.items() if "chunks/" in n}
    everything, rows = sum(c["tokens"] for c in splits.values()), []
    for name, manifest in sorted(manifests.items(), key=lambda item: item[1]["made"]):
        step, _, split = name.partition("/")
        counts, seconds = manifest["counts"], manifest["seconds"]
        table = splits[split or "train"]
        tokens = everything if step == "corpus" else table["tokens"]
        of, how_many = ITEMS.get(step, (None, lambda *_: None))
        number = how_many(counts, table)
        rows.append(
            {
                "step": name,
                "of": of,
                "number": number,
                "a second": number and number / seconds,
                "tokens/s": number and tokens / seconds,
                "seconds": seconds,
                "CPU s": manifest["cpu_seconds"],
                "MB": common.size(base / name) / 1e6,
                "bytes/token": common.size(base / name) / tokens,
                "peak GiB": manifest["peak_memory_bytes"] / 2**30,
            }
        )
    seconds = sum(r["seconds"] for r in rows)
    total = {
        "step": "all",
        "of": "documents",
        "number": sum(c["documents"] for c in splits.values()),
        "tokens/s": everything / seconds,
        "bytes/token": sum(r["MB"] for r in rows) * 1e6 / everything,
        "peak GiB": max(r["peak GiB"] for r in rows),
    }
    total["a second"] = total["number"] / seconds
    total |= {name: sum(r[name] for r in rows) for name in ("seconds", "CPU s", "MB")}
    return [*rows, {name: total[name] for name in rows[0]}]


def main():
    args = common.parse(common.parser(__doc__))
    rows = measured(common.prepare(args).work.prepared())
    title = f"preparing {args.source}, {common.THREADS} processors"
    common.show({title: rows}, FORMATS, args.json)


if __name__ == "__main__":
    main()
