"""A server of its own port, in a thread of the test's process or as a process."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx

from retro_jax.serve import server
from retro_jax.serve.app import Service
from retro_jax.serve.limits import Limits

JSON = {"content-type": "application/json"}
PROMPT = "kara lopo minel tenra kais mipo lora "
# In a process of its own: only there does a signal end it.
SCRIPT = """
import sys
from pathlib import Path
from conftest import small_experiment
from retro_jax.serve.server import serve
from retro_jax.store.workdir import WorkDir

work = WorkDir(sys.argv[2], small_experiment(Path(sys.argv[1])))
serve(work, "127.0.0.1", int(sys.argv[3]), 4, 512)
"""


@contextlib.contextmanager
def serving(generator, key: str | None = None, origins=(), thresholds=None, **limits):
    """(address, Service) of a server in a thread."""
    made = Limits(**limits)
    every = generator if isinstance(generator, dict) else {"retro": generator}
    service = Service(every, "small", made, key, server.names_of("127.0.0.1"), origins, thresholds)
    with server.bound("127.0.0.1", 0) as listening:
        listening.listen()
        running = server.server(service, made)
        thread = threading.Thread(target=running.run, args=([listening],))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}", service
        finally:
            running.should_exit = True
            thread.join()


@contextlib.contextmanager
def process(experiment, root: Path, seconds: float = 600):
    """(address, Popen) of a server in a process that has compiled all; it is ended with SIGTERM."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    corpus = Path(experiment.corpus.source.removeprefix("text:")).parent
    command = [sys.executable, "-c", SCRIPT, str(corpus), str(root), str(port)]
    paths = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    made = subprocess.Popen(
        command, env=os.environ | {"PYTHONPATH": paths}, stdout=subprocess.PIPE, text=True
    )
    try:
        assert f":{port}" in made.stdout.readline()
        ready = f"http://127.0.0.1:{port}/readyz"
        until(lambda: httpx.get(ready, timeout=300).status_code == 200, seconds)
        yield f"http://127.0.0.1:{port}", made
    finally:
        made.send_signal(signal.SIGTERM)
        made.wait(seconds)


def post(address: str, path: str = "/v1/completions", /, **body) -> httpx.Response:
    """An answer to a request for a completion, or what else."""
    return httpx.post(f"{address}{path}", json=body, timeout=300)


def connect(address: str, receive: int | None = None) -> socket.socket:
    """A bare connection; receive: bytes that the kernel takes for it at most."""
    made = socket.socket()
    if receive:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive)
    made.settimeout(300)
    host, port = address.removeprefix("http://").split(":")
    made.connect((host, int(port)))
    return made


def ask(body: bytes, path: str = "/v1/completions", length: int | None = None) -> bytes:
    """A request as bytes; length: what it says that its body has."""
    head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: "
    return f"{head}{len(body) if length is None else length}\r\n\r\n".encode() + body


def until(condition, seconds: float = 300):
    """Waits until a condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to be"
        time.sleep(0.01)
