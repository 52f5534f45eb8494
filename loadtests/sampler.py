"""Asks the server for its figures while the load goes on."""

import time

import gevent  # type: ignore[import-untyped]

from loadtests.load import Load
from loadtests.sampling import Sample, queue_time_ms, read_metrics
from loadtests.streaming import Client


class Sampler:
    """A greenlet that reads /metrics; it stops at once where the server has none."""

    def __init__(self, host: str, api_key: str | None, load: Load, *, interval_s: float) -> None:
        self._client = Client(host, api_key=api_key, connections=1, timeout_s=10)
        self._load, self._interval_s = load, interval_s
        self._greenlet: gevent.Greenlet | None = None
        self.samples: list[Sample] = []

    def start(self) -> None:
        if self._interval_s > 0:
            self._greenlet = gevent.spawn(self._go_on)

    def end(self) -> None:
        """Take a last sample."""
        if self._greenlet is not None:
            self._greenlet.kill()
            if self.samples:
                self._sample()

    def _go_on(self) -> None:
        while self._sample():
            gevent.sleep(self._interval_s)

    def _sample(self) -> bool:
        try:
            page = self._client.fetch("GET", "/metrics").decode(errors="replace")
        except (OSError, ValueError):
            return bool(self.samples)  # a busy server may miss one
        values = read_metrics(page)
        if not values:
            return False
        self.samples.append(Sample(time.perf_counter() - self._load.began, values))
        wait_ms = queue_time_ms(self.samples[-2:])
        if wait_ms is not None:
            self._load.show("queue time, the server's mean", "QUEUE", wait_ms)
        return True
