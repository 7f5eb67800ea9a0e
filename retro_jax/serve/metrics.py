"""What a server counts, for Prometheus."""

from collections.abc import Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from retro_jax.generate.completion import Completion
from retro_jax.generate.generator import Generator

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 1.5, 2, 2.5, 3, 4, 5, 7, 10, 15, 20, 30, 60, 120)


class Metrics:
    """Counts of one server; its generators keep their own."""

    def __init__(self, generators: Sequence[Generator]):
        self._generators, self._registry = generators, CollectorRegistry()
        seconds = {"buckets": _SECONDS, "registry": self._registry}
        self._requests = Counter(
            "retro_http_requests", "Requests to /v1 by status; 499: the client was gone before an answer",
            ["status"], registry=self._registry,
        )  # fmt: skip
        self._failed = Counter(
            "retro_retrieval_failed", "Continuations that retrieval failed", registry=self._registry
        )
        self._seconds = {
            "waiting": Histogram("retro_queue_seconds", "From submission to a row", **seconds),
            "first": Histogram(
                "retro_first_token_seconds", "From submission to a token", **seconds
            ),
            "total": Histogram("retro_request_seconds", "From submission to the end", **seconds),
        }
        self._registry.register(self)

    def answered(self, status: int):
        """An HTTP request has been answered."""
        self._requests.labels(str(status)).inc()

    def completed(self, completion: Completion):
        """A continuation has ended."""
        for name, histogram in self._seconds.items():
            if name in completion.seconds:
                histogram.observe(completion.seconds[name])
        if completion.retrieval.startswith("failed"):
            self._failed.inc()

    def text(self) -> bytes:
        """As Prometheus reads it."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator:
        """What the generators have counted, together."""

        def total(of) -> int:
            return sum(map(of, self._generators))

        yield CounterMetricFamily("retro_tokens", "Tokens drawn", value=total(lambda g: g.drawn))
        yield CounterMetricFamily(
            "retro_lookups", "Chunks looked up", value=total(lambda g: g.lookup.looked_up)
        )
        yield CounterMetricFamily(
            "retro_lookups_failed", "Look-ups that failed", value=total(lambda g: g.lookup.failed)
        )
        yield GaugeMetricFamily(
            "retro_queue_length", "Continuations without a row", value=total(lambda g: g.waiting)
        )
        yield GaugeMetricFamily(
            "retro_rows_busy", "Rows that are taken", value=total(lambda g: g.busy)
        )
        yield GaugeMetricFamily("retro_rows", "Rows", value=total(lambda g: g.rows))
