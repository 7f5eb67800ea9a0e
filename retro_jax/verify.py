"""Every step of `prepare`, a random share of it made again and compared bit for bit."""

import filecmp
import tempfile
from pathlib import Path

import numpy as np

from retro_jax import prepare, progress, sequences
from retro_jax.columns import Columns
from retro_jax.config import Experiment
from retro_jax.corpus import collect, sources
from retro_jax.corpus.chunks import ChunkTable, split_document
from retro_jax.corpus.collect import SPLITS
from retro_jax.errors import UserError
from retro_jax.records import Records
from retro_jax.retrieval import bm25, index, neighbours, tree


def verify(experiment: Experiment, root: Path, share: float = 0.05, seed: int = 0) -> dict:
    """Makes a share of what is in WORKDIR/prepare again, from what it was made from.

    The tokenizer is taken as it is. Neither is a ScaNN index made again (no two are the same): its
    recall is measured again, and what was found with it is compared bit for bit.

    Returns:
      step -> how many of its parts were compared, {"chunks": 12, ...}.

    Raises:
      UserError: a step is missing, of another config, or differs; every part that differs is named.
    """
    e, base = experiment, Path(root) / "prepare"
    manifests = prepare.check_prepared(e, root)
    rng = np.random.default_rng(seed)
    some = lambda count: set(  # noqa: E731
        rng.choice(count, min(count, max(1, int(share * count))), replace=False).tolist()
    )
    steps = {
        "corpus": _corpus,
        "chunks": _chunks,
        "embeddings": _embeddings,
        "index": _index,
        "neighbours": _neighbours,
        "shards": _shards,
    }
    compared, wrong = {}, []
    for name, step in steps.items():
        compared[name] = 0
        with progress.bar(f"verifying {name}", None) as advance:
            for part, same in step(e, base, some, manifests):
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


def _corpus(e, base, some, manifests):
    documents = Columns(base / "corpus")
    stored = {split: documents[split] for split in SPLITS}
    chosen = {split: some(len(stored[split])) for split in SPLITS}
    last = dict.fromkeys(SPLITS, -1)
    for document in sources.documents(e.corpus.source):
        if isinstance(document, sources.BadDocument):
            continue
        split = "heldout" if collect.is_heldout(document.id, e.corpus.heldout) else "train"
        last[split] += 1
        if last[split] in chosen[split]:
            yield document.id, stored[split][last[split]] == vars(document)
    for split in SPLITS:
        if last[split] + 1 != len(stored[split]):
            yield f"{len(stored[split])} {split} documents, the source has {last[split] + 1}", False


def _chunks(e, base, some, manifests):
    pieces = prepare.load_tokenizer(base)
    for split in SPLITS:
        table = ChunkTable(base / "chunks" / split)
        chosen, number = some(len(table.documents)), 0
        for document in collect.read(base / "corpus", split):
            entry = table.documents[number] if number < len(table.documents) else {"id": None}
            if document.id != entry["id"]:
                continue  # shorter than a chunk
            if number in chosen:
                rows = split_document(pieces.encode(document.text), table.chunk)
                at = slice(entry["first"], entry["first"] + entry["chunks"])
                same = (
                    np.array_equal(rows, table.tokens[at]) and (table.document[at] == number).all()
                )
                yield document.id, same
            number += 1
        if number != len(table.documents):
            yield f"{split} documents from number {number} on", False


def _embeddings(e, base, some, manifests):
    embedder = prepare.load_embedder(e, base)
    for split in SPLITS:
        text, count = prepare.text_of(base, split)
        vectors = prepare.vectors_of(base, split)
        # Whole blocks, as they were made: a batch of another shape may round otherwise.
        for block in sorted(some(-(-count // prepare.EMBEDDED))):
            begin = block * prepare.EMBEDDED
            again = prepare.embed_block(embedder, text, begin, count)
            yield (
                f"{split} chunks from {begin} on",
                np.array_equal(again, vectors[begin : begin + len(again)]),
            )


def _index(e, base, some, manifests):
    vectors, first = prepare.vectors_of(base, "train"), 0
    for number, (shard, size) in enumerate(index.load(base / "index").parts()):
        own = np.asarray(vectors[first : first + size])
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
        first += size


def _neighbours(e, base, some, manifests):
    searcher = index.load(base / "index", keep=False)
    documents = ChunkTable(base / "chunks" / "train").document
    # Whole blocks, as they were searched: with another batch ScaNN may choose otherwise.
    block = prepare.searched_at_a_time(e, searcher)
    for split in SPLITS:
        table, vectors = ChunkTable(base / "chunks" / split), prepare.vectors_of(base, split)
        stored = Columns(base / "neighbours" / split)
        for number in sorted(some(-(-len(table) // block))):
            begin, end = number * block, min((number + 1) * block, len(table))
            forbidden = prepare.forbidden_documents(e, table, split, begin, end)
            found = neighbours.find(
                searcher.search, vectors[begin:end], forbidden, documents, e.retrieval.neighbours,
                block=block,
            )  # fmt: skip
            same = [
                np.array_equal(again, stored[name][begin:end])
                for again, name in zip(found, ("ids", "distances"))
            ]
            yield f"{split} chunks {begin} to {end - 1}", all(same)


def _shards(e, base, some, manifests):
    database = ChunkTable(base / "chunks" / "train")
    for split in SPLITS:
        table, near = ChunkTable(base / "chunks" / split), Columns(base / "neighbours" / split)
        stored = Records(base / "shards" / split)
        chosen, count = some(len(stored)), 0
        ids, distances = near["ids"], near["distances"]
        for count, (rows, scored) in enumerate(
            sequences.cuts(table, split, e.chunks, e.evaluate.stride // table.chunk), 1
        ):
            if count - 1 in chosen:
                again = sequences.record(table, database, rows, scored, ids, distances)
                record = stored[count - 1]
                same = again.keys() == record.keys() and all(
                    np.array_equal(record[name], again[name]) for name in again
                )
                yield f"{split} record {count - 1}", same
        if count != len(stored):
            yield f"{len(stored)} {split} records, not {count}", False
