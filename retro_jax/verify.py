"""Every step of `prepare`, a random share of it made again and compared bit for bit."""

import filecmp
import tempfile
from pathlib import Path

import numpy as np

from retro_jax import columns, prepare, progress, sequences, steps
from retro_jax.columns import Columns
from retro_jax.config import Experiment
from retro_jax.corpus import chunks, dedup, sources
from retro_jax.errors import UserError
from retro_jax.records import Records
from retro_jax.retrieval import bm25, index, tree

# What is compared of a step at a time.
PARTS = {
    "corpus": "documents and their copies", "corpora": "documents and their copies",
    "chunks": "documents", "embeddings": "blocks", "index": "shards", "neighbours": "blocks",
    "shards": "records",
}  # fmt: skip


def verify(experiment: Experiment, root: Path, share: float = 0.05, seed: int = 0) -> dict:
    """Makes a share of what is in WORKDIR/prepare again, from what it was made from.

    The tokenizer and a fitted embedder are taken as they are. Neither is a ScaNN index made again (no
    two are the same): its recall is measured again, and what was found with it is compared bit for
    bit.

    Returns:
      step -> how many of its parts were compared, {"chunks/train": 12, ...}.

    Raises:
      UserError: a step is missing, of another config, or differs; every part that differs is named.
    """
    e, base = experiment, Path(root) / "prepare"
    rng = np.random.default_rng(seed)
    some = lambda count: set(  # noqa: E731
        rng.choice(count, min(count, max(1, int(share * count))), replace=False).tolist()
    )
    parts = {
        "corpus": _corpus,
        "corpora": _corpus,
        "chunks": _chunks,
        "embeddings": _embeddings,
        "index": _index,
        "neighbours": _neighbours,
        "shards": _shards,
    }
    compared, wrong = {}, []
    for name in prepare.check_prepared(e, root):
        step, _, split = name.partition("/")
        if step not in parts:
            continue
        compared[name] = 0
        with progress.bar(f"verifying {name}", None) as advance:
            for part, same in parts[step](e, base, split, some):
                compared[name] += 1
                advance(1)
                if not same:
                    wrong.append(f"{name}: {part}")
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise UserError(
            f"{base} is not what its config and its source give: {'; '.join(wrong[:5])}{more}; the "
            "source or the files were changed: delete the step and those after it, and run prepare"
        )
    return compared


def _corpus(e, base, split, some):
    source = steps.source_of(e, split)
    documents = Columns(base / "corpora" / split if split else base / "corpus")
    stored = {part: documents[part] for part in ("train", "heldout") if part in documents}
    chosen = {part: some(len(lines)) for part, lines in stored.items()}
    last = dict.fromkeys(stored, -1)
    for document in source.documents():
        part = source.split_of(document)
        if part is None or isinstance(document, sources.BadDocument):
            continue
        last[part] += 1
        if last[part] in chosen[part]:
            yield document.id, stored[part][last[part]] == vars(document)
    for part, lines in stored.items():
        if last[part] + 1 != len(lines):
            yield f"{len(lines)} {part} documents, the source has {last[part] + 1}", False
    yield from _left_out(e, base, split, documents, stored, some)


def _left_out(e, base, split, documents, stored, some):
    """What duplicates were left out: of what is recorded, and for a share of what is compared with."""
    out = base / "corpora" / split if split else base / "corpus"
    if "train" in stored:
        drop = e.corpus.exact_duplicates == "drop"
        copies = sorted(columns.repeated(documents["train_texts"])) if drop else []
        yield "exact copies", np.load(out / "train_dropped.npy").tolist() == copies
    if "heldout" not in stored:
        return
    pairs = [tuple(pair) for pair in Columns(out / "near_duplicates")["pairs"]]
    dropped = np.load(out / "heldout_dropped.npy").tolist()
    yield "near-duplicates left out", dropped == sorted({row for row, _ in pairs})
    texts = ((row, d["text"]) for row, d in enumerate(stored["heldout"]))
    sketches = dedup.HeldOut(texts, e.corpus.near_duplicate)
    training = [stored["train"]] if "train" in stored else []
    training += [Columns(path)["train"] for path in steps.compared_with(e, base, split)]
    for lines in training:
        for row in sorted(some(len(lines))):
            id = lines[row]["id"]
            near = {(other, id) for other in sketches.near(lines[row]["text"])}
            yield f"near-duplicates of {id}", near <= set(pairs)


