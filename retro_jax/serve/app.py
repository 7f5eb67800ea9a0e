"""The routes of the server: who may ask, what is read of a request, how it is answered."""

import asyncio
import contextlib
import functools
import logging
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from retro_jax import __version__
from retro_jax.errors import UserError
from retro_jax.evaluate.sources_threshold import Threshold
from retro_jax.generate.chat import Chat
from retro_jax.generate.completion import Completion
from retro_jax.generate.generator import Generator
from retro_jax.serve import api, chat, documents, openapi, texts
from retro_jax.serve.answer import DONE, Answer, event
from retro_jax.serve.arriving import body_of, cancel_when_gone
from retro_jax.serve.limits import Limits
from retro_jax.serve.metrics import CONTENT_TYPE, Metrics
from retro_jax.serve.page import PAGE, headers
from retro_jax.serve.prompts import Prompts
from retro_jax.serve.reading import Refused, json_of
from retro_jax.serve.responses import Guard, Named, Options, Stream, broken, explain, json_response
from retro_jax.serve.running import Running
from retro_jax.serve.sources import Sources
from retro_jax.serve.warming import Warming
from retro_jax.terminal import visible

_RETRY = 2  # seconds
_CORS = {
    "allow_methods": ["GET", "POST", "DELETE"], "allow_headers": ["authorization", "content-type"],
}  # fmt: skip


