"""What is told of continuations: OpenAI's text_completion objects, whole or piece by piece."""

import json
import secrets
import time
from collections.abc import Sequence
from itertools import chain

from retro_jax.evaluate.score import Score
from retro_jax.generate.completion import Completion
from retro_jax.generate.detokenize import Text
from retro_jax.generate.in_progress import Piece
from retro_jax.serve.api import Asked

DONE = b"data: [DONE]\n\n"


def dumps(value) -> bytes:
    """JSON in ASCII, which has an escape for every text."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).encode()


def event(value) -> bytes:
    """A server-sent event."""
    return b"data: " + dumps(value) + b"\n\n"


class Answer:
    """The answer to one body; its choices are numbered as its requests.

    Args:
      model: its name.
    """

    def __init__(self, asked: Asked, model: str, tokenizer):
        self._asked, self._tokenizer = asked, tokenizer
        self._frame = {
            "id": f"cmpl-{secrets.token_hex(12)}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": model,
        }
        # Where the tokens of each choice begin in its text.
        self._texts = [Text(tokenizer) for _ in asked.requests]
        self._scores: list[Score] = []
        self._sources: dict[int, list[dict]] = {}

    @property
    def wants_scores(self) -> bool:
        """Whether the prompts' own tokens are to be told with their log p."""
        return self._asked.echo and self._asked.logprobs is not None

    def scored(self, scores: list[Score]):
        """What the prompts' tokens score, one for each prompt."""
        self._scores = scores

    def sourced(self, i: int, sentences: list[dict]):
        """Which sources the sentences of choice i have; to be told before its end is."""
        before = len(self._echoed(i))
        moved = [s | {n: s[n] + before for n in ("begin", "end")} for s in sentences]
        self._sources[i] = moved

    def whole(self, completions: Sequence[Completion]) -> dict:
        """All choices at once."""
        choices = []
        for i, c in enumerate(completions):
            text, piece = self._echoed(i) + c.text, Piece(c.text, c.tokens, c.logprobs, c.top)
            choices.append(self._choice(i, text, self._logprobs(i, self._prompt(i), piece), c))
        return self._frame | {"choices": choices, "usage": self._usage(completions)}

    def prompt(self, i: int) -> bytes:
        """The event with which choice i begins; none unless the prompt is to be echoed."""
        if not self._asked.echo:
            return b""
        logprobs = self._logprobs(i, self._prompt(i)) if self._scores else None
        return self._event([self._choice(i, self._echoed(i), logprobs)])

    def piece(self, i: int, piece: Piece) -> bytes:
        """The event of what is new of choice i."""
        return self._event([self._choice(i, piece.text, self._logprobs(i, piece))])

    def last(self, i: int, completion: Completion) -> bytes:
        """The event with which choice i ends."""
        return self._event([self._choice(i, "", None, completion)])

    def usage(self, completions: Sequence[Completion]) -> bytes:
        """The event after all choices, if it was asked for."""
        if not self._asked.include_usage:
            return b""
        return event(self._frame | {"choices": [], "usage": self._usage(completions)})

    def _event(self, choices: list) -> bytes:
        usage = {"usage": None} if self._asked.include_usage else {}
        return event(self._frame | {"choices": choices} | usage)

    def _echoed(self, i: int) -> str:
        return self._asked.requests[i].prompt if self._asked.echo else ""

    def _choice(
        self, i: int, text: str, logprobs=None, completion: Completion | None = None
    ) -> dict:
        c = completion
        choice = {"index": i, "text": text, "logprobs": logprobs, "finish_reason": c and c.finish}
        if c:
            choice["retrieval"] = {
                # Why it failed may name a path; the server's log has it.
                "status": c.retrieval.partition(":")[0], "first": c.first, "chunks": c.chunks, "passage": c.passage,
            } | ({"sentences": self._sources[i]} if i in self._sources else {})  # fmt: skip
        return choice

    def _prompt(self, i: int) -> Piece:
        """The tokens of a choice's prompt, if they were scored; of the most probable ones there is one."""
        if not self._scores:
            return Piece("", [], [], [])
        s, top = self._scores[i // self._asked.n], []
        said = [[round(float(p), 6) for p in x] for x in (s.logprobs, s.top)]
        if self._asked.logprobs:
            tokens = zip(s.best.tolist(), said[1], s.wanted.tolist(), said[0])
            top = [{best: most, own: p} for best, most, own, p in tokens]
        return Piece("", s.wanted.tolist(), said[0], top)

    def _logprobs(self, i: int, *pieces: Piece) -> dict | None:
        """Of the tokens of pieces, whose first one goes on from the piece before it."""
        if self._asked.logprobs is None:
            return None
        text, begins = self._texts[i], []
        tokens, logprobs, tops = (list(chain(*x)) for x in list(zip(*pieces))[1:])
        for token in tokens:
            begins.append(len(text.text))
            text.add(token)
        return {
            "tokens": [self._token(t) for t in tokens],
            "token_logprobs": logprobs,
            "top_logprobs": [{self._token(t): p for t, p in top.items()} for top in tops] or None,
            "text_offset": begins,
        }

    def _token(self, token: int) -> str:
        """A token as text; where its bytes are none alone, they are spelt out."""
        data = self._tokenizer.decode_bytes([token])
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{b:02x}" for b in data)

    def _usage(self, completions: Sequence[Completion]) -> dict:
        """A prompt counts once, whatever `n`; BOS and what RETRO++ put before it count."""
        prompt = sum(c.first for c in completions[:: self._asked.n])
        drawn = sum(len(c.tokens) for c in completions)
        return {"prompt_tokens": prompt, "completion_tokens": drawn, "total_tokens": prompt + drawn}
