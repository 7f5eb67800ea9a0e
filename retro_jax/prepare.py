"""Text to shards: corpus, tokenizer, chunks, embeddings, index, neighbours, TFRecord shards.

Each is an artefact of its own in WORKDIR/prepare; what is there and was made with these settings is
not made again.
"""

import dataclasses
import functools
import itertools
from pathlib import Path

import numpy as np

from retro_jax import columns, progress, records, sequences, workdir
from retro_jax.config import Experiment
from retro_jax.corpus import chunks, collect, tokenizer
from retro_jax.corpus.collect import SPLITS
from retro_jax.errors import UserError
from retro_jax.retrieval import embed, index, neighbours

EMBEDDED = 4096  # chunks that are embedded at a time


def _recipe(e: Experiment) -> dict:
    """step -> (the config fields it depends on, the steps it reads, what makes it)."""
    c, r = e.corpus, e.retrieval
    vocabulary = {"corpus.tokenizer": c.tokenizer}
    if c.tokenizer == "train":
        vocabulary["corpus.vocab"] = c.vocab
    corpus = {f"corpus.{k}": v for k, v in dataclasses.asdict(c).items()}
    corpus = {k: v for k, v in corpus.items() if k not in ("corpus.tokenizer", "corpus.vocab")}
    length = {"train.length": e.train.length}
    return {
        "corpus": (corpus, (), _corpus),
        "tokenizer": (vocabulary, ("corpus",), _tokenizer),
        "chunks": (
            {"model.chunk": e.model.chunk, "corpus.bad_documents": c.bad_documents},
            ("corpus", "tokenizer"),
            _chunks,
        ),
        "embeddings": (
            {f"retrieval.{name}": getattr(r, name) for name in ("embedder", "dim", "dtype")},
            ("chunks", "tokenizer"),
            _embeddings,
        ),
        "index": (
            {
                "retrieval.index": r.index,
                "retrieval.min_recall": r.min_recall,
                "retrieval.neighbours": r.neighbours,
                "retrieval.index_shard": r.index_shard,
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
    return collect.collect(e.corpus, out)


def _tokenizer(e: Experiment, base: Path, out: Path) -> dict:
    if e.corpus.tokenizer == "train":
        texts = (d.text for d in collect.read(base / "corpus", "train"))
        (out / "tokenizer.model").write_bytes(tokenizer.train(texts, e.corpus.vocab))
    else:
        given = Path(e.corpus.tokenizer)
        tokenizer.load(given)  # refuses what does not serve
        (out / ("tokenizer" + given.suffix)).write_bytes(given.read_bytes())
    return {"vocab": tokenizer.load(_tokenizer_file(out)).vocab}


def _tokenizer_file(directory: Path) -> Path:
    given = directory / "tokenizer.json"
    return given if given.exists() else directory / "tokenizer.model"


def load_tokenizer(base: Path):
    """The tokenizer that `prepare` trained or was given."""
    return tokenizer.load(_tokenizer_file(base / "tokenizer"))


def _chunks(e: Experiment, base: Path, out: Path) -> dict:
    pieces, counts = load_tokenizer(base), {}
    manifest = workdir.read_manifest(base / "corpus")["counts"]
    refuse = functools.partial(collect.refuse_or_skip, e.corpus)
    for split in SPLITS:
        with progress.bar(f"tokenizing {split}", manifest[f"{split}_documents"]) as advance:
            documents = ((advance(1), d)[1] for d in collect.read(base / "corpus", split))
            short = chunks.build(documents, pieces, e.model.chunk, out / split, refuse)
        table = chunks.ChunkTable(out / split)
        if not len(table):
            raise UserError(
                f"no {split} document is as long as a chunk ({e.model.chunk} tokens): give longer "
                "documents"
            )
        counts |= {
            f"{split}_chunks": len(table),
            f"{split}_tokens": sum(d["tokens"] for d in table.documents),
            f"{split}_short_documents_skipped": short,
        }
    return counts


def text_of(base: Path, split: str):
    """Row of the chunk table -> what its tokens say. Live queries are made of the same text
    (retriever.py)."""
    pieces, table = load_tokenizer(base), chunks.ChunkTable(base / "chunks" / split)
    return lambda row: pieces.decode(table.tokens[row].tolist()), len(table)


def _embeddings(e: Experiment, base: Path, out: Path) -> dict:
    if e.retrieval.embedder == "tfidf" and not (out / "tfidf.safetensors").exists():
        progress.say("fitting the tfidf embedder")
        text, count = text_of(base, "train")
        sample = [text(row) for row in embed.sample(count)]
        embed.fit_tfidf(sample, e.retrieval.dim).save(out)
    embedder = embed.load(e.retrieval, out, e.model.chunk)
    for split in SPLITS:
        text, count = text_of(base, split)
        writer = columns.Writer(out / split, {"vectors": (embedder.dtype, (embedder.width,))})
        start = writer.rows("vectors")
        with progress.bar(f"embedding {split} chunks", count) as advance:
            advance(start)
            for begin in range(start, count, EMBEDDED):
                made = embed_block(embedder, text, begin, count)
                writer.append(vectors=made)
                writer.commit()
                advance(len(made))
        writer.close()
    return {"width": embedder.width}


def embed_block(embedder, text, begin: int, count: int) -> np.ndarray:
    """Vectors of the chunks from `begin` on: a block of them, or what is left of `count`."""
    return embedder.embed([text(row) for row in range(begin, min(begin + EMBEDDED, count))])


def load_embedder(experiment: Experiment, base: Path):
    """The embedder that the database was made with."""
    return embed.load(experiment.retrieval, base / "embeddings", experiment.model.chunk)


def vectors_of(base: Path, split: str) -> np.ndarray:
    """The embeddings of a split's chunks [N, E]."""
    return columns.Columns(base / "embeddings" / split)["vectors"]


def _index(e: Experiment, base: Path, out: Path) -> dict:
    r, vectors = e.retrieval, vectors_of(base, "train")
    progress.say(f"building an index of {len(vectors):,} vectors")
    return index.build(vectors, out, r.index, r.min_recall, r.neighbours, r.index_shard)


def _neighbours(e: Experiment, base: Path, out: Path) -> dict:
    """ids and distances of the k nearest of every chunk; counts those with fewer than k."""
    searcher, k, counts = index.load(base / "index", keep=False), e.retrieval.neighbours, {}
    documents = chunks.ChunkTable(base / "chunks" / "train").document
    block = searched_at_a_time(e, searcher)
    for split in SPLITS:
        table, vectors = chunks.ChunkTable(base / "chunks" / split), vectors_of(base, split)
        layout = {"ids": ("<i8", (k,)), "distances": ("<f4", (k,))}
        writer = columns.Writer(out / split, layout)
        writer.state = {"fewer": 0} | writer.state
        with progress.bar(f"neighbours of {split} chunks", len(vectors)) as advance:
            advance(writer.rows("ids"))
            for begin in range(writer.rows("ids"), len(vectors), block):
                end = min(begin + block, len(vectors))
                forbidden = forbidden_documents(e, table, split, begin, end)
                ids, distances = neighbours.find(
                    searcher.search, vectors[begin:end], forbidden, documents, k, advance, block
                )
                writer.state["fewer"] += int((ids < 0).any(axis=1).sum())
                writer.append(ids=ids, distances=distances)
                writer.commit()
        writer.close()
        counts[f"{split}_share_with_fewer_than_k"] = writer.state["fewer"] / len(vectors)
    return counts


def searched_at_a_time(e: Experiment, searcher) -> int:
    """Chunks of a block: whole sequences, and many where each block opens every shard of the index."""
    return e.chunks * -(-(neighbours.BLOCK if searcher.shards == 1 else 2**16) // e.chunks)


def forbidden_documents(e: Experiment, table, split: str, begin: int, end: int) -> np.ndarray:
    """Documents that no neighbour of chunks begin .. end - 1 may be of; `begin` starts a sequence."""
    if split == "train":
        return sequences.own_documents(table, begin, end, e.chunks)
    return np.full((end - begin, 1), -1)  # the database holds no held-out document


def _shards(e: Experiment, base: Path, out: Path) -> dict:
    """Records of tokens and neighbours; see `sequences.record`."""
    database = chunks.ChunkTable(base / "chunks" / "train")
    counts = {}
    for split in SPLITS:
        table = chunks.ChunkTable(base / "chunks" / split)
        near = columns.Columns(base / "neighbours" / split)
        ids, distances = near["ids"], near["distances"]
        (out / split).mkdir(exist_ok=True)
        with progress.bar(f"writing {split} shards", None) as advance:

            def examples(start):
                cuts = sequences.cuts(table, split, e.chunks, e.evaluate.stride // table.chunk)  # noqa: B023
                for rows, scored in itertools.islice(cuts, start, None):
                    advance(1)
                    yield sequences.record(table, database, rows, scored, ids, distances)  # noqa: B023

            counts[f"{split}_records"] = records.write(out / split, examples)
    records.write_tfds_info(out, SPLITS)
    return counts
