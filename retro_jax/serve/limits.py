"""What one client may take of a server."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Sizes in bytes, times in seconds."""

    body: int = 2**20  # of a request
    body_seconds: float = 10  # until its head, and then until its body is complete
    queue: int = 128  # continuations that wait for a row
    connections: int = 256  # that are open at a time
    stall_seconds: float = 30  # until a client has taken what it was sent
    grace_seconds: float = 10  # that running requests go on when the server is to end
