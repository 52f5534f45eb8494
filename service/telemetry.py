"""Every metric of ours, in one table; vLLM's own stand beside them in `/metrics`."""

import asyncio
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter, time
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from prometheus_client import (
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from service.record import PRIORITY_INTERACTIVE
from service.series import Pair, Series

if TYPE_CHECKING:
    from service.record import Record

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
HELD_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
TOKEN_SECONDS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5)
_Metric = TypeVar("_Metric", Counter, Histogram)
MODEL_LABELS = ("route", "task", "adapter", "version")


class ResidencyView(Protocol):
    """What the routing gauges read; names are those that clients use."""

    @property
    def capacity(self) -> int: ...
    def running(self) -> list[str]: ...
    def waiting(self) -> list[str]: ...


class Metrics:
    """The metrics of one server process.

    Args:
        versions: so many have series of their own.
    """

    def __init__(self, registry: CollectorRegistry = REGISTRY, versions: int = 100) -> None:
        self.registry, self.series = registry, Series(versions)
        self._found: dict[tuple[Any, tuple[str, ...]], Any] = {}
        self.server, self.platform = ServerGauges(registry), PlatformGauges(registry)
        # its own: others may be held up by a database that is away
        self._writing = ThreadPoolExecutor(1, thread_name_prefix="metrics")
        self.requests = Counter(
            "modiste_requests", "Requests answered.", (*MODEL_LABELS, "status"), registry=registry
        )
        self.errors = Counter(
            "modiste_errors", "Requests refused or failed, by error code.", ("route", "code"),
            registry=registry,
        )  # fmt: skip
        self.first_token = Histogram(
            "modiste_time_to_first_token_seconds", "From the request to its first token.",
            MODEL_LABELS, buckets=SECONDS, registry=registry,
        )  # fmt: skip
        self.duration = Histogram(
            "modiste_request_seconds", "From the request to the end of its answer.",
            MODEL_LABELS, buckets=SECONDS, registry=registry,
        )  # fmt: skip
        self.tokens = Counter(
            "modiste_tokens", "Tokens read and written.", (*MODEL_LABELS, "direction"),
            registry=registry,
        )  # fmt: skip
        self.cached_tokens = Counter(
            "modiste_cached_tokens", "Tokens of prompts that the prefix cache had.", MODEL_LABELS,
            registry=registry,
        )  # fmt: skip
        self.between_tokens = Histogram(
            "modiste_time_between_tokens_seconds",
            "Mean time between the tokens of an answer, one for each sequence.",
            MODEL_LABELS, buckets=TOKEN_SECONDS, registry=registry,
        )  # fmt: skip
        self.batch_lines = Counter(
            "modiste_batch_lines", "Lines of batches answered, by outcome.", ("outcome",),
            registry=registry,
        )  # fmt: skip
        self.batch_lines_in_flight = Gauge(
            "modiste_batch_lines_in_flight", "Lines of batches being answered.", registry=registry
        )
        self.in_flight = Gauge(
            "modiste_requests_in_flight",
            "Requests being answered that somebody waits for.",
            registry=registry,
        )
        self.queue_time = Histogram(
            "modiste_queue_seconds", "Wait of the requests that were let into the engine.",
            ("priority",), buckets=(0.001, *SECONDS), registry=registry,
        )  # fmt: skip
        self.admissions = Counter(
            "modiste_admissions", "Requests that were let into the engine.", ("priority",),
            registry=registry,
        )  # fmt: skip
        self.running = Gauge(
            "modiste_running_sequences", "Sequences that were let into the engine and go on.",
            registry=registry,
        )  # fmt: skip
        self.queued = Gauge(
            "modiste_queued_requests", "Requests that wait for the engine.", registry=registry
        )
        self.refusals = Counter(
            "modiste_refusals", "Requests that were not let into the engine, by reason.",
            ("reason",), registry=registry,
        )  # fmt: skip
        self.limit_refusals = Counter(
            "modiste_limit_refusals", "Requests refused for a limit: which, as the settings name "
            "it, and whose.", ("limit", "of"), registry=registry,
        )  # fmt: skip
        self.connection_refusals = Counter(
            "modiste_connection_refusals", "Connections refused or cut before or after a route, "
            "by error code.", ("code",), registry=registry,
        )  # fmt: skip
        self.resident = Gauge(
            "modiste_resident_versions", "Versions loaded and proved.", registry=registry
        )
        self.hits = Counter(
            "modiste_version_hits", "Requests whose version was loaded.", registry=registry
        )
        self.misses = Counter(
            "modiste_version_misses", "Requests whose version had to be loaded.", registry=registry
        )
        self.evictions = Counter(
            "modiste_version_evictions", "Versions unloaded to make room.", registry=registry
        )
        self.preloads = Counter(
            "modiste_version_preloads", "Versions loaded before a request asked for them.",
            registry=registry,
        )  # fmt: skip
        self.loads = Histogram(
            "modiste_version_load_seconds", "Time to load and prove a version.",
            buckets=SECONDS, registry=registry,
        )  # fmt: skip
        self.engine_loads = Histogram(
            "modiste_engine_load_seconds", "Time of the engine's own part of loading a version.",
            buckets=SECONDS, registry=registry,
        )  # fmt: skip
        self.quarantines = Counter(
            "modiste_quarantines", "Versions that failed their proof.", registry=registry
        )

        self.canaries_ended = Counter(
            "modiste_canaries_ended", "Canaries that a rule ended, by how.", ("how",),
            registry=registry,
        )  # fmt: skip
        self.loop_held = Histogram(
            "modiste_event_loop_held_seconds",
            "How late the event loop was, ten times a second, without waits for a core.",
            buckets=HELD_SECONDS, registry=registry,
        )  # fmt: skip

    def limited(self, limit: str, of: str) -> None:
        """Count a request that is refused for a limit."""
        self.limit_refusals.labels(limit, of).inc()

    def admitted(self, priority: str, queued_s: float) -> None:
        """Count a request that is let into the engine."""
        self._of(self.admissions, priority).inc()
        self._of(self.queue_time, priority).observe(queued_s)

    def _of(self, metric: _Metric, *labels: str) -> _Metric:
        """A metric's series; the library looks for it under a lock, with its labels made text."""
        found: _Metric | None = self._found.get((metric, labels))
        if found is None:
            found = self._found[metric, labels] = metric.labels(*labels)
        return found

    def observe(self, record: "Record") -> None:
        """Count one finished request. Unknown models have no labels of their own."""
        model = ("", "") if record.model is None else record.model.labels_of_metrics
        labels = (record.route, record.task, *self.series.labels(*model))
        self._of(self.requests, *labels, str(record.status)).inc()
        if record.error_code is not None:
            self._of(self.errors, record.route, record.error_code).inc()
        if record.task:
            self._of(self.tokens, *labels, "in").inc(record.prompt_tokens)
            self._of(self.tokens, *labels, "out").inc(record.completion_tokens)
            self._of(self.cached_tokens, *labels).inc(record.cached_tokens)
        if not record.task or record.priority != PRIORITY_INTERACTIVE:
            return  # nobody waits for a line of a batch
        self._of(self.duration, *labels).observe(perf_counter() - record.started)
        if record.first_token is not None:
            self._of(self.first_token, *labels).observe(record.first_token - record.started)
        between = self._of(self.between_tokens, *labels)
        for one in record.passes:
            if (mean := one.between_tokens_s) is not None:
                between.observe(mean)

    async def page(self) -> bytes:
        """All metrics as text; written in a thread, since streams must not wait for that."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._writing, generate_latest, self.registry)

    def sweep(self, loaded: Collection[Pair]) -> None:
        """Remove the series of versions that are long unused.

        Args:
            loaded: versions in the engine, by their labels.
        """
        self._found = {}  # so that none is counted in whose series is gone
        for adapter, version in self.series.sweep(loaded):
            gone = {"adapter": adapter, "version": version}
            for metric in (
                self.requests, self.first_token, self.duration, self.tokens, self.cached_tokens,
                self.between_tokens,
            ):  # fmt: skip
                metric.remove_by_labels(gone)


class ServerGauges:
    """What this server is and how it stands; read from its memory as it is scraped."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.build = Gauge(
            "modiste_build_info", "Always 1; the labels say what runs.",
            ("version", "vllm", "base"), registry=registry,
        )  # fmt: skip
        self.ready = Gauge(
            "modiste_ready", "1 while the server takes requests: live adapters are proved, "
            "the engine runs, and no shutdown has begun.", registry=registry,
        )  # fmt: skip
        self.engine_up = Gauge(
            "modiste_engine_up", "0 once the engine has stopped.", registry=registry
        )
        self.aliases_not_served = Gauge(
            "modiste_aliases_not_served", "Aliases whose version could not be loaded and proved.",
            registry=registry,
        )  # fmt: skip
        self.connections = Gauge(
            "modiste_open_connections", "Connections that are open.", registry=registry
        )
        self.version_places = Gauge(
            "modiste_version_places", "Versions that may be loaded at once.", registry=registry
        )

    def follow(self, **reads: Callable[[], float]) -> None:
        """Read gauges, named as here, by functions that wait for nothing."""
        for name, read in reads.items():
            getattr(self, name).set_function(read)


