"""Text to shards: corpus, tokenizer, chunks, embeddings, index, neighbours, TFRecord shards.

Each is an artefact of its own in WORKDIR/prepare; what is there and was made with these settings is
not made again.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from retro_jax import progress, records, sequences, workdir
from retro_jax.config import Experiment
from retro_jax.corpus import chunks, dedup, sources, tokenizer
from retro_jax.corpus.sources import BadDocument, Document
from retro_jax.errors import UserError
from retro_jax.retrieval import embed, index, neighbours

SPLITS = ("train", "heldout")


def _recipe(e: Experiment) -> dict:
    """step -> (the config fields it depends on, the steps it reads, what makes it)."""
    c, r = e.corpus, e.retrieval
    corpus = {f"corpus.{k}": v for k, v in dataclasses.asdict(c).items() if k != "vocab"}
    length = {"train.length": e.train.length}
    return {
        "corpus": (corpus, (), _corpus),
        "tokenizer": ({"corpus.vocab": c.vocab}, ("corpus",), _tokenizer),
        "chunks": (
            {"model.chunk": e.model.chunk, "corpus.bad_documents": c.bad_documents},
            ("corpus", "tokenizer"),
            _chunks,
        ),
        "embeddings": (
            {"retrieval.embedder": r.embedder, "retrieval.dim": r.dim},
            ("chunks", "tokenizer"),
            _embeddings,
        ),
        "index": (
            {
                "retrieval.index": r.index,
                "retrieval.min_recall": r.min_recall,
                "retrieval.neighbours": r.neighbours,
            },
            ("embeddings",),
            _index,
        ),
        "neighbours": (
            {"retrieval.neighbours": r.neighbours} | length,
            ("chunks", "embeddings", "index"),
            _neighbours,
        ),
        "shards": (
            {"evaluate.stride": e.evaluate.stride} | length,
            ("chunks", "neighbours"),
            _shards,
        ),
    }


def prepare(experiment: Experiment, root: Path) -> dict:
    """Runs every step that is not done; returns each step's manifest by name."""
    base, manifests = Path(root) / "prepare", {}
    for name, (settings, inputs, make) in _recipe(experiment).items():
        done = workdir.check(base / name, settings, [base / i for i in inputs])
        progress.say(f"prepare/{name}" + (": complete" if done else ""))
        manifests[name] = done or workdir.build(
            base / name,
            settings,
            [base / i for i in inputs],
            lambda out, make=make: make(experiment, base, out),
        )
    return manifests


def check_prepared(experiment: Experiment, root: Path) -> dict:
    """The manifests of a finished `prepare`, by step.

    Raises:
      UserError: a step is missing, or was made with another config.
    """
    base, manifests = Path(root) / "prepare", {}
    for name, (settings, inputs, _) in _recipe(experiment).items():
        workdir.require(base / name, "prepare")
        manifests[name] = workdir.check(base / name, settings, [base / i for i in inputs])
    return manifests


