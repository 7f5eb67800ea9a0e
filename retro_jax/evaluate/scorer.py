"""The likelihood of a continuation given a context, with retrieval in the loop.

    M chunk length, K neighbours, R = 2 M retrieved length

The chunk grid starts at BOS. Every complete chunk is looked up, and what it retrieves is read from its last
token on, as in generation: nothing is ever retrieved with a token that is yet to be predicted.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from retro_jax import progress
from retro_jax.corpus.tokenizer import BOS, PAD
from retro_jax.errors import UserError
from retro_jax.evaluate.score import Pair, Score
from retro_jax.generate.generator import Generator
from retro_jax.generate.lookup import first_tokens, prompt_ids
from retro_jax.generate.lookup import window as tail
from retro_jax.methods.method import Method, Retrieved, method_of
from retro_jax.pipeline.prepare import check_prepared
from retro_jax.pipeline.prepared import Prepared
from retro_jax.store.workdir import WorkDir
from retro_jax.train import sharding
from retro_jax.train.restore import restore_trained

_BLOCK = 256  # chunks that are looked up at a time


class Window(NamedTuple):
    """Tokens that are read together, of which those from `first` on are scored."""

    of: int  # which pair's
    tokens: np.ndarray
    first: int
    place: int  # of the first one that is scored, among all that are scored of the pair


class Scorer:
    """A trained method and its database, as a judge of texts.

    Args:
      method, params, tokenizer: the network; params lie on `mesh`, or are a function that makes them at each call of
        `score`.
      retriever: see `databases.retriever.Retriever`.
      rows: windows of a batch. length: tokens of a window at most, a multiple of M.
      context: tokens that come before the first one scored in every window but a text's first, if what is
        scored needs several; below `length`.
      align: padding before the context, so that a chunk ends where the context does.
      databases: what is searched.
      bar: how its progress is shown (`progress.bar`).
    """

    def __init__(
        self, method: Method, params: dict | Callable[[], dict], tokenizer, retriever, mesh,
        rows: int = 16, length: int = 1024, context: int = 512, align: bool = False,
        databases=("prepared",), bar=progress.bar,
    ):  # fmt: skip
        model = method.model
        if length % model.reading.chunk or not 0 < context < length:
            raise UserError(
                f"length = {length}, context = {context}: length must be a multiple of a chunk's "
                f"{model.reading.chunk} tokens, and context between 1 and length - 1"
            )
        if rows < 1:
            raise UserError(f"rows = {rows}: must be at least 1")
        retriever.check(databases)
        self.method, self.model = method, model
        self.tokenizer, self.retriever = tokenizer, retriever
        self.length, self.rows, self.align, self.databases = length, rows, align, databases
        self._params = params if callable(params) else lambda: params
        self._mesh, self._context, self._bar = mesh, context, bar
        self._bytes = tokenizer.byte_counts
        never = tuple(np.flatnonzero(tokenizer.silent).tolist())
        self._scores = method.jitted("scores", never=never)

    @classmethod
    def open(
        cls, work: WorkDir | Path | str, method: str = "retro", rows: int | None = None, **sizes
    ) -> "Scorer":
        """The scorer of a working directory that is trained: windows of `train.length`, `evaluate.stride`
        apart, as in `retro evaluate`.

        Args:
          work: the directory. method: a name of METHODS. rows: `evaluate.batch` without it.

        Raises:
          UserError: something is missing, or was made with another config.
        """
        work = WorkDir.of(work)
        e, mesh = work.experiment, sharding.make_mesh(work.experiment.mesh)
        check_prepared(work, only_live=True)
        of, tokenizer = method_of(e, method), Prepared(work).tokenizer
        rows = e.evaluate.batch if rows is None else rows
        sharding.check_divides(mesh, e.model, tokenizer.vocab, rows=rows)
        with jax.set_mesh(mesh):
            params = restore_trained(work, of, mesh)
        of.prepare(work)
        retriever = of.retriever(work)
        length = e.train.length
        given = {"length": length, "context": length - e.evaluate.stride} | sizes
        return cls(of, params, tokenizer, retriever, mesh, rows, **given)

    @classmethod
    def beside(
        cls, generator: Generator, rows: int = 1, databases: tuple[str, ...] = ("prepared",)
    ) -> "Scorer":
        """The scorer of the network of a generator, on its device, of texts as long as it has room for; it shows no
        progress."""
        g, mesh = generator, sharding.one_device()
        m = g.model.reading.chunk
        length = -(-g.length // m) * m
        with jax.set_mesh(mesh):
            return cls(
                g.method, g.params, g.tokenizer, g.retriever, mesh, rows, length, length - m,
                databases=databases, bar=progress.no_bar,
            )  # fmt: skip

    def score(
        self,
        pairs: Sequence[Pair | tuple[str, str]],
        k: int | None = None,
        neighbours: Sequence[str] = (),
        special_tokens: bool = False,
    ) -> list[Score]:
        """The score of each continuation.

        Args:
          k: neighbours of a chunk, 0 for none, by default as in training. neighbours: texts that every chunk reads,
            instead of what it would retrieve. special_tokens: special tokens in contexts are tokens, as chat templates
            write them; a continuation then begins where its context ends, and none of its tokens is the context's.

        What is read is the last `length` tokens at most: a longer text loses whole chunks at its start, so
        that the others are the same. An empty continuation has log p 0.

        Raises:
          UserError: a negative k.
        """
        if isinstance(pairs, str) or any(isinstance(p, str) for p in pairs):
            raise UserError(
                f"score({str(pairs)[:40]!r}): give pairs (context, continuation); `rolling` scores whole texts"
            )
        given = self._given(neighbours)
        k = len(given) or self.method.k if k is None else k
        if k and not self.method.reads:
            raise UserError(f"k = {k}: {self.method.name} reads nothing; leave it out")
        if k < 0:
            raise UserError(f"k = {k}: must be a number of neighbours, or 0 for none")
        windows, scores = [], []
        for number, pair in enumerate(pairs):
            if special_tokens:
                ids, first, merged = after_prompt(self.tokenizer, *pair)
            else:
                ids, first, merged = split(self.tokenizer, self._bytes, *pair)
            scores.append(Score.of(ids[first:], merged))
            padding = -first % self.model.reading.chunk if self.align and first > 1 else 0
            tokens = np.array([PAD] * padding + ids, np.int32)
            for begin, scored, end in self._cuts(len(tokens), padding + first):
                place = scored - padding - first
                windows.append(Window(number, tokens[begin:end], scored - begin, place))
        near = self._look_up(windows, k, given) if k else None
        if near and not len(given):
            for number, rows in near.rows_by_pair(len(scores)):
                scores[number].ids = near.ids[rows]
                scores[number].distances = near.distances[rows]
        with self._bar("scoring", len(windows)) as advance, jax.set_mesh(self._mesh):
            for batch, found in self._batches(windows, near, given):
                for row, window in enumerate(batch):
                    at, own = slice(window.first, len(window.tokens)), scores[window.of]
                    to = slice(window.place, window.place + len(window.tokens) - window.first)
                    for values, into in zip(found, (own.logprobs, own.best, own.top)):
                        into[to] = values[row, at]
                advance(len(batch))
        return scores

    def rolling(self, texts: Sequence[str], k: int | None = None) -> list[Score]:
        """The score of whole texts: each token once, in the windows that `retro evaluate` reads."""
        return self.score([Pair("", text) for text in texts], k)

    def _cuts(self, size: int, first: int) -> Iterator[tuple[int, int, int]]:
        """(begin, first scored, end) of the windows of a text of `size` tokens."""
        m, length, context = self.model.reading.chunk, self.length, self._context
        begin = max(0, -(-(size - length) // m) * m)
        if begin > max(0, first - context):  # one window is not enough
            begin = max(0, first - context) // m * m
        while first < size:
            end = min(size, begin + length)
            yield begin, first, end
            first, begin = end, (end - context) // m * m

    def _given(self, texts: Sequence[str]) -> np.ndarray:
        """The first R tokens of texts [K, R]."""
        if isinstance(texts, str):
            raise UserError(
                f"neighbours = {texts!r}: must be a list of texts, for example [{texts!r}]"
            )
        return first_tokens(self.tokenizer, texts, self.model.reading.retrieved)

    def _look_up(self, windows: list[Window], k: int, given: np.ndarray) -> "_Near":
        """What windows retrieve, each different look-up once."""
        asks, cut, rows, count = self.method.look_ups, [], [], 0
        for window in windows:
            # What the last token retrieves nobody reads.
            whole = (len(window.tokens) - 1) // asks.every
            whole = min(whole, asks.times or whole)
            ends = range(asks.every, whole * asks.every + 1, asks.every)
            before = [tail(window.tokens, end, asks.width) for end in ends]
            cut.append(np.array(before, np.int32).reshape(whole, asks.width))
        chunks = np.concatenate(cut) if cut else np.zeros((0, asks.width), np.int32)
        different, of = np.unique(chunks, axis=0, return_inverse=True)
        of = of.reshape(-1)
        for c in cut:
            rows.append(of[count : count + len(c)])
            count += len(c)
        found = []
        if len(given):
            none = np.zeros((len(different), len(given)), np.int64)
            return _Near([w.of for w in windows], rows, none, none.astype(np.float32))
        with self._bar("looking chunks up", len(different)) as advance:
            for begin in range(0, len(different), _BLOCK):
                block = different[begin : begin + _BLOCK]
                found.append(self.retriever.retrieve(block, k, databases=self.databases))
                advance(len(block))
        ids = [n.ids for n in found] or [np.zeros((0, k), np.int64)]
        distances = [n.distances for n in found] or [np.zeros((0, k), np.float32)]
        return _Near([w.of for w in windows], rows, np.concatenate(ids), np.concatenate(distances))

    def _batches(
        self, windows: list[Window], near: "_Near | None", given: np.ndarray
    ) -> Iterator[tuple]:
        """Windows of like lengths [rows], and the `Scores` of their tokens [rows, L]."""
        sizes = [self._padded(len(w.tokens)) for w in windows]
        params = self._params() if windows else {}
        order = sorted(range(len(windows)), key=lambda i: (sizes[i], len(windows[i].tokens)))
        while order:
            size = sizes[order[0]]
            batch = [i for i in order[: self.rows] if sizes[i] == size]
            del order[: len(batch)]
            rows = sharding.rows_for(self._mesh, len(batch), self.rows)
            tokens = np.full((rows, size), PAD, np.int32)
            for row, i in enumerate(batch):
                tokens[row, : len(windows[i].tokens)] = windows[i].tokens
            read = None
            if near:
                ids = np.full(
                    (rows, self.method.look_ups.count(size), near.ids.shape[1]), -1, np.int64
                )
                distances = np.full(ids.shape, np.inf, np.float32)
                for row, i in enumerate(batch):
                    found = slice(len(near.rows[i]))
                    ids[row, found] = near.ids[near.rows[i]]
                    distances[row, found] = near.distances[near.rows[i]]
                found = (
                    np.where((ids >= 0)[..., None], given, PAD)
                    if len(given)
                    else self.retriever.values(ids)
                )
                read = {"n": found.astype(np.int32), "d": distances}
            placed = sharding.shard_batch(self._mesh, {"x": tokens} | (read or {}))
            read = Retrieved(placed["n"], placed["d"]) if near else None
            out = self._scores(params, placed["x"], read)
            yield [windows[i] for i in batch], [np.asarray(x) for x in out]

    def _padded(self, size: int) -> int:
        """M, 2 M, 4 M .. `length`: so that there are few shapes."""
        padded = self.model.reading.chunk
        while padded < size:
            padded *= 2
        return min(padded, self.length)


class _Near(NamedTuple):
    """What different chunks retrieved, ids and distances [n, K]; of each window its pair, and the rows of
    its chunks."""

    of: list[int]
    rows: list[np.ndarray]
    ids: np.ndarray
    distances: np.ndarray

    def rows_by_pair(self, count: int) -> Iterator[tuple[int, np.ndarray]]:
        """Of each pair the rows of the chunks of all its windows."""
        found = [[] for _ in range(count)]
        for number, rows in zip(self.of, self.rows):
            found[number].append(rows)
        for number, rows in enumerate(found):
            yield number, np.concatenate(rows) if rows else np.zeros(0, int)


def split(tokenizer, byte_counts, context: str, continuation: str) -> tuple[list[int], int, int]:
    """The tokens of a text, BOS first; the place of the continuation's first; and the bytes of the context in
    that one.

    The text is encoded as a whole, as a model meets it in training. White space that ends the context
    is the continuation's, since tokens begin with it. A token that holds bytes of both is the
    continuation's, and counts whole.
    """
    ids = [BOS, *tokenizer.encode(context + continuation)]
    if not continuation:
        return ids, len(ids), 0
    size, ends = len(context.rstrip().encode()), np.cumsum(byte_counts[ids])
    first = int(np.searchsorted(ends, size, side="right"))
    return ids, first, size - int(ends[first] - byte_counts[ids[first]])


def after_prompt(tokenizer, prompt: str, continuation: str) -> tuple[list[int], int, int]:
    """What `split` gives, of a prompt in which special tokens stand for themselves, and what is said after it."""
    ids = prompt_ids(tokenizer, prompt, special=True)
    return [*ids, *tokenizer.encode(continuation)], len(ids), 0
