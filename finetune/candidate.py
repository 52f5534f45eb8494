"""A run's adapter measured by the engine that serves, before it is published.

The adapter, the base and the live version are put into a registry of their own, which a server is
started for. That server proves the adapter by its probe as any server would.
"""

import shutil
import time
from collections.abc import Callable, Mapping
from typing import Any

from adapters.probe import Probe
from adapters.registry import Registry
from adapters.transfer import import_own
from finetune.evaluate import Comparison, examined, report_of
from finetune.live import Live
from finetune.own_server import own_registry, serving
from finetune.publish import Trained, publish
from finetune.served import served_outcomes
from finetune.subjects import Told

_NOTHING: dict[str, Any] = {"metrics": {}, "live": None}
"""Of an evaluation that is still to come."""


def evaluate_candidate(
    registry: Registry,
    run: Trained,
    probe: Probe,
    live: Live | None,
    told: Mapping[str, Told],
    say: Callable[[str], Any],
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Measure a run's adapter, its base and the live version on a server that is started for it.

    The server's log is `engine.log` in the run's folder.

    Args:
        told: of each model, losses that the server doesn't tell.

    Returns:
        As `evaluate` does.

    Raises:
        IncompatibleAdapter: the adapter changes nothing, or the engine can't serve it.
        StoreFailed: the server did not start, or ended.
        InvalidInput: it refuses a request, or the proof of the adapter failed.
    """  # fmt: skip
    started = time.monotonic()
    recipe, base, place = run.recipe, run.base, run.folder / "engine"
    try:
        own = own_registry(registry.home, place, base)
        versions = {"adapter": publish(own, run, probe, _NOTHING)}
        if live is not None and live.version is not None:
            versions["live"] = import_own(own, live.version.folder)
        rows, outcomes = examined(recipe, run.prepared), {}
        if rows:
            with serving(own, base, run.folder / "engine.log", say) as url:
                outcomes = served_outcomes(url, base, recipe, rows, versions, told)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return report_of(Comparison(recipe, rows, outcomes, live), started)
