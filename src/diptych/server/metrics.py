"""What `/metrics` tells Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Counts:
    """One server's; two in one process do not mix."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "diptych_requests", "Answers by route and status.", ["route", "status"], registry=self._registry
        )
        self.seconds = Histogram(
            "diptych_request_seconds",
            "From a request to its answer.",
            ["route"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.batch = Histogram(
            "diptych_batch_size",
            "Things that were computed at once.",
            ["queue"],
            buckets=_SIZES,
            registry=self._registry,
        )
        self.waiting = Gauge("diptych_waiting", "Things that wait for their batch.", ["queue"], registry=self._registry)
        self.busy = Gauge(
            "diptych_busy_seconds",
            "Since the longest current call of the threads began.",
            ["threads"],
            registry=self._registry,
        )
        self.cut = Counter("diptych_texts_cut", "Texts that were too long for the model.", registry=self._registry)
        self.bodies = Gauge("diptych_body_bytes", "Of the requests that are under way.", registry=self._registry)

    def text(self) -> bytes:
        """In Prometheus's format."""
        return generate_latest(self._registry)
