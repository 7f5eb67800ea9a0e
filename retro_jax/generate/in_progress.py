"""A request under way: where it is, what it has read, what it says so far."""

import math
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from retro_jax.config.request import Request
from retro_jax.generate.completion import Completion
from retro_jax.generate.detokenize import Text
from retro_jax.generate.lookup import Prompt, window


class Piece(NamedTuple):
    """What is new of a continuation."""

    text: str  # what can be told of it; tokens may come before their text
    tokens: list[int]
    logprobs: list[float]
    top: list[dict[int, float]]


class Work:
    """A request, from its submission until it is done. Made and asked by any thread; otherwise the
    generator's own.

    listener: called with each Piece, and with None at the end, by the generator's thread.

    Attributes:
      submitted: when it was, seconds of the performance counter.
      row, shadows: the row that it has, and those that read all neighbours but one.
      blind: whether nothing is looked up any more.
      near: the neighbours with which it goes on, and what is told of them, when they are known; waiting: the future of
      them, and its place in it.
    """

    def __init__(self, request: Request, tokenizer, listener: Callable | None):
        self.request, self._tokenizer, self._listener = request, tokenizer, listener
        self.completion = Completion(request.prompt)
        self.cancelled, self.error = False, None
        self._done, self.submitted = threading.Event(), time.perf_counter()
        self._text = Text(tokenizer, request.stop)
        self._ends = {*request.stop_tokens, *(() if request.ignore_eos else tokenizer.ends)}
        self.row, self.shadows, self.near, self.waiting = None, [], None, None
        self.blind = False
        self._asked = 0.0
        self.ids: list[int] = []
        self._padding = self._read = self._next = self._told = 0

    def result(self, timeout: float | None = None) -> Completion:
        """Waits until it is done.

        Raises:
          TimeoutError: it is not done in time. Whatever stopped the generator.
        """
        if not self._done.wait(timeout):
            raise TimeoutError("the continuation is not complete yet")
        if self.error:
            raise self.error
        return self.completion

    @property
    def done(self) -> bool:
        """Whether there is nothing more to come."""
        return self._done.is_set()

    def cancel(self):
        """Has it end with what there is."""
        self.cancelled = True

    @property
    def waited(self) -> float:
        """Seconds since it waits."""
        return time.perf_counter() - self._asked

    # From here on the generator's thread.

    def awaits(self, future, place: int | None):
        """It goes on when a look-up is there; place: its own in it, None for a prompt's."""
        self.waiting, self._asked = (future, place), time.perf_counter()

    def starts(self, prompt: Prompt, chunk: int, times: int, every: int):
        """The prompt has been looked up; times, every: see `LookUps`."""
        self._until = times * chunk or math.inf
        self.ids, self._padding, self._chunk = list(prompt.ids), prompt.padding, chunk
        self._prompt = self.completion.first = len(prompt.ids)
        self.completion.passage = prompt.passage
        self._read = prompt.padding + len(prompt.ids)
        for end, told in zip(prompt.ends, prompt.told):
            self._note(end - prompt.padding, told)
        # A method that reads only the first look-ups has them where chunks end.
        step = self._step = (not times and self.request.retrieval_step) or every
        last = self._read // chunk * chunk
        # The first place after the prompt that is a whole number of steps from its last chunk's end.
        self._next = last + step * (1 + (self._read - last) // step)

    def drawn(self, tokens, logprobs, top, without: np.ndarray | None = None):
        """Tokens that were drawn, their log p [n], the most probable ones as (ids, log p), both [n, TOP],
        and the log p without each neighbour [n, K], where a row has read any."""
        c, want = self.completion, self.request.logprobs
        if not c.tokens:
            c.seconds["first"] = self._since()
        for i, token in enumerate(tokens.tolist()):
            if token in self._ends:
                c.finish = "stop"
                break
            self.ids.append(token)
            c.tokens.append(token)
            c.logprobs.append(round(float(logprobs[i]), 6))
            if want:
                c.top.append(
                    {int(t): round(float(p), 6) for t, p in zip(*(x[i, :want] for x in top))}
                )
            if without is not None and c.chunks and not self.blind:
                for neighbour, other in zip(c.chunks[-1]["neighbours"], without[i]):
                    gain = round(float(logprobs[i] - other), 6)
                    neighbour.setdefault("contributions", []).append(gain)
            self._text.add(token)
            if self._text.ended:
                c.finish = "stop"
                break
        else:
            if len(c.tokens) < self.request.tokens and not self.cancelled:
                return self._tell()
        self.finish()

    def went(self, steps: int):
        """So many tokens were read."""
        self._read += steps

    @property
    def steps(self) -> int:
        """How many tokens can be read before something is looked up or all are drawn; 0: neighbours are
        needed first."""
        left = self.request.tokens - len(self.completion.tokens)
        over = self._next is None or self._next > self._until
        return left if over else min(left, self._next - 1 - self._read)

    def window(self) -> np.ndarray:
        """The tokens [M] that retrieve."""
        return window(self.ids, self._next - self._padding, self._chunk)

    def reads(self, told: list[dict]):
        """Neighbours have been looked up, and are read with the next token."""
        self._note(self._next - self._padding, told)
        self._next += self._step

    def goes_on(self):
        """It reads on without anything new."""
        if self._next is not None:
            self._next += self._step

    def fails(self, why: str, refills: bool):
        """Nothing is looked up any more; refills: see `Method`."""
        self.completion.retrieval, self.blind = why, True
        if not refills:
            self._next = None

    def finish(self, error: Exception | None = None):
        """It is done; it has no row any more."""
        if self.done:
            return
        c = self.completion
        if self.cancelled and c.finish == "length" and len(c.tokens) < self.request.tokens:
            c.finish = "cancelled"
        self._text.close()
        kept = self._text.tokens
        cut = len(c.tokens) - kept
        for values in (c.tokens, c.logprobs, c.top):
            del values[kept:]
        for chunk in c.chunks:
            for n in chunk["neighbours"]:
                if "contributions" in n:
                    begin = max(chunk["begin"], c.first) - c.first
                    del n["contributions"][max(0, kept - begin) :]
                    n["contribution"] = round(sum(n["contributions"]), 6)
        # What would have been read with a token that is not there any more.
        c.chunks = [x for x in c.chunks if x["begin"] < c.first + kept or not cut]
        c.ends = self._text.ends[:kept]
        c.text, c.seconds["total"], self.error = self._text.text, self._since(), error or self.error
        self._done.set()
        self._tell()
        self._hear(None)

    def admitted(self):
        """It has a row."""
        self.completion.seconds["waiting"] = self._since()

    def _since(self) -> float:
        return round(time.perf_counter() - self.submitted, 4)

    def _note(self, place: int, told: list[dict]):
        text = self._tokenizer.decode(self.ids[max(0, place - self._chunk) : place])
        self.completion.chunks.append({"text": text, "begin": place, "neighbours": told})

    def _tell(self):
        if not self._listener:
            return
        c, new = self.completion, self._text.tell()
        tokens = slice(self._told, len(c.tokens) if self.done else self._text.told_tokens)
        self._told = tokens.stop
        if new or tokens.start < tokens.stop:
            self._hear(Piece(new, c.tokens[tokens], c.logprobs[tokens], c.top[tokens]))

    def _hear(self, piece: Piece | None):
        """Tells the listener; one that fails ends its own request, and no other."""
        try:
            if self._listener:
                self._listener(piece)
        except Exception as error:
            self._listener, self.error = None, error
            self.cancel()
