"""Requests come in, continuations come out: the rows of an engine shared among them, first come first
served; what a chunk retrieves is looked up while the other rows go on."""

import collections
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from pathlib import Path

import jax
import numpy as np

from retro_jax import steps
from retro_jax.config import Experiment, ModelConfig, from_config_dict
from retro_jax.errors import UserError
from retro_jax.generate.engine import SEGMENT, Engine
from retro_jax.generate.lookup import Lookup, prompt_ids
from retro_jax.generate.request import Completion, Request
from retro_jax.generate.work import Work
from retro_jax.prepare import check_prepared
from retro_jax.train import sharding
from retro_jax.train.loop import restore_trained

_FEWEST = 4  # tokens of a segment, unless all rows have fewer to go: each costs a look of the host
_SECONDS = 0.05  # that a segment takes at most, so that text flows and newcomers are let in


class Generator:
    """A trained RETRO, its database, and a thread that continues texts with them.

    Args:
      model, params, tokenizer: the network.
      retriever: see `retrieval.retriever.Retriever`.
      rows: continuations that are decoded together.
      length: tokens that a prompt and its continuation can have together.
      k: neighbours that a request can have a chunk read; by default what the retriever gives.

    Use it as a context manager, or close it.
    """

    def __init__(
        self,
        model: ModelConfig,
        params: dict,
        tokenizer,
        retriever,
        rows: int = 1,
        length: int = 1024,
        k: int | None = None,
    ):
        if model.positions == "learned":
            length = min(length, model.max_length)
        self.length, self.rows, self.k = length, rows, retriever.k if k is None else k
        self.retriever, self.tokenizer = retriever, tokenizer
        self.model, self._chunk, self._retrieved = model, model.chunk, model.retrieved
        self.lookup = Lookup(retriever, tokenizer, model.chunk, model.retrieved, self.k)
        self._engine = Engine(model, params, rows, length, self.k)
        self._free = list(range(rows))[::-1]
        self._queue: collections.deque[Work] = collections.deque()
        self._here: list[Work] = []  # have rows
        self._change, self._closing, self.error = threading.Condition(), False, None
        self.drawn, self._pace = 0, None  # tokens so far; seconds of one
        self._thread = threading.Thread(target=self._run, name="generator", daemon=True)
        self._thread.start()

    @classmethod
    def open(cls, config, workdir: Path | str, **sizes) -> "Generator":
        """The generator of a working directory that is trained.

        config: an Experiment, or what `get_config` of its file returns. sizes: rows, length and k.

        Raises:
          UserError: something is missing, or was made with another config.
        """
        e = config if isinstance(config, Experiment) else from_config_dict(config)
        root = Path(workdir)
        check_prepared(e, root)
        tokenizer = steps.load_tokenizer(root / "prepare")
        retriever, mesh = steps.load_retriever(e, root / "prepare"), sharding.one_device()
        with jax.set_mesh(mesh):
            params = restore_trained(e, root, True, mesh)
        return cls(e.model, params, tokenizer, retriever, **sizes)

    def generate(self, prompt: str, **fields) -> Completion:
        """Continues one prompt; fields: those of `Request`."""
        return self.generate_all([Request(prompt, **fields)])[0]

    def generate_all(
        self, requests: Sequence[Request], advance: Callable[[int], None] = lambda n: None
    ) -> list[Completion]:
        """Continues prompts, as many at a time as there are rows. advance: called with the number of
        tokens drawn since the last call."""
        listen = lambda piece: piece and advance(len(piece.tokens))  # noqa: E731
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
        work = self.submit(Request(prompt, **fields), pieces.put)
        try:
            while (piece := pieces.get()) is not None:
                yield piece.text
            work.result()
        finally:
            work.cancel()

    def check(self, request: Request, named: str = ""):
        """Raises UserError for what this generator cannot do; `named` precedes the field's name."""
        request.check(named)
        width, ids = self.lookup.width(request), prompt_ids(self.tokenizer, request.prompt)
        if width > self.k:
            raise UserError(
                f"{named}{'neighbours' if request.neighbours else 'k'}: {width} neighbours, but at most "
                f"{self.k} can be read here"
            )
        if request.retrieval_step > self._chunk:
            raise UserError(
                f"{named}retrieval_step = {request.retrieval_step}: must be at most the chunk's "
                f"{self._chunk} tokens"
            )
        if request.contributions and 1 + width > self.rows:
            raise UserError(
                f"{named}contributions: {width} neighbours take {1 + width} rows, but there are {self.rows}"
            )
        size = request.room(len(ids), self.model)
        if size > self.length:
            raise UserError(
                f"{named}tokens = {request.tokens}: with a prompt of {len(ids):,} tokens that is {size:,} in "
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
        with self._change:
            if self.error or self._closing:
                raise self.error or RuntimeError("the generator is closed")
            self._queue.append(work)
            self._change.notify()
        return work

    @property
    def waiting(self) -> int:
        """Requests without a row."""
        return len(self._queue)

    @property
    def busy(self) -> int:
        """Rows that are taken."""
        return self.rows - len(self._free)

    def close(self):
        """Ends the thread; what is not complete ends with what there is."""
        with self._change:
            self._closing = True
            self._change.notify()
        self._thread.join()
        self.lookup.close()

    def __enter__(self) -> "Generator":
        return self

    def __exit__(self, *error):
        self.close()

    # The generator's thread.

    def _run(self):
        try:
            while True:
                with self._change:
                    self._change.wait_for(lambda: self._queue or self._here or self._closing)
                    if self._closing:
                        break
                self._turn()
        except Exception as error:
            self.error = error
        for work in [*self._here, *self._queue]:
            work.finish(self.error)

    def _turn(self):
        """Lets requests in, looks up what is needed, and has the rows go on that can."""
        self._let_in()
        for work in self._here:
            if work.cancelled and work.ids:
                work.finish()
        for work in self._here:
            if work.done:
                self._free += [work.row, *work.shadows]
        self._here = [w for w in self._here if not w.done]
        running = [w for w in self._here if w.ids]
        self._look_up([w for w in running if w.steps == 0 and not w.near and not w.waiting])
        for work in self._here:
            if work.waiting and work.waiting[0].done():
                self._arrives(work)
        running = [w for w in self._here if w.ids and not w.done]
        fresh = [w for w in running if w.near]
        others = [w for w in running if not w.waiting and not w.near and w.steps]
        if fresh or others:
            self._advance(fresh, others)
        elif waiting := [w.waiting[0] for w in self._here if w.waiting]:
            wait(waiting, return_when=FIRST_COMPLETED)

    def _let_in(self):
        while self._queue:
            work = self._queue[0]
            width = self.lookup.width(work.request)
            shadows = width if work.request.contributions else 0
            if work.cancelled:
                work.finish()
            elif len(self._free) <= shadows:
                return  # no one overtakes
            else:
                work.admitted()
                work.row, *work.shadows = (self._free.pop() for _ in range(1 + shadows))
                work.waiting = self.lookup.prompt(work.request), None
                self._here.append(work)
            self._queue.popleft()

    def _look_up(self, works: list[Work]):
        if works:
            windows = np.stack([w.window() for w in works])
            future = self.lookup.windows([w.request for w in works], windows)
            for place, work in enumerate(works):
                work.waiting = future, place

    def _arrives(self, work: Work):
        """What a row waited for is there."""
        (future, place), work.waiting = work.waiting, None
        error = future.exception()
        if place is None:
            self._starts(work, future, error)
        elif error:
            # From now on it reads nothing: all its neighbours are missing.
            work.fails(f"failed: {error}")
            work.near = (np.zeros((self.k, self._retrieved), np.int32), None)
        else:
            near, told = future.result()
            work.near = near.tokens[place], told[place]

    def _starts(self, work: Work, future, error):
        """Reads the prompt into the row."""
        prompt = self.lookup.unread(work.request) if error else future.result()
        work.starts(prompt, self._chunk)
        if error:
            work.fails(f"failed: {error}")
        elif not self.lookup.width(work.request):
            work.fails("off")
        if work.cancelled or not work.request.tokens:
            return work.finish()
        r, near = work.request, prompt.near.tokens
        ways = {
            "temperature": r.temperature, "top_k": r.top_k, "top_p": r.top_p, "min_p": r.min_p,
            "penalty": r.repetition_penalty, "seed": r.seed,
        }  # fmt: skip
        ids = np.array([0] * prompt.padding + prompt.ids, np.int32)
        self._engine.set(work.row, ways, top=r.logprobs > 0)
        drawn = self._engine.admit(work.row, ids, near)
        without = []
        for j, row in enumerate(work.shadows):
            self._engine.set(row, leader=work.row)
            if len(near):
                one = near.copy()
                one[-1, j] = 0
                forced = int(drawn.token[0, work.row])
                without.append(self._engine.admit(row, ids, one, forced).logprob[0, row])
        self._take(work, drawn, 1, np.array([without]) if without else None)

    def _advance(self, fresh: list[Work], others: list[Work]):
        steps, read = np.zeros(self.rows, np.int32), {}
        for work in fresh:
            (tokens, told), work.near = work.near, None
            if told is None:
                told = []
            else:
                work.reads(told)
            if work.shadows:
                self._engine.copy(work.shadows, work.row)
            read[work.row] = tokens
            for j, row in enumerate(work.shadows):
                read[row] = tokens.copy()
                read[row][j] = 0
        most = 1 if fresh else self._most([w.steps for w in others])
        going = dict.fromkeys(fresh, 1) | {w: min(w.steps, most) for w in others}
        for work, n in going.items():
            steps[[work.row, *work.shadows]] = n
        begin = time.perf_counter()
        drawn = self._engine.advance(steps, read)
        if not fresh:
            took = (time.perf_counter() - begin) / most
            self._pace = took if self._pace is None else 0.8 * self._pace + 0.2 * took
        for work, n in going.items():
            work.went(n)
            without = drawn.logprob[:n, work.shadows] if work.shadows else None
            self._take(work, drawn, n, without)

    def _most(self, steps: list[int]) -> int:
        """How many tokens the next segment has."""
        fits = SEGMENT if self._pace is None else max(1, int(_SECONDS / self._pace))
        return min(SEGMENT, fits, max(steps), max(min(steps), _FEWEST))

    def _take(self, work: Work, drawn, n: int, without):
        self.drawn += n
        top = drawn.top[:n, work.row], drawn.top_logprob[:n, work.row]
        work.drawn(drawn.token[:n, work.row], drawn.logprob[:n, work.row], top, without)
