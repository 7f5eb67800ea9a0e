"""The continuations of one HTTP request, from the generator's thread to the event loop."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from retro_jax.config.request import Request
from retro_jax.generate.completion import Completion
from retro_jax.generate.generator import Generator
from retro_jax.generate.in_progress import Piece


class Running:
    """Made, iterated and ended on the event loop.

    What a client has not taken yet is kept as one piece a continuation, so at most what the request may
    generate, however long it takes.
    """

    def __init__(self):
        self.works = []
        self._loop, self._change = asyncio.get_running_loop(), asyncio.Event()
        self._pieces: dict[int, Piece] = {}
        self._ended: list[int] = []
        self._left, self.cancelled = 0, False

    def submit(self, generator: Generator, requests: list[Request]):
        """Queues requests that have been checked; called by any thread.

        Raises:
          Whatever stopped the generator.
        """
        self._left = len(requests)
        for i, request in enumerate(requests):
            if self.cancelled:
                return
            self.works.append(generator.submit(request, lambda piece, i=i: self._hear(i, piece)))
        if self.cancelled:
            self.cancel()

    def cancel(self):
        """Has all of them end with what there is; who iterates comes to the end at once."""
        self.cancelled = True
        for work in self.works:
            work.cancel()
        self._change.set()

    async def __aiter__(self) -> AsyncIterator[tuple[int, Piece | None]]:
        """Yields the number of a continuation and what is new of it, None when it has ended."""
        while self._left and not self.cancelled:
            await self._change.wait()
            self._change.clear()
            pieces, self._pieces = self._pieces, {}
            ended, self._ended = self._ended, []
            for item in pieces.items():
                yield item
            for i in ended:
                self._left -= 1
                yield i, None

    def results(self) -> list[Completion]:
        """What became of them, when all have ended.

        Raises:
          Whatever stopped the generator.
        """
        return [work.result(0) for work in self.works]

    def _hear(self, i: int, piece: Piece | None):
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
            self._loop.call_soon_threadsafe(self._take, i, piece)

    def _take(self, i: int, piece: Piece | None):
        if piece is None:
            self._ended.append(i)
        elif before := self._pieces.get(i):
            self._pieces[i] = Piece(*(old + new for old, new in zip(before, piece)))
        else:
            self._pieces[i] = piece
        self._change.set()