def _corpus(e: Experiment, base: Path, out: Path) -> dict:
    """Reads the source; splits it by document; drops held-out near-duplicates."""
    split, skipped, seen = {"train": [], "heldout": []}, 0, set()
    with progress.bar("reading documents", None) as advance:
        for document in sources.documents(e.corpus.source):
            advance(1)
            if isinstance(document, BadDocument):
                _refuse_or_skip(e, document)
                skipped += 1
                continue
            if document.id in seen:
                raise UserError(f"{document.id}: two documents have this id; make ids unique")
            seen.add(document.id)
            split["heldout" if is_heldout(document.id, e.corpus.heldout) else "train"].append(
                document
            )
    for name, documents in split.items():
        if not documents:
            raise UserError(
                f"config field corpus.source = {e.corpus.source!r}: no document falls into the "
                f"{name} split ({len(seen)} documents, corpus.heldout = {e.corpus.heldout}); "
                "give more documents or change corpus.heldout"
            )
    with progress.bar("near-duplicates", len(split["train"])) as advance:
        duplicates = dedup.near_duplicates(
            {d.id: d.text for d in split["heldout"]},
            ((advance(1), (d.id, d.text))[1] for d in split["train"]),
            e.corpus.near_duplicate,
        )
    split["heldout"] = [d for d in split["heldout"] if d.id not in duplicates]
    if not split["heldout"]:
        raise UserError(
            "every held-out document nearly repeats a training document "
            f"(corpus.near_duplicate = {e.corpus.near_duplicate}); give more varied documents"
        )
    for name, documents in split.items():
        with (out / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            for d in documents:
                file.write(json.dumps(dataclasses.asdict(d), ensure_ascii=False) + "\n")
    (out / "near_duplicates.json").write_text(json.dumps(duplicates, indent=2))
    return {
        "train_documents": len(split["train"]),
        "train_bytes": sum(len(d.text.encode()) for d in split["train"]),
        "heldout_documents": len(split["heldout"]),
        "heldout_bytes": sum(len(d.text.encode()) for d in split["heldout"]),
        "near_duplicates_dropped": len(duplicates),
        "bad_documents_skipped": skipped,
    }


def is_heldout(id: str, share: float) -> bool:
    """Whether a document is held out: a fixed hash of its id, the same on every machine."""
    digest = hashlib.blake2b(id.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64


def _refuse_or_skip(e: Experiment, document: BadDocument):
    if e.corpus.bad_documents == "refuse":
        raise UserError(
            f"{document.id}: {document.reason}; mend or remove it, or leave such documents out "
            "with --config.corpus.bad_documents=skip"
        )


def read_corpus(base: Path, split: str) -> Iterator[Document]:
    """The documents of a split."""
    with (base / "corpus" / f"{split}.jsonl").open(encoding="utf-8") as lines:
        for line in lines:
            yield Document(**json.loads(line))


def _tokenizer(e: Experiment, base: Path, out: Path) -> dict:
    model = tokenizer.train((d.text for d in read_corpus(base, "train")), e.corpus.vocab)
    (out / "tokenizer.model").write_bytes(model)
    return {"vocab": tokenizer.Tokenizer(model).vocab}


def load_tokenizer(base: Path) -> tokenizer.Tokenizer:
    """The tokenizer that `prepare` trained."""
    return tokenizer.load(base / "tokenizer" / "tokenizer.model")


def _chunks(e: Experiment, base: Path, out: Path) -> dict:
    pieces, counts = load_tokenizer(base), {}
    manifest = workdir.read_manifest(base / "corpus")["counts"]
    for split in SPLITS:
        (out / split).mkdir()
        with progress.bar(f"tokenizing {split}", manifest[f"{split}_documents"]) as advance:
            documents = ((advance(1), d)[1] for d in read_corpus(base, split))
            short = chunks.build(documents, pieces, e.model.chunk, out / split)
        for document in short:
            _refuse_or_skip(e, document)
        table = chunks.ChunkTable(out / split)
        if not len(table):
            raise UserError(
                f"no {split} document is as long as a chunk ({e.model.chunk} tokens): give longer "
                "documents"
            )
        counts |= {
            f"{split}_chunks": len(table),
            f"{split}_tokens": sum(d["tokens"] for d in table.documents),
            f"{split}_short_documents_skipped": len(short),
        }
    return counts


def _texts(base: Path, split: str) -> list[str]:
    """What each chunk's tokens say. Live queries are made of the same text (retriever.py)."""
    pieces = load_tokenizer(base)
    table = chunks.ChunkTable(base / "chunks" / split)
    return [pieces.decode(row) for row in table.tokens.tolist()]


def _embeddings(e: Experiment, base: Path, out: Path) -> dict:
    texts = {split: _texts(base, split) for split in SPLITS}
    if e.retrieval.embedder == "tfidf":
        progress.say("fitting the tfidf embedder")
        embed.fit_tfidf(texts["train"], e.retrieval.dim).save(out)
    embedder = embed.load(e.retrieval.embedder, out)
    for split in SPLITS:
        with progress.bar(f"embedding {split} chunks", len(texts[split])) as advance:
            np.save(out / f"{split}.npy", embed.embed_all(embedder, texts[split], advance))
    return {"width": embedder.width}


def load_embedder(experiment: Experiment, base: Path):
    """The embedder that the database was made with."""
    return embed.load(experiment.retrieval.embedder, base / "embeddings")


def _index(e: Experiment, base: Path, out: Path) -> dict:
    r, vectors = e.retrieval, np.load(base / "embeddings" / "train.npy")
    progress.say(f"building an index of {len(vectors):,} vectors")
    _, report = index.build(vectors, out, r.index, r.min_recall, r.neighbours)
    return report


def _neighbours(e: Experiment, base: Path, out: Path) -> dict:
    """ids and distances of the k nearest of every chunk; counts those with fewer than k."""
    searcher, k, counts = index.load(base / "index"), e.retrieval.neighbours, {}
    database = chunks.ChunkTable(base / "chunks" / "train")
    documents = np.asarray(database.document)
    for split in SPLITS:
        table = chunks.ChunkTable(base / "chunks" / split)
        if split == "train":
            rows = sequences.training(table, e.chunks)
            own = np.where(rows < 0, -1, documents[np.maximum(rows, 0)])
            forbidden = own.repeat(e.chunks, axis=0)[: len(table)]
        else:
            forbidden = np.full((len(table), 1), -1)  # the database holds no held-out document
        vectors = np.load(base / "embeddings" / f"{split}.npy")
        with progress.bar(f"neighbours of {split} chunks", len(vectors)) as advance:
            ids, distances = neighbours.find(
                searcher.search, vectors, forbidden, documents, k, advance
            )
        np.save(out / f"{split}_ids.npy", ids)
        np.save(out / f"{split}_distances.npy", distances)
        counts[f"{split}_share_with_fewer_than_k"] = float((ids < 0).any(axis=1).mean())
    return counts


def _shards(e: Experiment, base: Path, out: Path) -> dict:
    """Records of tokens and neighbours; see `sequences.record`."""
    database = chunks.ChunkTable(base / "chunks" / "train")
    counts = {}
    for split in SPLITS:
        table = chunks.ChunkTable(base / "chunks" / split)
        ids = np.load(base / "neighbours" / f"{split}_ids.npy")
        distances = np.load(base / "neighbours" / f"{split}_distances.npy")
        if split == "train":
            cuts = [(rows, 0) for rows in sequences.training(table, e.chunks)]
        else:
            stride = e.evaluate.stride // e.model.chunk
            cuts = [
                cut
                for d in table.documents
                for cut in sequences.windows(d["first"], d["chunks"], e.chunks, stride)
            ]
        (out / split).mkdir()
        with progress.bar(f"writing {split} shards", len(cuts)) as advance:
            written = records.write(
                out / split,
                (
                    (advance(1), sequences.record(table, database, rows, scored, ids, distances))[1]
                    for rows, scored in cuts
                ),
            )
        counts[f"{split}_records"] = written
    return counts
