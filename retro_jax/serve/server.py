"""`retro serve`: opens a trained RETRO, and answers until it is told to end."""

import asyncio
import contextlib
import functools
import ipaddress
import os
import signal
import socket
import struct
from collections.abc import Sequence

from retro_jax import progress
from retro_jax.errors import UserError
from retro_jax.evaluate.sources_threshold import threshold
from retro_jax.generate.generator import Generator
from retro_jax.serve.limits import Limits
from retro_jax.store.workdir import WorkDir

try:
    import uvicorn
    from uvicorn.protocols.http.h11_impl import H11Protocol

    from retro_jax.serve.app import Service
except ImportError as error:
    raise UserError(
        f"retro serve needs {error.name}: install it with pip install 'retro_jax[serve]'"
    ) from error

KEY = "RETRO_API_KEY"  # the environment variable that holds the key
_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
_IDLE = 15  # seconds that a connection may be idle; OpenAI's client lets go of it sooner
_BUFFER = 2**17  # bytes that the kernel keeps for a client that does not read
_FULL = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 2\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


def serve(
    work: WorkDir,
    host: str,
    port: int,
    rows: int,
    length: int,
    methods: Sequence[str] = ("retro",),
    names: Sequence[str] = (),
    origins: Sequence[str] = (),
):
    """Answers HTTP requests until SIGTERM or Ctrl-C; then those that run may go on for some seconds.

    Args:
      rows: continuations that are decoded together.
      length: tokens that a prompt and its continuation can have together.
      methods: names of those that a request can ask for; the first one answers where it names none.
      names: more names by which clients may ask for it, a proxy's for example. At an address of others than this
        machine, any name will do unless there are some.
      origins: of pages in a browser that may ask; by default all where there is a key, which a page has to know, and
        none where there is none.

    Raises:
      UserError: the address cannot be had, something is missing from the working directory or was made
        with another config, or the key is empty.
    """
    key, limits, name = os.environ.get(KEY), Limits(), work.experiment.name
    if key == "":
        raise UserError(f"{KEY} is empty: set it to a key that clients must give, or unset it")
    with bound(host, port) as listening, contextlib.ExitStack() as stack:
        known = {method: threshold(work, method) for method in methods}
        known = {method: found for method, found in known.items() if found}
        generators = {}
        for method in methods:
            generator = Generator.open(work, method, rows=rows, length=length)
            generators[method] = stack.enter_context(generator)
        warn(host, key)
        pages = origins or (["*"] if key else [])
        service = Service(generators, name, limits, key, names_of(host, names), pages, known)
        answering = server(service, limits)
        _listen(listening, host, port)
        where = f"[{host}]" if ":" in host else host
        print(f"retro serves {name} on http://{where}:{port} (Ctrl-C ends it)", flush=True)
        service.warming.begin()
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            # uvicorn raises the signal that ended it once more.
            with contextlib.suppress(KeyboardInterrupt):
                answering.run(sockets=[listening])
        finally:
            signal.signal(signal.SIGTERM, before)


def names_of(host: str, more: Sequence[str] = ()) -> frozenset[str] | None:
    """Names by which clients may ask for a server at an address; None: any, as it is not for this machine alone."""
    if not is_loopback(host):
        return frozenset(more) or None
    own = f"[{host}]" if ":" in host else host.lower()
    return frozenset({own, *_LOOPBACK, *more})


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host.lower() == "localhost"
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def warn(host: str, key: str | None):
    """Says it where others than this machine may ask anything."""
    if not is_loopback(host) and not key:
        progress.say(
            f"WARNING: --host={host} can be reached from other machines, and there is no key: whoever reaches the "
            f"port may ask anything; set {KEY}"
        )


def bound(host: str, port: int) -> socket.socket:
    """A socket that has an address, and does not listen yet.

    Raises:
      UserError: it cannot be had.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        made = socket.socket(family, kind, protocol)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)  # of its connections too
        made.bind(address)
    except OSError as error:
        raise _refused(host, port, error) from error
    return made


def _listen(listening: socket.socket, host: str, port: int):
    try:
        listening.listen(128)
    except OSError as error:  # who else was bound listens since
        raise _refused(host, port, error) from error


def _refused(host: str, port: int, error: OSError) -> UserError:
    why = error.strerror or error
    return UserError(
        f"--host={host} --port={port}: {why}; give an address of this machine, and end what uses it or "
        "choose another --port"
    )


def server(service: Service, limits: Limits) -> uvicorn.Server:
    """What serves a service."""
    config = uvicorn.Config(
        service.app(), http=functools.partial(Connection, limits), loop="asyncio", ws="none",
        lifespan="off", log_config=None, access_log=False, server_header=False, proxy_headers=False,
        timeout_keep_alive=_IDLE, timeout_graceful_shutdown=int(limits.grace_seconds) + 5,
    )  # fmt: skip
    return _Server(config, service, limits)


class _Server(uvicorn.Server):
    """Has requests end with what there is, when they were given time."""

    def __init__(self, config: uvicorn.Config, service: Service, limits: Limits):
        super().__init__(config)
        self._service, self._limits = service, limits

    async def shutdown(self, sockets=None):
        asyncio.get_running_loop().call_later(self._limits.grace_seconds, self._service.end)
        await super().shutdown(sockets)


class Connection(H11Protocol):
    """A connection, one of so many, that neither keeps the server waiting nor holds what it is sent."""

    def __init__(self, limits: Limits, **given):
        super().__init__(**given)
        self._limits, self._late, self._stalled = limits, None, None

    def connection_made(self, transport):
        """It is open."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)  # pauses as soon as the client does not keep up
        if len(self.connections) > self._limits.connections:
            transport.write(_FULL)
            return transport.close()
        self._await_request()

    def connection_lost(self, exc):
        """It is closed."""
        for timer in (self._late, self._stalled):
            if timer:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data):
        """Bytes have come."""
        super().data_received(data)
        self._await_request()

    def pause_writing(self):
        """The client has not taken all that it was sent."""
        super().pause_writing()
        self._stalled = self.loop.call_later(self._limits.stall_seconds, self._reset)

    def resume_writing(self):
        """The client has."""
        super().resume_writing()
        self._stalled.cancel()

    def _reset(self):
        """Closes it without waiting for the client, also in the kernel."""
        at_once = struct.pack("ii", 1, 0)
        self.transport.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, at_once
        )
        self.transport.abort()

    def _await_request(self):
        """A request's head has to be here in time; its body is the application's to wait for."""
        answering = self.cycle is not None and not self.cycle.response_complete
        if answering and self._late:
            self._late.cancel()
            self._late = None
        elif not answering and not self._late:
            self._late = self.loop.call_later(self._limits.body_seconds, self.transport.abort)