def _chunks(e, base, split, some):
    pieces, table = steps.load_tokenizer(base), steps.table_of(base, split)
    chosen, number = some(len(table.documents)), 0
    for document in steps.documents_of(base, split):
        entry = table.documents[number] if number < len(table.documents) else {"id": None}
        if document.id != entry["id"]:
            short = len(chunks.token_ids(document.text, pieces)) + 2 < table.chunk
            if not short:
                yield f"{document.id}, which is missing", False
            continue
        if number in chosen:
            first, end = entry["first"], entry["first"] + entry["chunks"]
            again = chunks.place(*chunks.encode([document], pieces, table.chunk), first, number)
            stored = {
                "tokens": table.tokens[first:end],
                "document": table.document[first:end],
                "continuation": table.continuation[first:end],
                "ids": table.ids[number : number + 1],
                "texts": table.texts[number : number + 1],
            }
            same = again["documents"] == [entry] and all(
                np.array_equal(again[name], value) for name, value in stored.items()
            )
            yield document.id, same
        number += 1
    if number != len(table.documents):
        yield f"documents from number {number} on", False


def _embeddings(e, base, split, some):
    embedder, pieces = steps.load_embedder(e, base), steps.load_tokenizer(base)
    table, count = steps.table_of(base, split), len(steps.table_of(base, split))
    vectors = steps.vectors_of(base, split)
    # Whole blocks, as they were made: a batch of another shape may round otherwise.
    for block in sorted(some(-(-count // steps.EMBEDDED))):
        begin = block * steps.EMBEDDED
        again = steps.embed_block(embedder, pieces, table, begin)
        yield f"chunks from {begin} on", np.array_equal(again, vectors[begin : begin + len(again)])


def _index(e, base, split, some):
    vectors, opened = (
        steps.vectors_of(base, steps.database_split(e)),
        index.load(base / "index", False),
    )
    for number in range(opened.shards):
        shard, (begin, end) = opened.shard(number), opened.bounds(number)
        own = np.asarray(vectors[begin:end])
        if shard.kind == "exact":
            yield f"shard {number}", np.array_equal(shard.vectors, own)
        elif shard.kind == "bm25":
            with tempfile.TemporaryDirectory() as again:
                bm25.build(own, Path(again))
                files = [p.relative_to(again) for p in Path(again).rglob("*") if p.is_file()]
                same = [filecmp.cmp(shard.directory / f, Path(again) / f, False) for f in files]
            yield f"shard {number}", all(same)
        else:
            recall = tree.recall_of(own, e.retrieval.neighbours)(shard)
            yield f"shard {number}, recall {recall:.3f}", recall >= e.retrieval.min_recall


def _neighbours(e, base, split, some):
    search = steps.Search(e, base, split)
    stored = Columns(base / "neighbours" / split)
    # Whole blocks, as they were searched: with another batch ScaNN may choose otherwise.
    for number in sorted(some(-(-len(search.table) // search.block))):
        begin = number * search.block
        found = search.neighbours(begin)
        end = begin + len(found[0])
        same = [
            np.array_equal(a, stored[n][begin:end]) for a, n in zip(found, ("ids", "distances"))
        ]
        yield f"chunks {begin} to {end - 1}", all(same)


def _shards(e, base, split, some):
    table, database = steps.table_of(base, split), steps.table_of(base, steps.database_split(e))
    near, stored = Columns(base / "neighbours" / split), Records(base / "shards" / split)
    chosen, count = some(len(stored)), 0
    ids, distances = near["ids"], near["distances"]
    for count, (rows, scored) in enumerate(
        sequences.cuts(table, split, e.chunks, e.evaluate.stride // table.chunk), 1
    ):
        record = stored[count - 1]  # whose checksum is looked at, chosen or not
        if count - 1 in chosen:
            again = sequences.record(table, database.values, rows, scored, ids, distances)
            same = again.keys() == record.keys() and all(
                np.array_equal(record[name], again[name]) for name in again
            )
            yield f"record {count - 1}", same
    if count != len(stored):
        yield f"{len(stored)} records, not {count}", False
