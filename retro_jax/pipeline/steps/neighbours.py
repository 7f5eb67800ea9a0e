"""The steps `neighbours/SPLIT`: the k nearest of every chunk, none of its own sequence's documents."""

import functools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from retro_jax import progress
from retro_jax.config import RetrievalConfig
from retro_jax.corpus.chunks import ChunkTable
from retro_jax.pipeline.step import Advance, Rows, nothing_done
from retro_jax.retrieval import bm25, forbidden, neighbours, sharded
from retro_jax.retrieval.bm25 import Statistics
from retro_jax.retrieval.index import INDEXES, Found, nothing
from retro_jax.retrieval.indexes import bm25 as lists
from retro_jax.retrieval.ranking import Queries, Ranking
from retro_jax.retrieval.sharded import Shard, ShardedIndex
from retro_jax.retrieval.words import NONE
from retro_jax.store.bucket import local
from retro_jax.store.columns import Columns

_FEWER = 0.1  # share of the chunks that may find fewer than k without a warning
_PLACE = 4096  # chunks of the database whose words are read at a time, to score some of them
_MANY = 2**16  # queries of a block where each block opens every shard of an index


class FindNeighbours(Rows):
    """ids and distances of the k nearest of every chunk of a split; a part is a block of chunks.

    Args:
      database: the split that is searched. config: how.
    """

    unit = "blocks"

    def __init__(
        self, base: Path, name: str, settings: dict, inputs: tuple, database: str,
        config: RetrievalConfig,
    ):  # fmt: skip
        super().__init__(base, name, settings, inputs)
        self.database, self._config = database, config
        self._opened: dict[str, np.ndarray] = {}
        self._placed: dict[int, np.ndarray] = {}  # words of the place that was asked last

    @property
    def doing(self) -> str:
        """For a progress bar."""
        return f"neighbours of {self.split} chunks"

    @property
    def k(self) -> int:
        """Neighbours of a chunk."""
        return self.settings["retrieval.neighbours"]

    @property
    def layout(self) -> dict:
        """ids are rows of the database's chunk table, -1 for none."""
        return {"ids": ("<i8", (self.k,)), "distances": ("<f4", (self.k,))}

    @property
    def together(self) -> int:
        """Chunks that are of one sequence."""
        length = self.settings.get("train.length")  # held-out text is cut by documents
        return length // self.table.chunk if length else 1

    @functools.cached_property
    def table(self) -> ChunkTable:
        """The chunks that retrieve."""
        return ChunkTable(self.at(f"chunks/{self.split}"))

    @functools.cached_property
    def shards(self) -> int:
        """Of the index."""
        return sharded.read_report(self.at("index"))["shards"]

    @property
    def block(self) -> int:
        """Chunks of a part: whole sequences, and many where each block opens every shard."""
        words = INDEXES[self._config.index].takes == "words"  # whose shards stay open
        size = neighbours.BLOCK if self.shards == 1 or words else _MANY
        return self.together * -(-size // self.together)

    def total(self) -> int:
        """Chunks."""
        return len(self.table)

    def parts(self) -> int:
        """Blocks of chunks."""
        return -(-self.total() // self.block)

    def begins(self, part: int) -> int:
        """The first chunk of a block."""
        return part * self.block

    def make(self, part: int, advance: Advance = nothing_done) -> tuple[dict, dict]:
        """The neighbours of a block, [n, K] each."""
        return self.ranked(part, self.search.find(part, advance))

    def ranked(
        self, part: int, candidates: Found, scores: np.ndarray | None = None
    ) -> tuple[dict, dict]:
        """What `make` returns, of the candidates of a block; `scores` [n, C] if they were scored where their words
        lie (see `asked`)."""
        if scores is not None:
            ids, distances = self._ranking.best(candidates[0], scores, self.k)
        else:
            words = self._words(self.split, self._at(part)), self._words(self.database)
            queries = Queries(candidates[0], None if words[0] is None else np.asarray(words[0]))
            ids, distances = self._ranking.order(queries, words[1], candidates, self.k)
        return {"ids": ids, "distances": distances}, {"fewer": self.fewer(ids)}

    def _at(self, part: int) -> slice:
        return slice(self.begins(part), self.begins(part + 1))

    def asked(self, part: int, ids: np.ndarray) -> Iterator[tuple[int, tuple]]:
        """What is asked of places of the database to score the candidates [n, C] of a block: the place, and
        (queries [p] and numbers of their candidates [p], ids [p], words of different queries [q, W], and which of
        these each is of [p]). For who cannot hold the words of the database."""
        if not self.reranks:
            return
        words = np.asarray(self._words(self.split, self._at(part)))
        words = words[:, : max(1, (words != NONE).sum(axis=1).max(initial=0))]
        query, number = np.nonzero(ids >= 0)
        place = ids[query, number] // _PLACE
        order = np.argsort(place, kind="stable")
        for at in np.split(order, np.flatnonzero(np.diff(place[order])) + 1):
            if len(at):
                own, of = np.unique(query[at], return_inverse=True)
                said = query[at], number[at], ids[query[at], number[at]], words[own], of
                yield int(place[at[0]]), said

    def scored(self, place: int, asked: tuple) -> np.ndarray:
        """The scores [p] of the candidates that `asked` names."""
        ids, words, of = asked[2:]
        if place not in self._placed:
            rows = self._words(self.database)[place * _PLACE : (place + 1) * _PLACE]
            self._placed = {place: np.asarray(rows)}
        chunks = self._placed[place][ids - place * _PLACE]
        out = np.zeros(len(ids), np.float32)
        for number, query in enumerate(words):
            out[of == number] = bm25.scores(query, chunks[of == number], self.statistics)
        return out

    @property
    def reranks(self) -> bool:
        """Whether candidates are ordered by their words."""
        return self._config.rerank != "none"

    @property
    def candidates(self) -> int:
        """How many are searched of a chunk."""
        return Ranking.of(self._config).fetch(self.k)

    @functools.cached_property
    def _ranking(self) -> Ranking:
        return Ranking.of(self._config, self.statistics)

    @functools.cached_property
    def statistics(self) -> Statistics | None:
        """Of the words of the database, where words are looked at."""
        if "statistics" not in self.inputs:
            return None
        return Statistics.load(local(self.at("statistics")))

    def _words(self, split: str, rows: slice | None = None):
        """The words of a split, or of rows of it [n, W], where candidates are ordered by them."""
        if not self.reranks:
            return None
        words = self._column(f"words/{split}", "words")
        return words if rows is None else words[rows]

    def _column(self, step: str, name: str):
        """A column of a step's output, opened once: what is mapped twice counts twice."""
        if step not in self._opened:
            self._opened[step] = Columns(self.at(step))[name]
        return self._opened[step]

    def fewer(self, ids: np.ndarray) -> int:
        """How many chunks have fewer than K."""
        return int((ids < 0).any(axis=1).sum())

    def finish(self, out: Path, counts: dict) -> dict:
        """What share of the chunks has fewer than K, and a warning of many; lets go of the index."""
        self.__dict__.pop("search", None)
        share = counts["fewer"] / self.total()
        if share > _FEWER:
            progress.say(
                f"WARNING: {share:.0%} of the {self.split} chunks find fewer than {self.k} neighbours "
                "(retrieval.neighbours): the database is small, or its text shares few words; give it more "
                "text, or another retrieval.embedder"
            )
        return {"share_with_fewer_than_k": share}

    @functools.cached_property
    def search(self) -> "Search":
        """Finds candidates."""
        return SearchWords(self) if INDEXES[self._config.index].takes == "words" else Search(self)

    def searched(self, split: str) -> np.ndarray:
        """What the index takes, of a split [N, E]."""
        takes = INDEXES[self._config.index].takes
        step = "embeddings" if takes == "vectors" else "words"
        return self._column(f"{step}/{split}", takes)


class Search:
    """The search for the candidates of a split's chunks, a block at a time: here, or apart for each shard."""

    def __init__(self, step: FindNeighbours):
        self._step = step
        database = ChunkTable(step.at(f"chunks/{step.database}"))
        number = forbidden.copies(database)
        self._own = forbidden.own_documents(step.table, database, number)
        # 4 bytes a chunk, which in a bucket would be read again for each query.
        self._owners = neighbours.Owners(np.asarray(database.document), number)
        self._queries = step.searched(step.split)
        self._answering: dict[int, tuple[Shard, neighbours.Owners]] = {}

    @functools.cached_property
    def _index(self) -> ShardedIndex:
        s = self._step
        return ShardedIndex(s.at("index"), s.searched(s.database), keep=False)

    def _bounds(self, part: int) -> tuple[int, int]:
        return self._step.begins(part), min(self._step.begins(part + 1), self._step.total())

    def _forbidden(self, part: int) -> np.ndarray:
        s = self._step
        return forbidden.forbidden(s.table, self._own, *self._bounds(part), s.together)

    def find(self, part: int, advance: Advance = nothing_done) -> Found:
        """ids [n, C] and distances [n, C] of the candidates of a block."""
        queries, none_of = self._queries[slice(*self._bounds(part))], self._forbidden(part)
        s = self._step
        return neighbours.find(
            self._index, queries, none_of, self._owners, s.candidates, advance, s.block
        )

    def requests(
        self, part: int, few: Sequence[int] = ()
    ) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Of a block: numbers of shards, which of its queries are searched there [n], and these [n, E]; where
        none is, nothing but that the first shard is asked nothing.

        few: of its queries those that are searched everywhere, because they found too few before.
        """
        queries = np.asarray(self._queries[slice(*self._bounds(part))])
        for number, rows in enumerate(self._index.routes(queries, self._step.candidates)):
            rows = np.union1d(rows, np.array(few, np.int64))
            if len(rows) or not number:
                yield number, rows, queries[rows]

    def answer(self, number: int, part: int, rows: np.ndarray, queries: np.ndarray) -> Found:
        """What one shard finds for a request."""
        if not len(rows):
            return nothing(0, self._step.candidates)
        if number not in self._answering:
            shard = self._index.shard(number)
            self._answering = {number: (shard, self._owners.within(shard))}
        shard, owners = self._answering[number]
        return neighbours.find_in(
            shard, queries, self._forbidden(part)[rows], owners, self._step.candidates
        )

    def together(self, part: int, answers: Iterable[tuple[np.ndarray, Found]]) -> Found:
        """The candidates of a block, of what the shards found for rows of it."""
        begin, end = self._bounds(part)
        return self._index.joined(end - begin, self._step.candidates, answers)

    def few(self, candidates: Found) -> list[int]:
        """Which queries of a block are to be searched everywhere."""
        return np.flatnonzero(self._index.short(candidates[0])).tolist()


class SearchWords(Search):
    """Apart, each shard has the lists of some words, so what it finds are not candidates yet."""

    def requests(
        self, part: int, few: Sequence[int] = ()
    ) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Of a block: numbers of shards, which of its queries ask them something [n], and what [n, 2, W']."""
        queries = np.asarray(self._queries[slice(*self._bounds(part))])
        shards, size, most = self._reports
        yield 0, np.zeros(0, np.int64), np.zeros((0, 2, 0), np.int32)  # though it asks nothing
        yield from lists.sent(queries, shards, self._step.statistics, size, most)

    @functools.cached_property
    def _reports(self) -> tuple[int, int, int]:
        """Shards of the index, chunks, and pairs that a query reads."""
        index = self._step.at("index")
        report, first = (sharded.read_report(d) for d in (index, index / sharded.shard_name(0)))
        return report["shards"], report["size"], first["postings"]

    def answer(self, number: int, part: int, rows: np.ndarray, queries: np.ndarray) -> tuple:
        """What the lists of one shard say for a request: where the postings of each row end, and these."""
        if number not in self._answering:
            path = self._step.at("index") / sharded.shard_name(number)
            self._answering = {number: (sharded.open_shard(local(path), 0), self._owners)}
        index = self._answering[number][0].index
        found = [index.postings(*asked) for asked in queries]
        ends = np.cumsum([len(f) for f in found], dtype=np.int64)
        return ends, np.concatenate([np.zeros(0, np.int64), *found])

    def together(self, part: int, answers: Iterable[tuple[np.ndarray, tuple]]) -> Found:
        """The candidates of a block, of what the shards' lists say for rows of it."""
        none_of, s = self._forbidden(part), self._step
        said = [[np.zeros(0, np.int64)] for _ in none_of]
        for rows, (ends, postings) in answers:
            for row, own in zip(rows.tolist(), np.split(postings, ends[:-1])):
                said[row].append(own)
        ids, distances = nothing(len(said), s.candidates)
        for row, own in enumerate(said):
            chunks, sums = lists.summed(own)
            valid = ~np.isin(self._owners(chunks), none_of[row])
            near, sums = lists.top(chunks[valid], sums[valid], s.candidates)
            ids[row, : len(near)], distances[row, : len(near)] = near, lists.distance(sums)
        return ids, distances
