"""What /metrics tells, in the text format of Prometheus."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
BATCHES = (1, 2, 4, 8, 16, 32)


class Counts:
    """Counters of one replica."""

    def __init__(self, replica: str) -> None:
        """`replica` tells the replicas apart."""
        self.registry = CollectorRegistry()
        labels = {"registry": self.registry, "namespace": "context_encoder"}
        self._replica = replica
        self._requests = Counter(
            "requests", "Requests answered.", ["replica", "path", "status"], **labels
        )
        self._seconds = Histogram(
            "request_seconds", "Time of a request.", ["replica", "path"], buckets=SECONDS, **labels
        )
        self._batch = Histogram(
            "batch_photographs", "Photographs filled at once.", ["replica"], buckets=BATCHES,
            **labels,
        )  # fmt: skip
        self._active = Gauge("requests_active", "Requests at work.", ["replica"], **labels)
        self._swaps = Counter("model_swaps", "Models renewed.", ["replica", "model"], **labels)
        self._failed = Gauge(
            "model_reloads_failed", "Looks at an alias that failed.", ["replica"], **labels
        )

    @contextmanager
    def request(self) -> Iterator[None]:
        """A request is at work."""
        active = self._active.labels(self._replica)
        active.inc()
        try:
            yield
        finally:
            active.dec()

    def answered(self, path: str, status: int, began: float) -> None:
        """A request is over; `began` is of time.monotonic()."""
        self._requests.labels(self._replica, path, str(status)).inc()
        self._seconds.labels(self._replica, path).observe(time.monotonic() - began)

    def batches(self, sizes: list[int]) -> None:
        """Batches that were filled."""
        for size in sizes:
            self._batch.labels(self._replica).observe(size)

    def swapped(self, names: list[str], failed: int) -> None:
        """Models that were renewed, and how many looks have failed so far."""
        for name in names:
            self._swaps.labels(self._replica, name).inc()
        self._failed.labels(self._replica).set(failed)

    def text(self) -> bytes:
        """All of them."""
        return bytes(generate_latest(self.registry))
