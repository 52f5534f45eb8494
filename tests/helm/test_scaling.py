"""Autoscaling: by metrics that the servers export, within the limits, and never to no server."""

import re
from typing import Any

import helm_python as helm
import pytest

from service.jobs.states import AT_WORK, QUEUED
from tests.helm.queries import named
from tests.helm.rendering import kinds, only, render
from tests.metrics import exported

APART: dict[str, Any] = {
    "database": {"existingSecret": "db"},
    "persistence": {"shared": False},
    "settings": {"store_url": "s3://m/store", "files_url": "s3://m/files"},
}
PROMETHEUS = {"address": "http://prometheus:9090"}
OF_THE_TARGET = {"namespace", "service", "pod"}
"""Labels that the operator's monitors give each series."""


def keda(**more: Any) -> dict[str, Any]:
    return {**APART, "autoscaling": {"kind": "keda", "prometheus": PROMETHEUS, **more}}


def with_workers(**more: Any) -> dict[str, Any]:
    scaling = {"worker": {"enabled": True, **more}, "prometheus": PROMETHEUS}
    return {**APART, "autoscaling": scaling, "worker": {"enabled": True, "jobs": 2}}


def triggers(values: dict[str, Any], component: str) -> dict[str, dict[str, Any]]:
    spec = only(render(values), "ScaledObject", component)["spec"]
    return {trigger["name"]: trigger for trigger in spec["triggers"]}


class TestQueries:
    @pytest.mark.parametrize("monitor", ["service", "pod"])
    def test_they_ask_for_what_the_servers_export(self, monitor: str) -> None:
        series = {name: set(m.labels) for m in exported() for name in m.series}
        values = with_workers() | {"monitoring": {"monitor": monitor}}
        values["autoscaling"] |= {"kind": "keda"}
        asked = [
            trigger["metadata"]["query"]
            for component in ("server", "worker")
            for trigger in triggers(values, component).values()
        ]

        assert len(asked) == 4
        for query in asked:
            [(metric, labels)] = named(query).metrics.items()
            assert metric in series, query
            own = series[metric] | ({"le"} if metric.endswith("_bucket") else set())
            assert labels <= own | OF_THE_TARGET, query
            assert named(query).grouped_by <= own

    def test_they_ask_for_this_release_alone(self) -> None:
        for trigger in triggers(keda(), "server").values():
            assert 'namespace="prod",service="demo-modiste"' in trigger["metadata"]["query"]
        chosen = keda(prometheus={**PROMETHEUS, "selector": 'app="mine"'})
        for trigger in triggers(chosen, "server").values():
            assert '{app="mine"' in trigger["metadata"]["query"]

    def test_jobs_at_work_hold_their_workers(self) -> None:
        query = triggers(with_workers(), "worker")["jobs"]["metadata"]["query"]
        [statuses] = re.findall(r'status=~"([^"]+)"', query)

        assert set(statuses.split("|")) == {QUEUED, *AT_WORK}


class TestKeda:
    def test_servers_follow_queue_time_and_running_requests(self) -> None:
        found = triggers(keda(queueSeconds=0.5, runningSequences=96), "server")

        assert found["queue-time"]["metadata"]["threshold"] == "0.5"
        assert found["queue-time"]["metricType"] == "Value"
        assert found["running"]["metadata"]["threshold"] == "96"
        assert found["running"]["metricType"] == "AverageValue"

    def test_one_server_stays(self) -> None:
        assert only(render(keda()), "ScaledObject")["spec"]["minReplicaCount"] == 1
        with pytest.raises(helm.HelmError, match="minReplicas"):
            render(keda(minReplicas=0))

    def test_workers_go_to_none_and_come_for_each_so_many_jobs(self) -> None:
        spec = only(render(with_workers(maxReplicas=5)), "ScaledObject", "worker")["spec"]

        assert (spec["minReplicaCount"], spec["maxReplicaCount"]) == (0, 5)
        assert spec["triggers"][0]["metadata"]["threshold"] == "2"
        assert "replicas" not in only(render(with_workers()), "Deployment", "worker")["spec"]

    def test_each_scales_its_own_workload(self) -> None:
        objects = render(with_workers() | {"autoscaling": {
            "kind": "keda", "prometheus": PROMETHEUS, "worker": {"enabled": True},
        }})  # fmt: skip
        for component in ("server", "worker"):
            target = only(objects, "ScaledObject", component)["spec"]["scaleTargetRef"]
            deployment = only(objects, "Deployment", component)
            assert target["name"] == deployment["metadata"]["name"]
            assert target["kind"] == "Deployment"


class TestHorizontalPodAutoscaler:
    def metrics(self, **scaling: Any) -> dict[str, str]:
        values = {**APART, "autoscaling": {"kind": "hpa", **scaling}}
        spec = only(render(values), "HorizontalPodAutoscaler")["spec"]
        return {
            m["pods"]["metric"]["name"]: m["pods"]["target"]["averageValue"]
            for m in spec["metrics"]
        }

    def test_its_metrics_are_gauges_of_the_servers(self) -> None:
        gauges = {metric.name for metric in exported() if metric.kind == "gauge"}

        assert self.metrics().keys() <= gauges
        assert self.metrics(runningSequences=33)["modiste_running_sequences"] == "33"

    def test_queue_time_is_one_more_where_the_adapter_has_it(self) -> None:
        assert self.metrics(queueTimeMetric="waits", queueSeconds=0.25)["waits"] == "250m"

    def test_pods_go_slowly(self) -> None:
        values = {**APART, "autoscaling": {"kind": "hpa", "scaleDownSeconds": 900}}
        behavior = only(render(values), "HorizontalPodAutoscaler")["spec"]["behavior"]

        assert behavior["scaleDown"]["stabilizationWindowSeconds"] == 900
        assert behavior["scaleUp"]["stabilizationWindowSeconds"] == 0


class TestBounds:
    def test_nothing_scales_until_asked_for(self) -> None:
        assert not {"HorizontalPodAutoscaler", "ScaledObject"} & kinds(render())

    def test_a_disruption_budget_comes_with_what_may_be_several(self) -> None:
        assert "PodDisruptionBudget" in kinds(render(keda(maxReplicas=2)))
        assert "PodDisruptionBudget" not in kinds(render(keda(maxReplicas=1)))

    @pytest.mark.parametrize(
        ("values", "told"),
        [
            (keda(minReplicas=5, maxReplicas=4), "minReplicas"),
            (keda(prometheus={"address": ""}), "prometheus.address"),
            (with_workers(minReplicas=9), "worker.minReplicas"),
            ({"autoscaling": {"worker": {"enabled": True}, "prometheus": PROMETHEUS}}, "no worker"),
            ({"autoscaling": {"kind": "hpa"}, "persistence": {"enabled": False}}, "persistence"),
        ],
    )
    def test_contradictions_are_refused_with_a_reason(
        self, values: dict[str, Any], told: str
    ) -> None:
        with pytest.raises(helm.HelmRenderError, match=told):
            render(values)
