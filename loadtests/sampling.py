"""What the server says of itself while it is loaded: a few figures of /metrics, now and then."""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

SUMMED = {
    "vllm:num_requests_running": "running",
    "vllm:num_requests_waiting": "waiting",
    "vllm:kv_cache_usage_perc": "kv_usage",
    "vllm:num_preemptions_total": "preemptions",
    "vllm:prefix_cache_queries_total": "prefix_queries",
    "vllm:prefix_cache_hits_total": "prefix_hits",
    "vllm:request_queue_time_seconds_sum": "engine_queue_s",
    "vllm:request_queue_time_seconds_count": "engine_queue_requests",
    "modiste_queue_seconds_sum": "queue_s",
    "modiste_queue_seconds_count": "queue_requests",
    "modiste_queued_requests": "queued",
    "modiste_resident_versions": "resident_versions",
    "modiste_version_places": "version_places",
    "modiste_version_misses_total": "version_misses",
    "modiste_version_evictions_total": "version_evictions",
    "process_cpu_seconds_total": "cpu_s",
}
"""Names of Prometheus, and ours. Series that differ in labels alone are added up."""
_ADAPTERS = "vllm:lora_requests_info"
_LABEL = re.compile(r'(\w+)="([^"]*)"')


@dataclass(frozen=True)
class Sample:
    """The figures of one moment; those that the server doesn't have are missing."""

    at_s: float
    values: dict[str, float]


def read_metrics(page: str) -> dict[str, float]:
    """The figures of a page in Prometheus' text format."""
    values: dict[str, float] = {}
    newest = 0.0
    for line in page.splitlines():
        if line.startswith("#"):
            continue
        series, _, value = line.rpartition(" ")
        name, _, labels = series.partition("{")
        key = SUMMED.get(name)
        try:
            if key is not None:
                # batches and evaluations wait by intention
                if name.startswith("modiste_queue_seconds") and '"interactive"' not in labels:
                    continue
                values[key] = values.get(key, 0.0) + float(value)
            elif name == _ADAPTERS and float(value) >= newest:
                newest = float(value)
                values |= _adapters(dict(_LABEL.findall(labels)))
        except ValueError:
            continue
    return values


def _adapters(labels: dict[str, str]) -> dict[str, float]:
    """vLLM tells of adapters in labels: names with commas, and the slots."""
    counts = {
        f"adapters_{state}": float(len([name for name in names.split(",") if name]))
        for state in ("running", "waiting")
        if (names := labels.get(f"{state}_lora_adapters")) is not None
    }
    return counts | {"adapter_slots": float(labels.get("max_lora") or 0)}


def write_samples(path: Path, samples: Iterable[Sample]) -> None:
    """One JSON object a line."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(asdict(sample)) + "\n" for sample in samples)


def read_samples(path: Path) -> list[Sample]:
    """What write_samples wrote; none where there is no file."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8") as file:
        return [Sample(**json.loads(line)) for line in file]


def growth(samples: Sequence[Sample], name: str) -> float | None:
    """By how much a counter grew; None where it isn't told."""
    values = [sample.values[name] for sample in samples if name in sample.values]
    if len(values) < 2:
        return None
    return max(0.0, values[-1] - values[0])  # a server that began anew counts from 0


def ratio(samples: Sequence[Sample], part: str, whole: str) -> float | None:
    """Growth of one counter over that of another."""
    top, bottom = growth(samples, part), growth(samples, whole)
    return top / bottom if top is not None and bottom else None


def mean(samples: Sequence[Sample], name: str) -> float | None:
    """Of a gauge."""
    values = [sample.values[name] for sample in samples if name in sample.values]
    return fmean(values) if values else None


def queue_time_ms(samples: Sequence[Sample]) -> float | None:
    """Mean wait before and within the engine, of the requests that were let in."""
    before = ratio(samples, "queue_s", "queue_requests")
    within = ratio(samples, "engine_queue_s", "engine_queue_requests")
    waits = [wait for wait in (before, within) if wait is not None]
    return sum(waits) * 1000 if waits else None


def cpu_cores(samples: Sequence[Sample]) -> float | None:
    """Cores that the API process used."""
    used = growth(samples, "cpu_s")
    times = [sample.at_s for sample in samples if "cpu_s" in sample.values]
    return used / (times[-1] - times[0]) if used is not None and times[-1] > times[0] else None