class PlatformGauges:
    """What all servers on one database share, and this one's disk; looked up now and then."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.database_up = Gauge(
            "modiste_database_up", "1 while the database can be used.", registry=registry
        )
        self.jobs = Gauge(
            "modiste_jobs", "Fine-tuning jobs in the database, by status.", ("status",),
            registry=registry,
        )  # fmt: skip
        self.oldest_queued_job = Gauge(
            "modiste_oldest_queued_job_age_seconds",
            "How long the oldest queued job has waited; 0 where none waits.", registry=registry,
        )  # fmt: skip
        self.unattended_jobs = Gauge(
            "modiste_unattended_jobs", "Jobs at work whose worker gives no sign of life.",
            registry=registry,
        )  # fmt: skip
        self.batches = Gauge(
            "modiste_batches", "Batches in the database, by status.", ("status",),
            registry=registry,
        )  # fmt: skip
        self.open_batch_lines = Gauge(
            "modiste_open_batch_lines", "Lines of batches at work without an answer yet.",
            registry=registry,
        )  # fmt: skip
        self.late_batches = Gauge(
            "modiste_late_batches", "Batches past half of their window that will expire before "
            "their last line, at their pace so far.", registry=registry,
        )  # fmt: skip
        self.disk_free = Gauge(
            "modiste_disk_free_bytes", "Left on the disk of the home folder.", registry=registry
        )
        self.disk_size = Gauge(
            "modiste_disk_size_bytes", "Size of the disk of the home folder.", registry=registry
        )


class RoutingCollector(Collector):
    """`vllm:lora_requests_info` with one series, in the names that clients use.

    The Gateway API Inference Extension (proposal 003) routes by it; vLLM's own keeps
    a series for every combination of names that ever was.
    """

    def __init__(self, residency: ResidencyView, registry: CollectorRegistry = REGISTRY) -> None:
        self._residency = residency
        registry.register(self)

    def collect(self) -> Iterable[GaugeMetricFamily]:
        family = GaugeMetricFamily(
            "vllm:lora_requests_info",
            "Running and waiting adapters; the value is the time, seconds since 1970.",
            labels=("running_lora_adapters", "waiting_lora_adapters", "max_lora"),
        )
        running, waiting = self._residency.running(), self._residency.waiting()
        family.add_metric(
            [",".join(running), ",".join(waiting), str(self._residency.capacity)],
            time(),
        )
        yield family
