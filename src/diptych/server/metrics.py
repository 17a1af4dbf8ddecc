"""Prometheus metrics of a server, as returned by `/metrics`."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Counts:
    """The metrics of one server. Each instance has its own registry, so several servers can run in one process."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "diptych_requests", "Number of responses by route and status.", ["route", "status"], registry=self._registry
        )
        self.seconds = Histogram(
            "diptych_request_seconds",
            "Time from the start of a request to the end of its response, in seconds.",
            ["route"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.batch = Histogram(
            "diptych_batch_size",
            "Number of items per batch.",
            ["queue"],
            buckets=_SIZES,
            registry=self._registry,
        )
        self.waiting = Gauge("diptych_waiting", "Number of items in the queue.", ["queue"], registry=self._registry)
        self.busy = Gauge(
            "diptych_busy_seconds",
            "Duration of the longest current call of the threads, in seconds.",
            ["threads"],
            registry=self._registry,
        )
        self.cut = Counter(
            "diptych_texts_cut", "Number of texts that were truncated to the context length.", registry=self._registry
        )
        self.bodies = Gauge("diptych_body_bytes", "Size of the bodies of current requests.", registry=self._registry)

    def text(self) -> bytes:
        """The current values in Prometheus's text format."""
        return generate_latest(self._registry)
