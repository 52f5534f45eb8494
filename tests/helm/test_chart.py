"""The chart renders, its objects are valid, and its pods are as restricted as promised."""

from typing import Any

import helm_python as helm
import kubernetes_validate
import pytest

from tests.helm.rendering import (
    CHART,
    SCENARIOS,
    Objects,
    all_containers,
    component_of,
    containers,
    kinds,
    only,
    pod,
    pod_specs,
    render,
    render_files,
    scenario,
    server,
    templates,
)
from tests.helm.schemas import CRDS, NEWEST_VERSIONS, problems

WITHOUT_PROBES = {
    "engine-node": "it listens nowhere, and starts again with its leader",
    "migration": "it ends", "loadtest": "it ends", "test": "it ends",
    "ray head": "KubeRay adds them", "ray worker": "KubeRay adds them",
}  # fmt: skip


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
        assert {item["kind"]: p for item in objects if (p := problems(item, version))} == {}

    def test_three_releases_are_looked_at(self) -> None:
        assert len(set(NEWEST_VERSIONS)) == 3

    def test_ours_and_the_validators_own_way_agree(self) -> None:
        for item in render():
            assert kubernetes_validate.validate(item, NEWEST_VERSIONS[-1], strict=True)

    def test_the_scenarios_have_every_custom_resource_that_the_chart_makes(self) -> None:
        made = {(o["apiVersion"], o["kind"]) for name in SCENARIOS for o in render(scenario(name))}

        assert made >= CRDS.keys()

    def test_each_template_makes_objects_of_one_kind_at_most(self) -> None:
        for name in SCENARIOS:
            for path, objects in render_files(scenario(name)).items():
                assert len(kinds(objects)) <= 1, path

    def test_no_two_objects_share_a_kind_and_a_name(self, objects: Objects) -> None:
        names = [(o["kind"], o["metadata"]["name"]) for o in objects]

        assert len(set(names)) == len(names)

    def test_names_stay_legal_under_the_longest_release_name(self) -> None:
        for name in ("defaults", "ray", "multi-node", "load-test", "autoscaled-hpa"):
            for item in render(scenario(name), release="r" * 53):
                assert len(item["metadata"]["name"]) <= 63
                # KubeRay makes a Service NAME-head-svc, and cuts what is longer
                assert item["kind"] != "RayCluster" or len(item["metadata"]["name"]) <= 41

    def test_selectors_match_the_pods_of_their_component_alone(self, objects: Objects) -> None:
        labels = {name: t["metadata"]["labels"] for name, t in templates(objects).items()}
        for item in objects:
            for selector in _selectors(item):
                matched = {
                    name.split()[0] for name in labels if selector.items() <= labels[name].items()
                }
                assert matched == {component_of(item)}, item["metadata"]["name"]


def _selectors(item: dict[str, Any]) -> list[dict[str, str]]:
    """By which an object chooses its pods."""
    spec = item.get("spec", {})
    if item["kind"] == "Service":
        return [spec["selector"]]
    if item["kind"] == "NetworkPolicy":
        return [spec["podSelector"]["matchLabels"]]
    if item["kind"] in ("Deployment", "PodDisruptionBudget", "InferencePool", "PodMonitor"):
        return [spec["selector"]["matchLabels"]]
    return []


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
        for spec in pod_specs(objects):
            for container in all_containers(spec):
                mounts = [m for m in container["volumeMounts"] if not m.get("readOnly")]
                writable = {m["mountPath"] for m in mounts}
                assert writable <= {"/var/lib/modiste", "/tmp", "/dev/shm"}
            for volume in spec["volumes"]:
                assert "sizeLimit" in volume.get("emptyDir", {"sizeLimit": None}), volume["name"]
        spec = pod(objects)
        for container in all_containers(spec):
            mounts = [m for m in container["volumeMounts"] if not m.get("readOnly")]
            assert len(mounts) == 3
        memory = [v["emptyDir"] for v in spec["volumes"] if v["name"] == "shared-memory"]
        assert memory[0]["medium"] == "Memory"
        assert "sizeLimit" in memory[0]

    def test_no_pod_reaches_into_its_node(self, objects: Objects) -> None:
        allowed = {"configMap", "secret", "emptyDir", "persistentVolumeClaim", "ephemeral"}
        for spec in pod_specs(objects):
            assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
            for volume in spec["volumes"]:
                assert volume.keys() - {"name"} <= allowed, volume["name"]
            for container in all_containers(spec):
                assert not any("hostPort" in port for port in container.get("ports", []))

    def test_nothing_asks_for_rights_in_the_cluster(self, objects: Objects) -> None:
        rights = {"Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding"}

        assert not rights & kinds(objects)

    def test_every_mount_has_its_volume(self, objects: Objects) -> None:
        for spec in pod_specs(objects):
            volumes = {v["name"] for v in spec["volumes"]}
            for container in all_containers(spec):
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

    def test_every_container_that_goes_on_has_all_three_probes(self, objects: Objects) -> None:
        for name, template in templates(objects).items():
            if name in WITHOUT_PROBES:
                continue
            for container in template["spec"]["containers"]:
                assert {"startupProbe", "readinessProbe", "livenessProbe"} <= container.keys(), name

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
        if "LeaderWorkerSet" not in kinds(objects):
            deployment = only(objects, "Deployment", "server")
            assert deployment["spec"]["progressDeadlineSeconds"] > allowed_s

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
        spec = pod(objects)

        assert server(objects)["lifecycle"]["preStop"] == {"sleep": {"seconds": 7}}
        assert spec["terminationGracePeriodSeconds"] >= 7 + grace_s + 10
