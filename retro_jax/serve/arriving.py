"""What comes over a connection: a request's body, and the news that the client has gone."""

import asyncio

from starlette.requests import Request

from retro_jax.serve.limits import Limits
from retro_jax.serve.reading import Refused
from retro_jax.serve.running import Running


async def body_of(request: Request, limits: Limits) -> bytes:
    """The body of a request.

    Raises:
      Refused: it is no JSON, too long, or not here in time.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # other kinds any page in a browser may send
        raise Refused("send JSON with the header 'Content-Type: application/json'", status=415)
    most = limits.body
    large = Refused(f"the body has more than {most:,} bytes; send less", status=413)
    length = request.headers.get("content-length", "0")
    if int(length) > most:
        raise large
    data = bytearray()
    try:
        async with asyncio.timeout(limits.body_seconds):
            async for part in request.stream():
                data += part
                if len(data) > most:
                    raise large
    except TimeoutError as error:
        raise Refused(
            f"the body was not complete after {limits.body_seconds} seconds; send it again",
            status=408, headers={"connection": "close"},
        ) from error  # fmt: skip
    return bytes(data)


async def cancel_when_gone(request: Request, running: Running):
    """Cancels what is running when the client closes its connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    running.cancel()
