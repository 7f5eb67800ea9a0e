"""What is told of a sentence's sources (evaluate/sources.py), for clients that ask for it."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from retro_jax.evaluate import sources
from retro_jax.evaluate.sources_threshold import Threshold, is_chat
from retro_jax.generate.chat import Chat
from retro_jax.generate.completion import Completion
from retro_jax.generate.generator import Generator
from retro_jax.serve import api, chat
from retro_jax.serve.prompts import Prompts
from retro_jax.serve.reading import Refused

_FIELD = "retrieval.sources"


class Sources:
    """Names the documents of sentences.

    Args:
      thresholds: by method, from when on a document is a sentence's source (evaluate/sources_threshold.py).
      prompts: scores answers. opened: what writes a conversation's prompts.
    """

    def __init__(
        self, thresholds: dict[str, Threshold], prompts: Prompts, opened: Callable[[], Chat]
    ):
        self.thresholds, self._prompts, self._opened = thresholds, prompts, opened
        # One thread, so that those of other requests stay free.
        self._judge = ThreadPoolExecutor(1, thread_name_prefix="sources")

    def of_passages(self, g: Generator) -> bool:
        """Whether sources of a generator's chats are told, which are passages before the question."""
        return is_chat(g.method, g.tokenizer) and g.method.name in self.thresholds

    def check(self, asked: api.Asked, g: Generator):
        """Refuses to tell sources where it is not known from when on a document is one."""
        if not asked.sources:
            return
        if asked.method not in self.thresholds:
            how = f"`retro sources DIR --method={asked.method}`, and start the server again"
            message = f"{_FIELD}: it is not set from when on a document is a source; run {how}"
            raise Refused(message, _FIELD)
        width = asked.width(g)
        if width not in (0, k := self.thresholds[asked.method].k):
            message = (
                f"{_FIELD}: its threshold was set for k = {k}, and this request reads {width}; leave retrieval.k and "
                "retrieval.neighbours out"
            )
            raise Refused(message, _FIELD)
        if is_chat(g.method, g.tokenizer) and not isinstance(asked, chat.Asked):
            message = f"{_FIELD}: {asked.method} tells sources in chats only; leave it out"
            raise Refused(message, _FIELD)

    def warm_up(self, g: Generator):
        """Has what tells a generator's sources compiled, if it tells any; it returns when that is done."""
        if self.of_passages(g):
            self._judge.submit(self._prompts.gains, g, ["", ""], "a").result()

    async def told(self, asked: api.Asked, g: Generator, completion: Completion) -> list[dict]:
        """The sentences of a choice, see `sources.tell`; the event loop is not held up."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._judge, self._tell, asked, g, completion)

    def _tell(self, asked: api.Asked, g: Generator, c: Completion) -> list[dict]:
        if not c.text:
            return []
        if isinstance(asked, chat.Asked) and asked.passages:
            read = asked.passages
            without = sources.leaving_out(self._opened(), asked.messages, read)
            gains, ends = self._prompts.gains(g, without, c.text)
        else:
            (gains, read), ends = sources.gains_of_completion(c), c.ends
        return sources.tell(c.text, gains, ends, read, self.thresholds[asked.method].nats)
