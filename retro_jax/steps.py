"""What each step of `prepare` does, in blocks, and what later stages open of it.

`base` is WORKDIR/prepare, `out` the directory that a step fills; prepare.py has their order.
"""

import functools
import json
from pathlib import Path

import numpy as np

from retro_jax import columns, progress, records, sequences, workdir
from retro_jax.config import Experiment
from retro_jax.corpus import chunks, collect, tokenizer
from retro_jax.corpus.chunks import ChunkTable
from retro_jax.errors import UserError
from retro_jax.retrieval import embed, index, neighbours

EMBEDDED = 4096  # chunks that are embedded at a time


def heldout_sources(e: Experiment) -> dict[str, str]:
    """name -> source of the held-out corpora beside the split of the training corpus."""
    return {
        name: source for name, _, source in (s.partition("=") for s in e.corpus.heldout_sources)
    }


def shard_splits(e: Experiment) -> tuple[str, ...]:
    """The splits that have shards: what is trained on first, then what is held out."""
    return ("train", "heldout", *heldout_sources(e))


def database_split(e: Experiment) -> str:
    """The split whose chunks are retrieved."""
    return "database" if e.retrieval.source else "train"


def corpus_of(split: str) -> str:
    """The step that collects the documents of a split."""
    return "corpus" if split in ("train", "heldout") else f"corpora/{split}"


def documents_of(base: Path, split: str, begin: int = 0, end: int | None = None):
    """Yields the documents of a split, from number `begin` to before `end`."""
    return collect.read(base / corpus_of(split), _part(split), begin, end)


def documents_in(base: Path, split: str) -> int:
    """How many documents a split has."""
    return workdir.read_manifest(base / corpus_of(split))["counts"][f"{_part(split)}_documents"]


def _part(split: str) -> str:
    return "train" if split in ("train", "database") else "heldout"


def source_of(e: Experiment, split: str) -> collect.Source:
    """What a corpus is made of.

    split: "" is the training corpus and its held-out split; `database` the retrieval corpus, less every
    document whose id or text is that of one that the former holds out; others are held out as a whole.
    """
    c = e.corpus
    if split == "":
        share = c.heldout
        split_of = lambda d: "heldout" if collect.is_heldout(d.id, share) else "train"  # noqa: E731
        return collect.Source(c.source, "corpus.source", ("train", "heldout"), split_of)
    if split == "database":
        held_out = functools.cache(lambda: collect.held_out(source_of(e, "")))
        split_of = lambda d: None if collect.is_among(d, held_out()) else "train"  # noqa: E731
        return collect.Source(e.retrieval.source, "retrieval.source", ("train",), split_of)
    source = heldout_sources(e)[split]
    return collect.Source(source, "corpus.heldout_sources", ("heldout",), lambda d: "heldout")


def compared_with(e: Experiment, base: Path, split: str) -> tuple[Path, ...]:
    """The corpora that must not nearly repeat a held-out document of a corpus, beside its own."""
    if split == "database":
        return ()
    others = (base / "corpus",) if split else ()
    return others + ((base / "corpora" / "database",) if e.retrieval.source else ())


def collect_documents(e: Experiment, base: Path, split: str, out: Path) -> dict:
    """The documents of a corpus; `split` as in `source_of`."""
    return collect.collect(e.corpus, source_of(e, split), out, compared_with(e, base, split))


def tokenize(e: Experiment, base: Path, out: Path) -> dict:
    """The tokenizer, trained or given."""
    if e.corpus.tokenizer == "train":
        texts = (d.text for d in documents_of(base, "train"))
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


def cut(e: Experiment, base: Path, split: str, out: Path) -> dict:
    """The chunk table of a split."""
    refuse = functools.partial(collect.refuse_or_skip, e.corpus)
    documents = functools.partial(documents_of, base, split)
    total = documents_in(base, split)
    with progress.bar(f"tokenizing {split}", total) as advance:
        short = chunks.build(
            documents, total, load_tokenizer(base), e.model.chunk, out, refuse, advance
        )
    return chunk_counts(ChunkTable(out), split, short)


def chunk_counts(table: ChunkTable, split: str, short: int) -> dict:
    """The counts of a chunk table; refuses an empty one."""
    if not len(table):
        raise UserError(
            f"no {split} document is as long as a chunk: give longer documents, or a smaller "
            "model.chunk"
        )
    return {
        "documents": len(table.documents),
        "chunks": len(table),
        "tokens": sum(d["tokens"] for d in table.documents),
        "short_documents_skipped": short,
    }


def table_of(base: Path, split: str) -> ChunkTable:
    """The chunk table of a split."""
    return ChunkTable(base / "chunks" / split)


def texts_of(pieces, table: ChunkTable, rows) -> list[str]:
    """What the tokens of rows of a chunk table say: live queries are made of the same text
    (retriever.py)."""
    return [pieces.decode(row) for row in np.asarray(table.tokens[rows]).tolist()]


def fit_embedder(e: Experiment, base: Path, out: Path) -> dict:
    """What an embedder learns of the database; most learn nothing."""
    if e.retrieval.embedder == "tfidf":
        progress.say("fitting the tfidf embedder")
        pieces, table = load_tokenizer(base), table_of(base, database_split(e))
        texts = [texts_of(pieces, table, [row])[0] for row in embed.sample(len(table))]
        embed.fit_tfidf(texts, e.retrieval.dim).save(out)
    return {"width": embed.load(e.retrieval, out, e.model.chunk).width}


def load_embedder(e: Experiment, base: Path):
    """The embedder that the database was made with."""
    return embed.load(e.retrieval, base / "embedder", e.model.chunk)


