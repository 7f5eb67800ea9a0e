"""`retro serve` under load: many clients at once, and some that do what they should not.

    pip install -e '.[serve]' httpx
    python benchmarks/load.py --workdir=runs/quickstart --seconds=120
    python benchmarks/load.py --smoke      # does it run? a tiny model, few clients, few seconds

WORKDIR is a working directory that is trained; what it lacks is made first, a whole experiment of --config if
there is nothing. Every client sends one request after another: 16 to 64 tokens after 50 to 400 characters of
this file, streamed or not, with no or with two neighbours a chunk. Meanwhile others send what is no JSON,
what is too long or has another key, hang up in the middle of a stream, or never read what they asked for.
"""

import asyncio
import json
import os
import random
import select
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import common
import httpx
import numpy as np
from prometheus_client.parser import text_string_to_metric_families

KEY = "benchmark"
TEXT = Path(__file__).read_text()
COLUMNS = {"mean": ".3f", "p50": ".3f", "p95": ".3f", "p99": ".3f", "MiB": ",.0f"}


class Server:
    """`retro serve` as a process."""

    def __init__(self, workdir: Path, rows: int, length: int):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.address, self.length = f"http://127.0.0.1:{self.port}", length
        command = [sys.executable, "-m", "retro_jax.cli", "serve", str(workdir)]
        self._process = subprocess.Popen(
            [*command, f"--rows={rows}", f"--length={length}", f"--port={self.port}"],
            env=os.environ | {"RETRO_API_KEY": KEY}, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        begin = time.perf_counter()
        if str(self.port) not in self._process.stdout.readline():
            sys.exit("the server did not start")
        while (
            status := httpx.get(f"{self.address}/readyz", timeout=60).json()["status"]
        ) == "compiling":
            time.sleep(0.5)
        if status != "ready":
            sys.exit(f"the server is {status}")
        self.seconds = time.perf_counter() - begin

    def memory(self) -> float:
        """Resident, in MiB."""
        status = Path(f"/proc/{self._process.pid}/status").read_text().split("VmRSS:")[1]
        return int(status.split()[0]) / 1024

    def close(self) -> int:
        """Ends it; returns its exit status."""
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(60)


class Seen:
    """What the clients saw."""

    def __init__(self):
        self.statuses, self.hostile = Counter(), Counter()
        self.latency, self.first, self.tokens = [], [], 0
        self.completed: Counter[int] = Counter()


def request(rng: random.Random) -> dict:
    """The body of an ordinary request."""
    begin = rng.randrange(len(TEXT) - 400)
    body = {
        "prompt": TEXT[begin : begin + rng.randrange(50, 400)], "max_tokens": rng.randint(16, 64),
        "temperature": 0.8, "retrieval": {"k": rng.choice([0, 2])}, "stream": rng.random() < 0.5,
    }  # fmt: skip
    return body | ({"stream_options": {"include_usage": True}} if body["stream"] else {})


async def client(number: int, http: httpx.AsyncClient, end: float, seen: Seen):
    """Sends requests until the end; waits when it is told to."""
    rng = random.Random(number)
    while time.perf_counter() < end:
        body, begin = request(rng), time.perf_counter()
        try:
            async with http.stream("POST", "/v1/completions", json=body) as answer:
                seen.statuses[str(answer.status_code)] += 1
                if answer.status_code != 200:
                    await answer.aread()
                    await asyncio.sleep(float(answer.headers.get("retry-after", 0)))
                    continue
                usage = await _read(answer, body["stream"], begin, seen)
        except httpx.HTTPError as error:
            seen.statuses[type(error).__name__] += 1
            continue
        seen.latency.append(time.perf_counter() - begin)
        seen.tokens += usage["completion_tokens"]
        seen.completed[number] += 1


async def _read(answer: httpx.Response, stream: bool, begin: float, seen: Seen) -> dict:
    """The usage that an answer ends with."""
    if not stream:
        return json.loads(await answer.aread())["usage"]
    usage = None
    async for line in answer.aiter_lines():
        if usage is None and line:
            seen.first.append(time.perf_counter() - begin)
            usage = {}
        if '"choices":[]' in line:
            usage = json.loads(line[6:])["usage"]
    return usage


async def hostile(server: Server, end: float, seen: Seen):
    """Does what it should not, one thing after another, until the end."""
    http = httpx.AsyncClient(base_url=server.address, headers=_headers(), timeout=60)
    asked = {"prompt": "import os\n", "max_tokens": server.length // 2, "stream": True}
    sent = {
        "no JSON": {"content": b'{"prompt": "a'},
        "too long": {"content": b'{"prompt": "' + b"a" * 2**21 + b'"}'},
        "another key": {"json": asked, "headers": {"authorization": "Bearer other"}},
    }
    async with http:
        while time.perf_counter() < end:
            for name, parts in sent.items():
                try:
                    answer = await http.post("/v1/completions", **parts)
                    seen.hostile[f"{name}: {answer.status_code}"] += 1
                except httpx.HTTPError as error:
                    seen.hostile[f"{name}: {type(error).__name__}"] += 1
            async with http.stream("POST", "/v1/completions", json=asked) as answer:
                await anext(answer.aiter_bytes(), None)
            seen.hostile[f"hung up: {answer.status_code}"] += 1
            await asyncio.sleep(0.5)


async def never_reads(server: Server, end: float, seen: Seen):
    """Asks for more than a kernel keeps, and reads none of it."""
    tokens = server.length * 7 // 8
    body = {"prompt": "a", "max_tokens": tokens, "n": 8, "logprobs": 5, "stream": True}
    data = json.dumps(body).encode()
    head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\n" + "".join(
        f"{name}: {value}\r\n"
        for name, value in {**_headers(), "content-length": len(data)}.items()
    )
    while time.perf_counter() < end:
        with socket.socket() as made:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            made.connect(("127.0.0.1", server.port))
            made.sendall(f"{head}\r\n".encode() + data)
            closed = select.poll()
            closed.register(made, 0)  # errors and the end are told always
            while not closed.poll(0) and time.perf_counter() < end:
                await asyncio.sleep(0.2)
            seen.hostile["never read: dropped"] += bool(closed.poll(0))


def _headers() -> dict:
    return {"authorization": f"Bearer {KEY}", "content-type": "application/json"}


async def load(server: Server, clients: int, seconds: float) -> tuple[Seen, dict]:
    """All clients for so many seconds; what they saw, and the server's memory."""
    seen, memory = Seen(), {"start": server.memory()}
    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(
        base_url=server.address, headers=_headers(), timeout=120, limits=limits
    ) as http:
        end = time.perf_counter() + seconds
        tasks = [client(number, http, end, seen) for number in range(clients)]
        work = asyncio.gather(*tasks, hostile(server, end, seen), never_reads(server, end, seen))
        await asyncio.sleep(min(10, seconds / 2))
        memory["10 s"] = server.memory()
        await work
        memory["end"] = server.memory()
    return seen, memory


def quantiles(values: list[float]) -> dict[str, float | None]:
    """Mean and percentiles, seconds; None of nothing."""
    if not values:
        return dict.fromkeys(("mean", "p50", "p95", "p99"))
    p50, p95, p99 = np.quantile(values, (0.5, 0.95, 0.99))
    return {"mean": np.mean(values), "p50": p50, "p95": p95, "p99": p99}


def queue_wait(address: str) -> dict:
    """The same from the server's histogram, inside a bucket in proportion."""
    families = text_string_to_metric_families(httpx.get(f"{address}/metrics").text)
    told = [s for f in families if f.name == "retro_queue_seconds" for s in f.samples]
    value = {s.name.removeprefix("retro_queue_seconds_"): s.value for s in told}
    buckets = [(float(s.labels["le"]), s.value) for s in told if "le" in s.labels]
    bounds = [0.0] + [b for b, _ in buckets[:-1]]
    counts = [0.0] + [n for _, n in buckets[:-1]]
    at = {f"p{p}": np.interp(p / 100 * value["count"], counts, bounds) for p in (50, 95, 99)}
    return {"mean": value["sum"] / value["count"], **at}


def main():
    parser = common.parser(__doc__)
    parser.set_defaults(workdir=Path("runs/quickstart"))
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--length", type=int, default=1024, help="of `retro serve`")
    flags = common.parse(
        parser, workdir=Path("runs/smoke/bm25"), seconds=2, clients=4, rows=2, length=512
    )
    common.train(flags)
    server = Server(flags.workdir, flags.rows, flags.length)
    try:
        begin = time.perf_counter()
        seen, memory = asyncio.run(load(server, flags.clients, flags.seconds))
        took = time.perf_counter() - begin
        waits = queue_wait(server.address)
    finally:
        status = server.close()
    done = [seen.completed[number] for number in range(flags.clients)]
    tables = {
        f"{flags.clients} clients, {flags.rows} rows, {took:.0f} s": [
            {"": "requests answered", "number": len(seen.latency)},
            {"": "statuses", "number": _told(seen.statuses)},
            {"": "tokens/s", "number": round(seen.tokens / took, 1)},
            {"": "requests of a client, most / fewest", "number": f"{max(done)} / {min(done)}"},
            {"": "seconds until it listened", "number": round(server.seconds, 1)},
            {"": "exit status after SIGTERM", "number": status},
        ],
        "seconds": [
            {"": "request", **quantiles(seen.latency)},
            {"": "first token (streams)", **quantiles(seen.first)},
            {"": "waiting for a row", **waits},
        ],
        "hostile clients": [{"": name, "number": n} for name, n in sorted(seen.hostile.items())],
        "memory of the server": [{"": when, "MiB": size} for when, size in memory.items()],
    }
    common.show(tables, COLUMNS, flags.json)


def _told(counts: Counter) -> str:
    return ", ".join(f"{name}: {n:,}" for name, n in sorted(counts.items()))


if __name__ == "__main__":
    main()