class Service:
    """What the routes share.

    Args:
      generators: of each method that a request can name; the first one answers where it names none.
      name: of the model. key: that /v1 asks for; None: nobody is asked.
      hosts: names by which clients may ask for the server; None: any.
      origins: of pages in a browser that may ask, each as https://example.org; "*": all.
      thresholds: by method, from when on a document is a sentence's source (evaluate/sources_threshold.py).
    """

    def __init__(
        self,
        generators: dict[str, Generator],
        name: str,
        limits: Limits,
        key: str | None,
        hosts: frozenset[str] | None = None,
        origins: Sequence[str] = (),
        thresholds: dict[str, Threshold] | None = None,
    ):
        self.generators, self.generator = generators, next(iter(generators.values()))
        self.name, self.limits, self.key = name, limits, key
        self._hosts, self._origins = hosts, origins
        self.metrics, self.running = Metrics(list(generators.values())), set()
        # One, so that who comes first is queued first; reading and tokenising hold up nobody else.
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="requests")
        self._prompts = Prompts()
        self._chat = functools.cache(lambda: Chat(self.generator.tokenizer))
        self.sources = Sources(thresholds or {}, self._prompts, self._chat)
        self.warming = Warming(list(generators.values()), self.sources)
        self._began, self._changing = int(time.time()), asyncio.Lock()
        self._policy = headers()

    def app(self) -> Starlette:
        """To be served."""
        routes = [
            Route("/", self.page),
            Route("/healthz", self.health),
            Route("/readyz", self.ready),
            Route("/version", self.version),
            Route("/metrics", self.measured),
            Route("/openapi.json", self.described),
            Route("/tokenizer_info", self.tokenizer),
            Route("/tokenize", self.tokenize, methods=["POST"]),
            Route("/detokenize", self.detokenize, methods=["POST"]),
            Route("/v1/models", self.models),
            Route("/v1/models/{name:path}", self.model),
            Route("/v1/embeddings", self.embeddings, methods=["POST"]),
            Route("/v1/completions", self.completions, methods=["POST"]),
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/v1/documents", self.documents, methods=["GET", "POST", "DELETE"]),
        ]
        handlers = dict.fromkeys(
            (Refused, UserError, HTTPException, ClientDisconnect, Exception), explain
        )
        guards = [
            Middleware(Named, hosts=self._hosts),
            *(
                [Middleware(CORSMiddleware, allow_origins=self._origins, **_CORS)]
                if self._origins
                else []
            ),
            Middleware(Options),
            Middleware(Guard, key=self.key, answered=self.metrics.answered),
        ]
        return Starlette(routes=routes, exception_handlers=handlers, middleware=guards)

    def end(self):
        """Has what is running end with what there is."""
        for running in self.running:
            for work in running.works:
                work.cancel()

    async def page(self, request: Request) -> Response:
        """The page for a person."""
        return Response(PAGE, headers=self._policy, media_type="text/html; charset=utf-8")

    @property
    def _failed(self) -> bool:
        return any(g.error is not None for g in self.generators.values())

    async def health(self, request: Request) -> Response:
        """Whether continuations can be asked for."""
        failed = self._failed
        return json_response({"status": "failed" if failed else "ok"}, 503 if failed else 200)

    async def ready(self, request: Request) -> Response:
        """Whether a continuation that is asked for now would be taken, and not wait for the compiler."""
        full = any(g.waiting >= self.limits.queue for g in self.generators.values())
        compiling = "ready" if self.warming.done else "compiling"
        status = "failed" if self._failed else "full" if full else compiling
        return json_response({"status": status}, 200 if status == "ready" else 503)

    async def version(self, request: Request) -> Response:
        """Of this program."""
        return json_response({"version": __version__})

    async def measured(self, request: Request) -> Response:
        """For Prometheus."""
        return Response(self.metrics.text(), headers={"content-type": CONTENT_TYPE})

    async def described(self, request: Request) -> Response:
        """What can be asked for, as OpenAPI."""
        return json_response(openapi.document())

    async def models(self, request: Request) -> Response:
        """The one model, and what it can be asked for."""
        return json_response({"object": "list", "data": [await self._model()]})

    async def model(self, request: Request) -> Response:
        """The same by its name."""
        if (name := request.path_params["name"]) != self.name:
            message = f"{name[:60]!r}: there is no such model here; there is {self.name!r}"
            raise Refused(message, "model", 404, "model_not_found")
        return json_response(await self._model())

    async def _model(self) -> dict:
        g = self.generator
        names = await run_in_threadpool(g.retriever.databases.names)
        return {
            "id": self.name, "object": "model", "created": self._began, "owned_by": "retro_jax",
            "length": g.length, "rows": g.rows, "k": g.k, "databases": names,
            "methods": list(self.generators), "chat": bool(g.tokenizer.template),
            "sources": {name: told.k for name, told in self.sources.thresholds.items()},
            "sources_in_chat": self.sources.of_passages(g),
        }  # fmt: skip

    async def tokenizer(self, request: Request) -> Response:
        """What tokens stand for more than text: none that a completion's prompt can have."""
        none, own = dict.fromkeys(("bos_token", "eos_token", "pad_token")), self.generator.tokenizer
        known = {"chat_template": own.template or None, "vocab_size": own.vocab}
        return json_response(none | known | {"tokenizer_class": "retro_jax"})

    async def tokenize(self, request: Request) -> Response:
        """A text's token ids."""
        g = self.generator
        return await self._told(request, lambda body: texts.tokenize(g.tokenizer, g.length, body))

    async def detokenize(self, request: Request) -> Response:
        """The text of token ids."""
        return await self._told(
            request, lambda body: texts.detokenize(self.generator.tokenizer, body)
        )

    async def embeddings(self, request: Request) -> Response:
        """Vectors of texts."""
        g = self.generator
        encoder = g.retriever.databases.prepared.encoder
        given = encoder, g.tokenizer, self.name, g.length
        return await self._told(request, lambda body: texts.embeddings(*given, body))

    async def _told(self, request: Request, answer) -> Response:
        """What is made of a body, in a thread."""
        body = await body_of(request, self.limits)
        return json_response(await run_in_threadpool(lambda: answer(json_of(body))))

    async def completions(self, request: Request) -> Response:
        """Continuations, at once or as they come."""

        def read(body):
            g, names = self.generator, list(self.generators)
            return api.asked(body, self.name, g.tokenizer, self.limits.queue, g.length, names)

        return await self._answered(request, read, Answer)

    async def chat(self, request: Request) -> Response:
        """The next message of a conversation, at once or as it comes."""

        def read(body):
            return chat.asked(body, self.name, self.generators, self._chat, self.limits.queue)

        return await self._answered(request, read, chat.ChatAnswer)

    async def _answered(self, request: Request, read, answers: type[Answer]) -> Response:
        """What `read` makes of a body, answered."""
        body, running = await body_of(request, self.limits), Running()
        gone = asyncio.create_task(cancel_when_gone(request, running))
        self.running.add(running)
        with contextlib.ExitStack() as stack:
            stack.callback(self.running.discard, running)
            stack.callback(gone.cancel)
            stack.callback(running.cancel)
            loop = asyncio.get_running_loop()
            asked = await loop.run_in_executor(self._reader, self._submit, body, running, read)
            answer = answers(asked, self.name, self.generator.tokenizer)
            if answer.wants_scores:
                given = self.generators[asked.method], asked.requests[:: asked.n]
                answer.scored(await run_in_threadpool(self._prompts.scores, *given))
            if asked.stream:
                return Stream(self._events(asked, answer, running), stack.pop_all().close)
            async for i, piece in running:
                if piece is None:
                    self._completed(running.works[i].completion)
                    if not running.cancelled:
                        await self._sourced(asked, answer, i, running.works[i].completion)
            if running.cancelled:
                raise ClientDisconnect
            return json_response(answer.whole(running.results()))

    def _submit(self, body: bytes, running: Running, read) -> api.Asked:
        """Reads a body and queues what it asks for; in the reader's thread."""
        asked = read(json_of(body))
        g = self.generators[asked.method]
        self.sources.check(asked, g)
        for request in asked.requests[:: asked.n]:
            g.check(request)
        if g.error:
            raise broken()
        if g.waiting + len(asked.requests) > self.limits.queue:
            raise Refused(
                f"{g.waiting} requests are waiting, with room for {self.limits.queue}; try again later",
                status=429, code="queue_full", headers={"retry-after": str(_RETRY)},
            )  # fmt: skip
        running.submit(g, asked.requests)
        return asked

    async def _sourced(self, asked: api.Asked, answer: Answer, i: int, completion: Completion):
        """Has the answer tell the sources of a choice, if they are asked for."""
        if asked.sources:
            g = self.generators[asked.method]
            answer.sourced(i, await self.sources.told(asked, g, completion))

    def _completed(self, completion: Completion):
        self.metrics.completed(completion)
        if completion.retrieval.startswith("failed"):
            print(f"retro: retrieval {visible(completion.retrieval)}", file=sys.stderr, flush=True)

    async def _events(self, asked: api.Asked, answer: Answer, running: Running):
        """The events of a stream."""
        try:
            for i in range(len(asked.requests)):
                if first := answer.prompt(i):
                    yield first
            async for i, piece in running:
                if piece is None:
                    completion = running.works[i].result(0)
                    self._completed(completion)
                    await self._sourced(asked, answer, i, completion)
                    yield answer.last(i, completion)
                else:
                    yield answer.piece(i, piece)
            if running.cancelled:
                return
            if usage := answer.usage(running.results()):
                yield usage
            yield DONE
        except Exception:
            logging.getLogger(__name__).exception("a stream ended early")
            yield event(broken().to_json())  # the status has been sent already

    async def documents(self, request: Request) -> Response:
        """What databases hold: told, or changed."""
        if not self.key:
            raise Refused(
                "documents can be changed only where a key is asked for: start the server with the "
                "environment variable RETRO_API_KEY",
                status=403,
            )  # fmt: skip
        databases = self.generator.retriever.databases
        if request.method == "GET":
            told = await run_in_threadpool(databases.describe)
            return json_response({"object": "list", "data": told})
        body = await body_of(request, self.limits)
        change = documents.add if request.method == "POST" else documents.delete
        async with self._changing:  # of those that wait for one another none holds a thread
            return json_response(await run_in_threadpool(lambda: change(databases, json_of(body))))
