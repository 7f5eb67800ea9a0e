"""How the server answers: JSON, streams and refusals, to those who have the key."""

import contextlib
import hmac
from collections.abc import AsyncGenerator, Callable

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from retro_jax.errors import UserError
from retro_jax.serve import api
from retro_jax.serve.answer import dumps
from retro_jax.serve.reading import Refused

_METHODS = "GET, POST, DELETE, OPTIONS"
_GUARDED = ("/tokenize", "/detokenize")  # beside all of /v1
GONE = 499  # the status that is counted for a client that did not wait for its answer


class Guard:
    """Lets those in who have the key.

    Args:
      key: that /v1 and the tokenizer ask for; None: nobody is asked.
      answered: called with the status of each of their answers.
    """

    def __init__(self, app, key: str | None, answered: Callable[[int], None]):
        self._app, self._key, self._answered = app, key, answered

    async def __call__(self, scope, receive, send):
        path = scope.get("path", "")
        if scope["type"] != "http" or not (path.startswith("/v1/") or path in _GUARDED):
            return await self._app(scope, receive, send)
        status = GONE

        async def noting(message):
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            if self._allowed(scope):
                return await self._app(scope, receive, noting)
            given = b"authorization" in dict(scope["headers"])
            refused = Refused(
                "give the server's key (its RETRO_API_KEY), in the header 'Authorization: Bearer KEY'"
                + given * "; the one that was given is not it",
                status=401, code="invalid_api_key", headers={"www-authenticate": "Bearer"},
            )  # fmt: skip
            await refusal(refused)(scope, receive, noting)
        except Exception:
            status = 503
            raise
        finally:
            self._answered(status)

    def _allowed(self, scope) -> bool:
        if not self._key:
            return True
        given = dict(scope["headers"]).get(b"authorization", b"")
        scheme, _, key = given.partition(b" ")
        return scheme.lower() == b"bearer" and hmac.compare_digest(key, self._key.encode())


class Options:
    """Answers what a browser asks before a page of elsewhere may ask anything: nothing is allowed.

    Where pages of elsewhere are allowed, Starlette's CORSMiddleware stands before it.
    """

    def __init__(self, app):
        self._app = app

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http" or scope["method"] != "OPTIONS":
            return await self._app(scope, receive, send)
        await Response(status_code=204, headers={"allow": _METHODS})(scope, receive, send)


class Named:
    """Answers those who asked for the server by one of its names.

    A page from elsewhere can have its own name lead to this machine (DNS rebinding), and then read what the server
    says: the browser sends that name.

    Args:
      hosts: the names; None: any.
    """

    def __init__(self, app, hosts: frozenset[str] | None):
        self._app, self._hosts = app, hosts

    async def __call__(self, scope, receive, send):
        host = dict(scope.get("headers", ())).get(b"host", b"").decode("latin-1").lower()
        name = host if host.endswith("]") else host.rpartition(":")[0] or host
        if scope["type"] != "http" or self._hosts is None or not host or name in self._hosts:
            return await self._app(scope, receive, send)
        refused = Refused(
            f"Host: {host[:60]!r}: this server answers to {', '.join(sorted(self._hosts))}; start it with "
            "--names=NAME for another name",
            status=421, code="unknown_host",
        )  # fmt: skip
        await refusal(refused)(scope, receive, send)


class Stream(Response):
    """Server-sent events; `close` is called when they have ended, however that is."""

    def __init__(self, events: AsyncGenerator, close: Callable):
        super().__init__(media_type="text/event-stream", headers={"cache-control": "no-store"})
        del self.headers["content-length"]
        self._events, self._close = events, close

    async def __call__(self, scope, receive, send):
        try:
            start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
            await send(start)
            async with contextlib.aclosing(self._events):
                async for data in self._events:
                    await send({"type": "http.response.body", "body": data, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self._close()


def json_response(value, status: int = 200, headers: dict | None = None) -> Response:
    """A value."""
    return Response(dumps(value), status, headers, media_type="application/json")


async def explain(request: Request, error: Exception) -> Response:
    """What the client is told of an error."""
    match error:
        case ClientDisconnect():
            return Response(status_code=GONE)
        case Refused():
            return refusal(error)
        case UserError():
            return refusal(api.refusal(error))
        case HTTPException():
            where = f"{request.method[:20]} {request.url.path[:60]}"
            known = "there are /v1/completions, /v1/chat/completions, /v1/models, /v1/embeddings and /v1/documents"
            message = f"{where}: {error.detail}; {known}"
            return refusal(Refused(message, status=error.status_code, headers=error.headers))
    return refusal(broken())  # Starlette raises it again, so that the log has it


def refusal(error: Refused) -> Response:
    """Why not."""
    return json_response(error.to_json(), error.status, error.headers)


def broken() -> Refused:
    """What is not the client's fault."""
    return Refused("the server has failed; its log says why", status=503, code="generator_failed")
