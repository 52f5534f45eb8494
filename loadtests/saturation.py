"""What a server runs out of first, by its own figures, and what to change."""

from collections.abc import Sequence
from dataclasses import dataclass

from loadtests.outcomes import requests
from loadtests.run import Result
from loadtests.sampling import Sample, cpu_cores, growth, mean


@dataclass(frozen=True)
class Resource:
    """Something that can run out: from which level on it counts as full, and what helps."""

    name: str
    full: float
    advice: str


GENERATOR = Resource(
    "the load generator",
    1.0,
    "the limit found is its own: give it more processes (--workers) or a machine of its own",
)
KV_CACHE = Resource(
    "KV cache",
    0.9,
    "more of it (kv_cache_gib on CPU, vLLM's --gpu-memory-utilization or --kv-cache-dtype fp8 "
    "on GPU), shorter answers, or another replica",
)
SLOTS = Resource("adapter slots", 0.5, "raise max_loras: more adapters in one step")
PLACES = Resource(
    "places for adapters",
    0.05,
    "raise max_resident_versions: adapters are unloaded and loaded again",
)
API_CPU = Resource(
    "CPU of the API process",
    0.9,
    "another replica: the engine waits for its front end; fewer, longer lists also help",
)
SEQUENCES = Resource(
    "sequences",
    0.5,
    "raise max_running_sequences and vLLM's --max-num-seqs where times allow: memory is left",
)
PACE = Resource(
    "the engine's pace",
    0.0,
    "nothing is full, its steps take too long: faster hardware, a smaller or quantised base, "
    "shorter prompts and answers, or another replica",
)
UNKNOWN = Resource(
    "unknown: the server has no /metrics",
    0.0,
    "look at the server itself, and leave --sample-s above 0",
)
ORDER = (GENERATOR, KV_CACHE, SLOTS, PLACES, API_CPU, SEQUENCES)
"""Where several are full, an earlier one explains a later: a full cache makes sequences wait."""


def levels(result: Result) -> dict[Resource, float]:
    """How full each resource was during a run; what the server doesn't tell of is missing."""
    warmup_s, length_s = result.scenario.warmup_s, result.scenario.length_s
    samples = [sample for sample in result.samples if warmup_s <= sample.at_s <= length_s]
    sent = requests(result.outcomes)
    late_ms = result.scenario.schedule.late_ms
    late = sum(outcome.late_ms > late_ms for outcome in sent) / len(sent) if sent else 0.0
    found: dict[Resource, float | None] = {
        GENERATOR: late / result.scenario.schedule.late_ratio
        if result.scenario.schedule.late_ratio
        else float(late > 0),
        KV_CACHE: 1.0 if growth(samples, "preemptions") else mean(samples, "kv_usage"),
        SLOTS: _share(samples, "adapters_waiting"),
        PLACES: _per_request(samples, len(sent)),
        API_CPU: cpu_cores(samples),
        SEQUENCES: _share(samples, "waiting", "queued"),
    }
    return {resource: level for resource, level in found.items() if level is not None}


def _share(samples: Sequence[Sample], *names: str) -> float | None:
    """Of the moments, those in which one of the gauges was not 0."""
    told = [sample.values for sample in samples if any(name in sample.values for name in names)]
    if not told:
        return None
    return sum(any(values.get(name, 0) > 0 for name in names) for values in told) / len(told)


def _per_request(samples: Sequence[Sample], sent: int) -> float | None:
    evictions = growth(samples, "version_evictions")
    return evictions / sent if evictions is not None and sent else None


def first_full(runs: Sequence[Result]) -> Resource:
    """What is full in the run of the lowest rate in which anything is."""
    ordered = sorted(runs, key=lambda run: run.scenario.stages[0].rate_per_s)
    for run in ordered:
        found = levels(run)
        for resource in ORDER:
            if found.get(resource, 0.0) >= resource.full:
                return resource
    return PACE if any(run.samples for run in runs) else UNKNOWN
