"""Prompts in, continuations out: what a caller sees of generation."""

import queue
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path

import jax
import numpy as np

from retro_jax.config import Request
from retro_jax.config.fields import require_known
from retro_jax.errors import UserError
from retro_jax.generate.completion import Completion
from retro_jax.generate.engine import Engine
from retro_jax.generate.in_progress import Work
from retro_jax.generate.lookup import Lookup
from retro_jax.generate.schedule import Schedule
from retro_jax.methods.method import LookUps, Method, method_of
from retro_jax.methods.params import load_params
from retro_jax.pipeline.prepared import Prepared
from retro_jax.store.workdir import WorkDir


class Generator:
    """A trained method, its database, and a thread that continues texts with them.

    Args:
      method, params, tokenizer: the network; of its weights see `Engine`.
      retriever: see `databases.retriever.Retriever`.
      rows: continuations that are decoded together.
      length: tokens that a prompt and its continuation can have together.
      k: neighbours that a request can have a chunk read; by default what the retriever gives.

    Use it as a context manager, or close it.
    """

    def __init__(
        self,
        method: Method,
        params: dict | Callable[[], dict],
        tokenizer,
        retriever,
        rows: int = 1,
        length: int = 1024,
        k: int | None = None,
    ):
        model = method.model
        if model.decoder.max_length:
            length = min(length, model.decoder.max_length)
        self.length, self.rows, self.method = length, rows, method
        self.k = (method.k if k is None else k) if method.reads else 0
        self.retriever, self.tokenizer = retriever, tokenizer
        self.model = model
        chunk, retrieved = model.reading.chunk, model.reading.retrieved
        asks = method.look_ups or LookUps(chunk, chunk)
        self.lookup = Lookup(retriever, tokenizer, chunk, retrieved, self.k, asks.times, asks.every)
        engine = Engine(method, params, rows, length, self.k, tokenizer.silent)
        self._schedule = Schedule(engine, self.lookup)

    @classmethod
    def open(cls, work: WorkDir | Path | str, method: str = "retro", **sizes: int) -> "Generator":
        """The generator of a working directory that is trained.

        Args:
          work: the directory. method: a name of METHODS. sizes: rows, length and k.

        Raises:
          UserError: something is missing, or was made with another config.
        """
        work = WorkDir.of(work)
        # In a list, out of which the engine takes them, so that nobody else has them.
        given, of = [load_params(work, method)], method_of(work.experiment, method)
        of.prepare(work)
        return cls(of, given.pop, Prepared(work).tokenizer, of.retriever(work), **sizes)

    def params(self) -> dict[str, jax.Array]:
        """The weights by name, as `Method.scores` takes them: a copy that is made at each call."""
        return self._schedule.engine.params()

    def warm_up(self) -> Future:
        """Has all compiled that any request can need, while none is there; otherwise that happens when it is first
        needed.

        Returns:
          What is done when all is, see `Schedule.when_idle`.
        """
        made = self._schedule.engine.compilations()
        if self.k:
            none = np.zeros((1, self.model.reading.chunk), np.int32)
            made.insert(0, lambda: self.retriever.retrieve(none, self.k))
        return self._schedule.when_idle(made)

    def generate(self, prompt: str, **fields) -> Completion:
        """Continues one prompt; fields: those of `Request`."""
        return self.generate_all([_request(prompt, fields)])[0]

    def generate_all(
        self, requests: Sequence[Request], advance: Callable[[int], None] = lambda n: None
    ) -> list[Completion]:
        """Continues prompts, as many at a time as there are rows. advance: called with the number of
        tokens drawn since the last call."""

        def listen(piece):
            if piece:
                advance(len(piece.tokens))

        for request in requests:  # before the first one begins
            self.check(request)
        work = [self.submit(r, listen) for r in requests]
        try:
            return [w.result() for w in work]
        except BaseException:
            for w in work:
                w.cancel()
            raise

    def stream(self, prompt: str, **fields) -> Iterator[str]:
        """Yields a continuation as it comes; fields: those of `Request`."""
        pieces = queue.SimpleQueue()
        work = self.submit(_request(prompt, fields), pieces.put)
        try:
            while (piece := pieces.get()) is not None:
                yield piece.text
            work.result()
        finally:
            work.cancel()

    def check(self, request: Request, named: str = ""):
        """Raises UserError for what this generator cannot do; `named` precedes the field's name."""
        request.check(named)
        width, tokens = self.lookup.width(request), self.lookup.least(request)
        if tokens <= self.length:  # otherwise it is too long whatever it says
            tokens = len(self.lookup.ids(request))
        if width > self.k:
            raise UserError(
                f"{named}{'neighbours' if request.neighbours else 'k'}: {width} neighbours, but at most "
                f"{self.k} can be read here; ask for fewer (Generator.open(k={width}) reads as many)"
            )
        if request.where and not getattr(self.retriever, "filters", True):
            raise UserError(
                f"{named}where: {self.method.name} searches an index of its own, which has no filters; leave it out"
            )
        if request.in_prompt and self.method.by_chunk:
            raise UserError(
                f"{named}in_prompt = True: {self.method.name} puts what it retrieves into the prompt "
                "by itself; leave it out"
            )
        if request.retrieval_step > self.model.reading.chunk:
            raise UserError(
                f"{named}retrieval_step = {request.retrieval_step}: must be at most the chunk's "
                f"{self.model.reading.chunk} tokens"
            )
        if request.retrieval_step and self.method.splices:
            raise UserError(
                f"{named}retrieval_step = {request.retrieval_step}: {self.method.name} puts what it retrieves into the "
                "text, which has room for that of every chunk; leave it out"
            )
        if request.contributions and 1 + width > self.rows:
            raise UserError(
                f"{named}contributions: {width} neighbours take {1 + width} rows, but there are {self.rows}"
            )
        size = request.room(tokens, self.model)
        if size > self.length:
            raise UserError(
                f"{named}tokens = {request.tokens}: with a prompt of {tokens:,} tokens that is {size:,} in "
                f"all, more than the {self.length:,} that there is room for; lower it, or shorten the prompt"
            )
        if width and not request.neighbours:
            self.retriever.check(request.databases)

    def submit(self, request: Request, listener: Callable | None = None) -> Work:
        """Queues a request and returns at once.

        listener: called by the generator's thread with each `Piece`, and with None at the end.

        Raises:
          UserError: as `check`.
        """
        self.check(request)
        work = Work(request, self.tokenizer, listener)
        self._schedule.add(work)
        return work

    @property
    def state_bytes(self) -> int:
        """What it holds of all rows."""
        return self._schedule.engine.state_bytes()

    @property
    def waiting(self) -> int:
        """Requests without a row."""
        return self._schedule.waiting

    @property
    def busy(self) -> int:
        """Rows that are taken."""
        return self._schedule.busy

    @property
    def drawn(self) -> int:
        """Tokens so far."""
        return self._schedule.drawn

    @property
    def error(self) -> Exception | None:
        """What ended its thread, if anything did."""
        return self._schedule.error

    def close(self):
        """Ends the thread; what is not complete ends with what there is."""
        self._schedule.close()
        self.lookup.close()

    def __enter__(self) -> "Generator":
        return self

    def __exit__(self, *error):
        self.close()


def _request(prompt: str, fields: dict) -> Request:
    require_known(Request, fields, of="a request")
    return Request(prompt, **fields)
