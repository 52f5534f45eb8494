"""What the server exports of its own, read from its code."""

from typing import NamedTuple

from prometheus_client import CollectorRegistry

from service.telemetry import Metrics, RoutingCollector


class Exported(NamedTuple):
    """A metric as Prometheus names it."""

    name: str
    labels: tuple[str, ...]
    help: str
    kind: str

    @property
    def series(self) -> set[str]:
        """The names of its series."""
        if self.kind == "histogram":
            return {f"{self.name}_{part}" for part in ("bucket", "sum", "count")}
        return {self.name}


class _NoAdapters:
    capacity = 1

    def running(self) -> list[str]:
        return []

    waiting = running


def exported() -> list[Exported]:
    """All metrics of a server; vLLM's are not among them."""
    registry = CollectorRegistry()
    Metrics(registry)
    own = [
        Exported(
            family.name + ("_total" if family.type == "counter" else ""),
            registry._names_to_collectors[family.name]._labelnames,  # type: ignore[attr-defined]
            family.documentation, family.type,
        )
        for family in registry.collect()
    ]  # fmt: skip
    (routing,) = RoutingCollector(_NoAdapters(), CollectorRegistry()).collect()
    (sample,) = routing.samples
    return [*own, Exported(routing.name, tuple(sample.labels), routing.documentation, routing.type)]
