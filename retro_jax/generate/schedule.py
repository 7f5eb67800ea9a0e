"""Which row goes on when: requests take rows first come first served, and what their chunks retrieve is looked
up while the other rows go on."""

import collections
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import CancelledError, Future

import numpy as np

from retro_jax.generate.engine import Engine
from retro_jax.generate.in_progress import Work
from retro_jax.generate.lookup import Lookup
from retro_jax.generate.programs import SEGMENT
from retro_jax.methods.method import Retrieved

_FEWEST = 2  # tokens of a segment, unless all rows have fewer to go: each costs a look of the host
_SECONDS = 0.05  # that a segment takes at most, so that text flows and newcomers are let in
_LOOK = 0.2  # seconds after which who is cancelled is noticed, where nothing else happens
_DEADLINE = 30  # seconds that a look-up may take; then the text goes on without it


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
        self._spare: list[tuple[collections.deque[Callable[[], None]], Future]] = []
        self._change, self._closing, self.error = threading.Condition(), False, None
        self._stirred = False  # something has come, from a caller or a look-up
        self.drawn, self._pace = 0, None  # seconds of one token
        self._thread = threading.Thread(target=self._run, name="generator", daemon=True)
        self._thread.start()

    def add(self, work: Work):
        """Queues it.

        Raises:
          RuntimeError: it is closed. Whatever ended the thread.
        """
        with self._change:
            self._refuse_if_ended()
            self._queue.append(work)
            self._stir()

    def _refuse_if_ended(self):
        if self.error or self._closing:
            raise self.error or RuntimeError("the generator is closed")

    def when_idle(self, calls: Iterable[Callable[[], None]]) -> Future:
        """Has the thread make calls, one after another, whenever no row is taken and nobody waits for one.

        Returns:
          What is done when the last one is. It raises what one of them raised, after which the others are not made, and
          CancelledError if the schedule is closed before.

        Raises:
          RuntimeError: it is closed. Whatever ended the thread.
        """
        done = Future()
        done.set_running_or_notify_cancel()  # only the thread ends it
        with self._change:
            self._refuse_if_ended()
            self._spare.append((collections.deque(calls), done))
            self._stir()
        return done

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
            self._stir()
        self._thread.join()

    def _stir(self):
        with self._change:
            self._stirred = True
            self._change.notify()

    def _run(self):
        try:
            while True:
                with self._change:
                    self._change.wait_for(
                        lambda: self._queue or self._here or self._spare or self._closing
                    )
                    if self._closing:
                        break
                if self._queue or self._here:
                    self._turn()
                else:
                    self._make_a_spare_call()
        except Exception as error:
            with self._change:
                self.error = error
        with self._change:  # whoever comes from now on is refused
            left = [*self._here, *self._queue]
        for work in left:
            work.cancel()
            work.finish(self.error)
        for _, done in self._spare:
            done.set_exception(self.error or CancelledError())

    def _make_a_spare_call(self):
        calls, done = self._spare[0]
        try:
            if calls:
                return calls.popleft()()
            done.set_result(None)
        except Exception as error:  # requests are answered without it
            done.set_exception(error)
        self._spare.pop(0)

    def _turn(self):
        """Frees the rows of who is done, lets requests in, looks up what is needed, has what was found be read, and
        has the rows go on that can."""
        for work in self._here:
            if work.cancelled:
                work.finish()
        for work in self._here:
            if work.done:
                for row in (work.row, *work.shadows):
                    self.engine.free(row)
                    self._free.append(row)
        self._here = [w for w in self._here if not w.done]
        self._let_in()
        for work in self._here:
            if work.waiting and (work.waiting[0].done() or work.waited > _DEADLINE):
                self._arrives(work)
        running = [w for w in self._here if w.ids and not w.done]
        self._look_up([w for w in running if w.steps == 0 and not w.near and not w.waiting])
        found = [w for w in running if w.near]
        if found:
            self._read(found)
        going = [w for w in running if not w.waiting and w.steps]
        if going:
            self._advance(going, timed=not found)
        elif not any(w.done for w in self._here):  # the rows of those are given out first
            self.engine.show([w.row for w in self._here if w.waiting and w.ids])
            with self._change:
                self._change.wait_for(lambda: self._stirred, _LOOK)
                self._stirred = False

    def _let_in(self):
        with self._change:  # callers append to it
            gone = [w for w in self._queue if w.cancelled]
            for work in gone:
                self._queue.remove(work)
        for work in gone:
            work.finish()
        while self._queue:
            work = self._queue[0]
            width = self.lookup.width(work.request)
            shadows = width if work.request.contributions else 0
            if len(self._free) <= shadows:
                return  # no one overtakes
            work.admitted()
            work.row, *work.shadows = (self._free.pop() for _ in range(1 + shadows))
            self._awaits(work, self.lookup.prompt(work.request), None)
            self._here.append(work)
            with self._change:
                self._queue.popleft()

    def _look_up(self, works: list[Work]):
        for work in works:
            if work.blind:
                work.near = (self.engine.no_neighbours(), None)
        works = [w for w in works if not w.blind]
        if works:
            windows = np.stack([w.window() for w in works])
            found = self.lookup.windows([w.request for w in works], windows)
            for work, (future, place) in zip(works, found):
                self._awaits(work, future, place)

    def _awaits(self, work: Work, future, place: int | None):
        work.awaits(future, place)
        future.add_done_callback(lambda future: self._stir())

    def _arrives(self, work: Work):
        """What a row waited for is there."""
        (future, place), work.waiting = work.waiting, None
        late = TimeoutError(f"nothing was found within {_DEADLINE} seconds")
        error = future.exception() if future.done() else late
        if place is None:
            self._starts(work, future, error)
        elif error:
            # From now on it reads nothing: all its neighbours are missing.
            work.fails(f"failed: {error}", self.engine.refills)
            work.near = (self.engine.no_neighbours(), None)
        else:
            near, told = future.result()
            found = Retrieved(near.tokens[place], near.distances[place])
            work.near = found, told[place]

    def _starts(self, work: Work, future, error):
        """Reads the prompt into the row."""
        prompt = self.lookup.unread(work.request) if error else future.result()
        work.starts(prompt, self.engine.model.reading.chunk, self.lookup.times, self.lookup.every)
        if error:
            work.fails(f"failed: {error}", self.engine.refills)
        elif not self.lookup.width(work.request):
            work.fails("off", self.engine.refills)
        if work.cancelled or not work.request.tokens:
            return work.finish()
        r, near = work.request, Retrieved(prompt.near.tokens, prompt.near.distances)
        ways = {
            "temperature": r.temperature, "top_k": r.top_k, "top_p": r.top_p, "min_p": r.min_p,
            "penalty": r.repetition_penalty, "seed": r.seed,
        }  # fmt: skip
        ids = np.array([0] * prompt.padding + prompt.ids, np.int32)
        self.engine.set(work.row, ways, top=r.logprobs > 0)
        alone = not self.lookup.width(r)
        drawn = self.engine.admit(work.row, ids, near, alone=alone)
        without = []
        for j, row in enumerate(work.shadows):
            self.engine.set(row, leader=work.row)
            if len(near.tokens):
                tokens = near.tokens.copy()
                tokens[-1, j] = 0
                one = near._replace(tokens=tokens)
                forced = int(drawn.token[0, work.row])
                without.append(self.engine.admit(row, ids, one, forced).logprob[0, row])
        self._take(work, drawn, 1, np.array([without]) if without else None)

    def _read(self, works: list[Work]):
        """What was found for them is read from their next token on."""
        read = {}
        for work in works:
            (found, told), work.near = work.near, None
            if told is None:
                work.goes_on()
            else:
                work.reads(told)
            if work.shadows:
                self.engine.copy(work.shadows, work.row)
            read[work.row] = found
            for j, row in enumerate(work.shadows):
                tokens = found.tokens.copy()
                tokens[j] = 0
                read[row] = found._replace(tokens=tokens)
        self.engine.read(read)

    def _advance(self, works: list[Work], timed: bool):
        steps = np.zeros(self.engine.rows, np.int32)
        most = self._most([w.steps for w in works])
        going = {w: min(w.steps, most) for w in works}
        for work, n in going.items():
            steps[[work.row, *work.shadows]] = n
        begin = time.perf_counter()
        drawn = self.engine.advance(steps)
        if timed:  # or it had waited for what is read to be encoded
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
