"""The validator of the tests beside this file finds what a cluster would refuse."""

import copy
from collections.abc import Callable
from typing import Any

import pytest

from tests.helm.rendering import only, render, scenario
from tests.helm.schemas import CRDS, NEWEST_VERSIONS, problems

NEWEST = NEWEST_VERSIONS[-1]


def spec_of(item: dict[str, Any], *path: str | int) -> Any:
    found: Any = item["spec"]
    for key in path:
        found = found[key]
    return found


WRONG: dict[str, tuple[str, str, Callable[[dict[str, Any]], object]]] = {
    "an unknown field of Kubernetes' own": (
        "defaults", "Deployment", lambda o: spec_of(o).update(replica=1),
    ),
    "a wrong type of Kubernetes' own": (
        "defaults", "Service", lambda o: spec_of(o, "ports", 0).update(port="http"),
    ),
    "an unknown field of a custom resource": (
        "gateway-small-base", "HTTPRoute", lambda o: spec_of(o, "rules", 0).update(timeout="1s"),
    ),
    "a value that a custom resource does not know": (
        "gateway-large-base", "InferencePool",
        lambda o: spec_of(o, "endpointPickerRef").update(failureMode="Open"),
    ),
    "a missing field of a custom resource": (
        "autoscaled", "ScaledObject", lambda o: spec_of(o, "triggers", 0).pop("metadata"),
    ),
    "a number where a custom resource wants text": (
        "autoscaled", "ScaledObject",
        lambda o: spec_of(o, "triggers", 0, "metadata").update(threshold=1),
    ),
    "an unknown field of a pod inside a custom resource": (
        "multi-node", "LeaderWorkerSet",
        lambda o: spec_of(o, "leaderWorkerTemplate", "workerTemplate", "spec").update(nodes={}),
    ),
    "a container without a name inside a custom resource": (
        "ray", "RayCluster",
        lambda o: spec_of(o, "headGroupSpec", "template", "spec", "containers", 0).pop("name"),
    ),
    "a behavior that an autoscaler does not know": (
        "autoscaled", "ScaledObject",
        lambda o: spec_of(o, "advanced", "horizontalPodAutoscalerConfig", "behavior").update(up={}),
    ),
    "a label that is no text": (
        "autoscaled", "ServiceMonitor", lambda o: o["metadata"]["labels"].update(release=1),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG.values(), ids=WRONG)
def test_what_a_cluster_would_refuse_is_found(
    case: tuple[str, str, Callable[[dict[str, Any]], object]],
) -> None:
    name, kind, spoil = case
    objects = [o for o in render(scenario(name)) if o["kind"] == kind]
    item = copy.deepcopy(objects[-1])
    assert problems(item, NEWEST) == []

    spoil(item)
    assert problems(item, NEWEST) != []


def test_the_place_of_what_is_wrong_is_told() -> None:
    service = only(render(), "Service")
    service["spec"]["ports"][0]["port"] = "http"

    [problem] = problems(service, NEWEST)
    assert problem.startswith("$.spec.ports[0].port: ")


def test_every_schema_names_its_source_and_version() -> None:
    for crd in CRDS.values():
        assert crd["version"]
        assert crd["source"].startswith(("https://github.com/", "npm "))