def embed_chunks(e: Experiment, base: Path, split: str, out: Path) -> dict:
    """A vector for each chunk of a split."""
    embedder, pieces, table = load_embedder(e, base), load_tokenizer(base), table_of(base, split)
    writer, count = columns.Writer(out, embedding_columns(embedder)), len(table)
    start = writer.rows("vectors")
    with progress.bar(f"embedding {split} chunks", count) as advance:
        advance(start)
        for begin in range(start, count, EMBEDDED):
            made = embed_block(embedder, pieces, table, begin)
            writer.append(vectors=made)
            writer.commit()
            advance(len(made))
    writer.close()
    return {"vectors": count}


def embedding_columns(embedder) -> dict:
    """The columns of the embeddings."""
    return {"vectors": (embedder.dtype, (embedder.width,))}


def embed_block(embedder, pieces, table: ChunkTable, begin: int) -> np.ndarray:
    """Vectors of the block of chunks from `begin` on."""
    return embedder.embed(texts_of(pieces, table, slice(begin, begin + EMBEDDED)))


def vectors_of(base: Path, split: str) -> np.ndarray:
    """The embeddings of a split's chunks [N, E]."""
    return columns.Columns(base / "embeddings" / split)["vectors"]


def build_index(e: Experiment, base: Path, out: Path) -> dict:
    """The index of the database."""
    r, vectors = e.retrieval, vectors_of(base, database_split(e))
    progress.say(f"building an index of {len(vectors):,} vectors")
    return index.build(vectors, out, r.index, r.min_recall, r.neighbours, r.index_shard)


def find_neighbours(e: Experiment, base: Path, split: str, out: Path) -> dict:
    """ids and distances of the k nearest of every chunk; counts those with fewer than k."""
    search = Search(e, base, split)
    k, count = e.retrieval.neighbours, len(search.table)
    writer = columns.Writer(out, neighbour_columns(k))
    writer.state = {"fewer": 0} | writer.state
    with progress.bar(f"neighbours of {split} chunks", count) as advance:
        advance(writer.rows("ids"))
        for begin in range(writer.rows("ids"), count, search.block):
            ids, distances = search.neighbours(begin, advance)
            writer.state["fewer"] += int((ids < 0).any(axis=1).sum())
            writer.append(ids=ids, distances=distances)
            writer.commit()
    writer.close()
    return {"share_with_fewer_than_k": writer.state["fewer"] / count}


def load_retriever(e: Experiment, base: Path):
    """The Retriever that a prompt's chunks are looked up with."""
    from retro_jax.retrieval import database, retriever  # which open what this file makes

    return retriever.Retriever(database.Databases(e, base), e.retrieval.neighbours)


def neighbour_columns(k: int) -> dict:
    """The columns of the neighbours."""
    return {"ids": ("<i8", (k,)), "distances": ("<f4", (k,))}


def searched_at_a_time(e: Experiment, split: str, shards: int) -> int:
    """Chunks of a block of queries: whole sequences, and many where each block opens every shard."""
    size, together = neighbours.BLOCK if shards == 1 else 2**16, _together(e, split)
    return together * -(-size // together)


def _together(e: Experiment, split: str) -> int:
    """Chunks that are of one sequence."""
    return e.chunks if split == "train" else 1


class Search:
    """The search for the neighbours of a split's chunks, a block at a time.

    Args:
      shard: what is searched; by default the whole index of the working directory.
      first: the shard's first chunk, in the database.

    Attributes:
      table: the split's chunk table. block: chunks of a block.
    """

    def __init__(self, e: Experiment, base: Path, split: str, shard=None, first: int = 0):
        self.table, self._vectors = table_of(base, split), vectors_of(base, split)
        shards = json.loads((base / "index" / "index.json").read_text())["shards"]
        self.block = searched_at_a_time(e, split, shards)
        self._k, self._together, self._first = e.retrieval.neighbours, _together(e, split), first
        self._index = index.load(base / "index", keep=False) if shard is None else shard
        database, last = table_of(base, database_split(e)), first + len(self._index)
        number = sequences.copies(database)
        self._own = sequences.own_documents(self.table, database, number)
        document = database.document[first:last]
        self._owners = neighbours.Owners(document, number)
        words = e.retrieval.index == "bm25"
        vectors = vectors_of(base, database_split(e))
        part = vectors.part if isinstance(vectors, columns.Ranges) else lambda a, b: vectors[a:b]
        self._compared = None if words else part(first, last)  # read only where it is needed

    def neighbours(self, begin: int, advance=lambda done: None) -> tuple[np.ndarray, np.ndarray]:
        """ids [n, K] int64 and distances [n, K] float32 of the block from `begin` on."""
        end = min(begin + self.block, len(self.table))
        forbidden = sequences.forbidden(self.table, self._own, begin, end, self._together)
        ids, distances = neighbours.find(
            self._index.search, self._vectors[begin:end], forbidden, self._owners, self._k,
            self._compared, advance, self.block,
        )  # fmt: skip
        return np.where(ids < 0, -1, ids + self._first), distances


def write_shards(e: Experiment, base: Path, split: str, out: Path) -> dict:
    """Records of tokens and neighbours; see `sequences.record`."""
    table, database = table_of(base, split), table_of(base, database_split(e))
    near = columns.Columns(base / "neighbours" / split)
    ids, distances = near["ids"], near["distances"]
    with progress.bar(f"writing {split} shards", None) as advance:

        def examples(start):
            stride = e.evaluate.stride // table.chunk
            for rows, scored in sequences.cuts(table, split, e.chunks, stride, start):
                advance(1)
                yield sequences.record(table, database.values, rows, scored, ids, distances)

        return {"records": records.write(out, examples)}
