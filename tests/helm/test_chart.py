"""The chart renders, its objects are valid, and its pods are as restricted as promised."""

import helm_python as helm
import kubernetes_validate
import pytest
import yaml
from kubernetes_validate.utils import all_versions

from tests.helm.rendering import (
    CHART,
    SCENARIOS,
    Objects,
    containers,
    only,
    pod_specs,
    render,
    scenario,
    server,
)

NEWEST_VERSIONS = all_versions()[-3:]


class TestValidity:
    @pytest.mark.parametrize("name", SCENARIOS)
    def test_helm_lint_finds_nothing_above_a_recommendation(self, name: str) -> None:
        report = helm.lint(CHART, scenario(name), strict=True)

        assert report["errors"] == []
        assert [m for m in report["messages"] if m["severity"] > 1] == []

    @pytest.mark.parametrize("version", NEWEST_VERSIONS)
    def test_every_object_is_valid_in_the_newest_kubernetes(
        self, objects: Objects, version: str
    ) -> None:
        for item in objects:
            assert kubernetes_validate.validate(item, version, strict=True) in version

    def test_each_template_makes_one_object_at_most(self) -> None:
        with helm.Chart.load(CHART) as chart:
            for name in SCENARIOS:
                for path, text in chart.render(scenario(name), name="demo").items():
                    if path.endswith(".yaml"):
                        assert len([d for d in yaml.safe_load_all(text) if d]) <= 1, path

    def test_no_two_objects_share_a_kind_and_a_name(self, objects: Objects) -> None:
        names = [(o["kind"], o["metadata"]["name"]) for o in objects]

        assert len(set(names)) == len(names)

    def test_names_stay_legal_under_the_longest_release_name(self) -> None:
        for item in render(release="r" * 53):
            assert len(item["metadata"]["name"]) <= 63

    def test_selectors_match_the_servers_pods_and_not_the_test_pod(self) -> None:
        objects = render({"replicas": 2, "networkPolicy": {"enabled": True}})
        labels = only(objects, "Deployment")["spec"]["template"]["metadata"]["labels"]
        selectors = [
            only(objects, "Deployment")["spec"]["selector"]["matchLabels"],
            only(objects, "Service")["spec"]["selector"],
            only(objects, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
            only(objects, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
        ]

        for selector in selectors:
            assert selector.items() <= labels.items()
            assert not selector.items() <= only(objects, "Pod")["metadata"]["labels"].items()


class TestPolicy:
    def test_no_container_runs_as_root(self, objects: Objects) -> None:
        for spec in pod_specs(objects):
            assert spec["securityContext"]["runAsNonRoot"] is True
            assert spec["securityContext"]["runAsUser"] >= 10000
            assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}

    def test_every_container_is_restricted(self, objects: Objects) -> None:
        for container in containers(objects):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "runAsNonRoot": True,
                "capabilities": {"drop": ["ALL"]},
            }

    def test_what_must_be_written_lies_on_volumes(self, objects: Objects) -> None:
        spec = only(objects, "Deployment")["spec"]["template"]["spec"]
        for container in spec.get("initContainers", []) + spec["containers"]:
            writable = {m["mountPath"] for m in container["volumeMounts"] if not m.get("readOnly")}
            assert writable == {"/var/lib/modiste", "/tmp", "/dev/shm"}
        memory = [v["emptyDir"] for v in spec["volumes"] if v["name"] == "shared-memory"]
        assert memory[0]["medium"] == "Memory"
        assert "sizeLimit" in memory[0]

    def test_every_mount_has_its_volume(self, objects: Objects) -> None:
        for spec in pod_specs(objects):
            volumes = {v["name"] for v in spec["volumes"]}
            for container in spec.get("initContainers", []) + spec["containers"]:
                assert {m["name"] for m in container["volumeMounts"]} <= volumes

    def test_no_image_is_latest_or_without_a_tag(self, objects: Objects) -> None:
        for container in containers(objects):
            name = container["image"].rpartition("/")[2]
            assert ":" in name
            assert not name.endswith(":latest")

    def test_every_container_has_requests_and_limits(self, objects: Objects) -> None:
        for container in containers(objects):
            for side in ("requests", "limits"):
                assert {"cpu", "memory"} <= set(container["resources"][side])

    def test_the_server_has_all_three_probes(self, objects: Objects) -> None:
        container = server(objects)
        ports = {p["name"] for p in container["ports"]}
        paths = {"startup": "live", "readiness": "ready", "liveness": "live"}

        for probe, path in paths.items():
            assert container[f"{probe}Probe"]["httpGet"]["path"] == f"/health/{path}"
            assert container[f"{probe}Probe"]["httpGet"]["port"] in ports

    def test_a_large_model_has_half_an_hour_to_load(self, objects: Objects) -> None:
        probe = server(objects)["startupProbe"]
        allowed_s = probe["periodSeconds"] * probe["failureThreshold"]

        assert allowed_s >= 1800
        assert only(objects, "Deployment")["spec"]["progressDeadlineSeconds"] > allowed_s

    def test_no_service_account_token_is_mounted(self, objects: Objects) -> None:
        for spec in pod_specs(objects):
            assert spec["automountServiceAccountToken"] is False
        for account in [o for o in objects if o["kind"] == "ServiceAccount"]:
            assert account["automountServiceAccountToken"] is False

    def test_no_service_variable_can_be_read_as_a_setting(self, objects: Objects) -> None:
        for spec in pod_specs(objects):
            assert spec["enableServiceLinks"] is False

    @pytest.mark.parametrize("grace_s", [0, 30, 600])
    def test_the_pod_outlives_the_servers_drain(self, grace_s: int) -> None:
        objects = render({"settings": {"shutdown_grace_s": grace_s}, "preStopSeconds": 7})
        spec = only(objects, "Deployment")["spec"]["template"]["spec"]

        assert server(objects)["lifecycle"]["preStop"] == {"sleep": {"seconds": 7}}
        assert spec["terminationGracePeriodSeconds"] >= 7 + grace_s + 10
