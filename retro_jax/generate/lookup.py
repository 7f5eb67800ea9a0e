"""What the chunks of a text under way read: looked up while others are decoded, and told afterwards."""

import functools
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from retro_jax.config.request import Request
from retro_jax.corpus.tokenizer import BOS, PAD
from retro_jax.databases.retriever import Neighbours

_PROMPTS = 64  # that are remembered: a request's is asked for several times
_THREADS = 2  # one embeds or searches while another waits for a disk


class Prompt(NamedTuple):
    """A prompt that has been looked up."""

    ids: list[int]  # BOS first
    padding: int  # tokens of it before them
    near: Neighbours  # of its complete chunks
    told: list[list[dict]]  # what `describe` says of them
    passage: dict | None  # what was put into it
    ends: list[int]  # before which place, padding included, the chunks are that were looked up


class Lookup:
    """Looks up chunks in threads of its own.

    Args:
      retriever: has k, retrieve(chunks [n, M], k, where, databases) -> Neighbours, and source_of(id).
      chunk: M. retrieved: R. most: K, neighbours that can be read at most. times: only the first so many
        look-ups of a text are read; 0: all. every: tokens between those of a continuation; 0: M.

    Attributes:
      looked_up, failed, seconds: chunks and lookups so far, for who watches.
    """

    def __init__(
        self,
        retriever,
        tokenizer,
        chunk: int,
        retrieved: int,
        most: int,
        times: int = 0,
        every: int = 0,
    ):
        self._retriever, self._tokenizer = retriever, tokenizer
        self._m, self._r, self._most = chunk, retrieved, most
        self.times, self.every = times, every or chunk
        self._longest = int(tokenizer.byte_counts.max())  # bytes of a token
        self._ids = functools.lru_cache(_PROMPTS)(
            lambda text, special: prompt_ids(tokenizer, text, special)
        )
        self._given = functools.lru_cache(_PROMPTS)(
            lambda texts: first_tokens(tokenizer, texts, retrieved)
        )
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="lookup")
        self.looked_up, self.failed, self.seconds = 0, 0, 0.0

    def close(self):
        """Ends the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def width(self, request: Request) -> int:
        """How many neighbours a request's chunks read."""
        return request.width(min(self._retriever.k, self._most))

    def ids(self, request: Request) -> list[int]:
        """The token ids of a request's prompt, BOS first; the last ones are remembered."""
        return self._ids(request.prompt, request.special_tokens)

    def least(self, request: Request) -> int:
        """The fewest tokens that a request's prompt can have, without looking at what it says."""
        return 1 if request.special_tokens else 1 + len(request.prompt.encode()) // self._longest

    def prompt(self, request: Request) -> Future:
        """Future of a `Prompt`."""
        return self._threads.submit(self._timed, self._of_prompt, request)

    def unread(self, request: Request) -> Prompt:
        """A prompt for which nothing is looked up."""
        near = self._find([], np.zeros((0, self._m), np.int32))
        return Prompt(list(self.ids(request)), 0, near, [], None, [])

    def windows(self, requests: Sequence[Request], windows: np.ndarray) -> list[tuple[Future, int]]:
        """For each request the future of what its window [M] retrieves, PAD before a shorter one, and its
        place in that: Neighbours, and for each what `describe` says. What is asked of the same databases is
        one look-up, so that one that fails is no other's."""
        out, alike = [None] * len(requests), {}
        for row, r in enumerate(requests):
            alike.setdefault((self.width(r), r.where, r.databases, r.neighbours), []).append(row)
        for rows in alike.values():
            asked = [requests[row] for row in rows]
            future = self._threads.submit(self._timed, self._of_windows, asked, windows[rows])
            for place, row in enumerate(rows):
                out[row] = future, place
        return out

    def _timed(self, function, *arguments):
        begin = time.perf_counter()
        try:
            return function(*arguments)
        except Exception:
            self.failed += 1
            raise
        finally:
            self.seconds += time.perf_counter() - begin

    def _of_prompt(self, request: Request):
        ids, passage = list(self.ids(request)), None
        if request.in_prompt and self.width(request):
            near = self._find([request], window(ids, len(ids), self._m)[None])
            if near.tokens[0, 0].any():
                text = near.tokens[0, 0]
                passage = self.describe(near.of(slice(0, 1)))[0]
                ids = [BOS, *text[text > 3].tolist(), *self._tokenizer.encode("\n"), *ids[1:]]
        padding = -len(ids) % self._m if request.align else 0
        whole = (padding + len(ids)) // self._m
        whole = min(whole, self.times or whole)
        text = [PAD] * padding + ids
        ends = [self._m * (u + 1) for u in range(whole)]
        if self.every < min(self._m, len(text) + 1):  # the last one may be in the middle of a chunk
            ends[-1:] = [len(text) // self.every * self.every]
        windows = np.zeros((len(ends), self._m), np.int32)
        for row, end in zip(windows, ends):
            row[:] = window(text, end, self._m)
        near, told = self._of_windows([request] * len(ends), windows)
        return Prompt(ids, padding, near, told, passage, ends)

    def _of_windows(self, requests, windows):
        near = self._find(requests, windows)
        return near, [self.describe(near.of(slice(i, i + 1))) for i in range(len(windows))]

    def _find(self, requests: Sequence[Request], chunks: np.ndarray) -> Neighbours:
        """Of each chunk [n, M] what its request asks for, in the shape that the model reads."""
        n = len(chunks)
        tokens = np.full((n, self._most, self._r), PAD, np.int32)
        ids = np.full((n, self._most), -1, np.int64)
        distances = np.full((n, self._most), np.inf, np.float32)
        asked = {}
        for row, r in enumerate(requests):
            if r.neighbours and r.k:
                tokens[row, : len(r.neighbours)] = self._given(r.neighbours)
            elif width := self.width(r):
                asked.setdefault((width, r.where, r.databases), []).append(row)
        for (width, where, databases), rows in asked.items():
            found = self._retriever.retrieve(chunks[rows], width, where, databases)
            self.looked_up += len(rows)
            tokens[rows, :width] = found.tokens
            ids[rows, :width], distances[rows, :width] = found.ids, found.distances
        return Neighbours(tokens, ids, distances)

    def describe(self, near: Neighbours) -> list[dict]:
        """Where the neighbours [1, K] of one chunk are from, in order, and what they say."""
        out = []
        for tokens, id, distance in zip(near.tokens[0], near.ids[0], near.distances[0]):
            if not tokens.any():
                continue
            source = self._retriever.source_of(int(id)) if id >= 0 else {"given": len(out)}
            if id >= 0:
                source["distance"] = round(float(distance), 4)
            out.append(source | {"text": self._tokenizer.decode(tokens.tolist())})
        return out


def prompt_ids(tokenizer, prompt: str, special: bool = False) -> list[int]:
    """The token ids of a prompt, BOS first. special: whether special tokens in it stand for themselves."""
    ids = tokenizer.encode_special(prompt) if special else tokenizer.encode(prompt)
    return ids if ids[:1] == [BOS] else [BOS, *ids]


def ids_of(tokenizer, request: Request) -> list[int]:
    """The token ids of a request's prompt."""
    return prompt_ids(tokenizer, request.prompt, request.special_tokens)


def first_tokens(tokenizer, texts: Sequence[str], count: int) -> np.ndarray:
    """The first tokens of each text [n, count]; no more of it is tokenized than can be in them, and a little."""
    out, longest = np.full((len(texts), count), PAD, np.int32), int(tokenizer.byte_counts.max())
    for row, text in zip(out, texts):
        given = tokenizer.encode(text[: 2 * count * longest])[:count]
        row[: len(given)] = given
    return out


def window(ids: Sequence[int], end: int, size: int) -> np.ndarray:
    """The `size` token ids before place `end`, PAD where there are none."""
    out = np.full(size, PAD, np.int32)
    part = ids[max(0, end - size) : end]
    out[size - len(part) :] = part
    return out
