"""Which row goes on when: requests take rows first come first served, and what their chunks retrieve is looked
up while the other rows go on."""

import collections
import threading
import time
from concurrent.futures import FIRST_COMPLETED, wait

import numpy as np

from retro_jax.generate.engine import SEGMENT, Engine
from retro_jax.generate.lookup import Lookup
from retro_jax.generate.work import Work

_FEWEST = 4  # tokens of a segment, unless all rows have fewer to go: each costs a look of the host
_SECONDS = 0.05  # that a segment takes at most, so that text flows and newcomers are let in


class Schedule:
    """A thread that has requests continued by an engine.

    Attributes:
      error: what ended the thread, if anything did. drawn: tokens so far.
    """

    def __init__(self, engine: Engine, lookup: Lookup):
        self.engine, self.lookup = engine, lookup
        self._free = list(range(engine.rows))[::-1]
        self._queue: collections.deque[Work] = collections.deque()
        self._here: list[Work] = []  # have rows
        self._change, self._closing, self.error = threading.Condition(), False, None
        self.drawn, self._pace = 0, None  # seconds of one token
        self._thread = threading.Thread(target=self._run, name="generator", daemon=True)
        self._thread.start()

    def add(self, work: Work):
        """Queues it.

        Raises:
          RuntimeError: it is closed. Whatever ended the thread.
        """
        with self._change:
            if self.error or self._closing:
                raise self.error or RuntimeError("the generator is closed")
            self._queue.append(work)
            self._change.notify()

    @property
    def waiting(self) -> int:
        """Requests without a row."""
        return len(self._queue)

    @property
    def busy(self) -> int:
        """Rows that are taken."""
        return self.engine.rows - len(self._free)

    def close(self):
        """Ends the thread; what is not complete ends with what there is."""
        with self._change:
            self._closing = True
            self._change.notify()
        self._thread.join()

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
        for work in [w for w in self._queue if w.cancelled]:
            self._queue.remove(work)
            work.finish()
        while self._queue:
            work = self._queue[0]
            width = self.lookup.width(work.request)
            shadows = width if work.request.contributions else 0
            if len(self._free) <= shadows:
                return  # no one overtakes
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
            work.near = (self.engine.no_neighbours(), None)
        else:
            near, told = future.result()
            work.near = near.tokens[place], told[place]

    def _starts(self, work: Work, future, error):
        """Reads the prompt into the row."""
        prompt = self.lookup.unread(work.request) if error else future.result()
        work.starts(prompt, self.engine.model.chunk)
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
        self.engine.set(work.row, ways, top=r.logprobs > 0)
        drawn = self.engine.admit(work.row, ids, near)
        without = []
        for j, row in enumerate(work.shadows):
            self.engine.set(row, leader=work.row)
            if len(near):
                one = near.copy()
                one[-1, j] = 0
                forced = int(drawn.token[0, work.row])
                without.append(self.engine.admit(row, ids, one, forced).logprob[0, row])
        self._take(work, drawn, 1, np.array([without]) if without else None)

    def _advance(self, fresh: list[Work], others: list[Work]):
        steps, read = np.zeros(self.engine.rows, np.int32), {}
        for work in fresh:
            (tokens, told), work.near = work.near, None
            if told is None:
                told = []
            else:
                work.reads(told)
            if work.shadows:
                self.engine.copy(work.shadows, work.row)
            read[work.row] = tokens
            for j, row in enumerate(work.shadows):
                read[row] = tokens.copy()
                read[row][j] = 0
        most = 1 if fresh else self._most([w.steps for w in others])
        going = dict.fromkeys(fresh, 1) | {w: min(w.steps, most) for w in others}
        for work, n in going.items():
            steps[[work.row, *work.shadows]] = n
        begin = time.perf_counter()
        drawn = self.engine.advance(steps, read)
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
        if any(w.waiting for w in self._here):  # rows that stand still until the next look
            fits = min(fits, _FEWEST)
        return min(SEGMENT, fits, max(steps), max(min(steps), _FEWEST))

    def _take(self, work: Work, drawn, n: int, without):
        self.drawn += n
        top = drawn.top[:n, work.row], drawn.top_logprob[:n, work.row]
        work.drawn(drawn.token[:n, work.row], drawn.logprob[:n, work.row], top, without)
