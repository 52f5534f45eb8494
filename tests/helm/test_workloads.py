"""Servers, workers and the migration: where they run, how they are replaced, what they share."""

from typing import Any

import helm_python as helm
import pytest

from service.jobs.worker import main as worker_main
from tests.helm.rendering import (
    Objects,
    env,
    kinds,
    main_container,
    of_kind,
    only,
    pod,
    render,
    scenario,
    server,
    settings_file,
    templates,
)

DATABASE = {"existingSecret": "db"}
APART: dict[str, Any] = {
    "database": DATABASE,
    "persistence": {"shared": False},
    "settings": {"store_url": "s3://m/store", "files_url": "s3://m/files"},
}
WORKER = {"worker": {"enabled": True}}


def strategy(values: dict[str, Any]) -> dict[str, Any]:
    return dict(only(render(values), "Deployment", "server")["spec"]["strategy"])


class TestRollout:
    @pytest.mark.parametrize("gpus", [0, 1])
    def test_a_single_pod_leaves_before_the_next_starts(self, gpus: int) -> None:
        assert strategy({"gpu": {"count": gpus}}) == {"type": "Recreate"}

    @pytest.mark.parametrize(
        "values", [{"replicas": 3}, {**APART, "autoscaling": {"kind": "hpa", "minReplicas": 1}}]
    )
    def test_of_several_none_leaves_before_another_is_ready(self, values: dict[str, Any]) -> None:
        rolling = strategy(values)["rollingUpdate"]

        assert rolling == {"maxSurge": 1, "maxUnavailable": 0}

    def test_without_a_spare_gpu_one_leaves_first(self) -> None:
        rolling = strategy({"replicas": 3, "rollout": {"surge": 0}})["rollingUpdate"]

        assert rolling == {"maxSurge": 0, "maxUnavailable": 1}

    def test_a_pod_that_is_never_ready_keeps_no_node_from_being_drained(self) -> None:
        budget = only(render({"replicas": 2}), "PodDisruptionBudget")["spec"]

        assert budget["maxUnavailable"] == 1
        assert budget["unhealthyPodEvictionPolicy"] == "AlwaysAllow"

    def test_an_autoscaler_owns_the_number(self) -> None:
        values = {**APART, "autoscaling": {"kind": "hpa"}}

        assert "replicas" not in only(render(values), "Deployment")["spec"]
        assert only(render({"replicas": 3}), "Deployment")["spec"]["replicas"] == 3


class TestPlaces:
    def test_pods_that_may_part_are_spread_over_zones_and_nodes(self) -> None:
        objects = render({**APART, "replicas": 3})
        constraints = pod(objects)["topologySpreadConstraints"]
        labels = templates(objects)["server"]["metadata"]["labels"]

        keys = [constraint["topologyKey"] for constraint in constraints]
        assert keys == ["topology.kubernetes.io/zone", "kubernetes.io/hostname"]
        for constraint in constraints:
            assert constraint["whenUnsatisfiable"] == "ScheduleAnyway"
            assert constraint["labelSelector"]["matchLabels"].items() <= labels.items()

    def test_pods_that_share_a_node_are_not_spread(self) -> None:
        assert "topologySpreadConstraints" not in pod(render({"replicas": 3}))

    def test_constraints_of_the_values_take_that_place(self) -> None:
        own = [{"maxSkew": 2, "topologyKey": "rack", "whenUnsatisfiable": "DoNotSchedule"}]
        values = {**APART, "replicas": 3, "topologySpreadConstraints": own}

        assert pod(render(values))["topologySpreadConstraints"] == own

    def test_a_gpu_brings_its_runtime_class_and_a_pod_without_one_does_not(self) -> None:
        objects = render({"gpu": {"count": 1, "runtimeClassName": "nvidia"}, **WORKER})

        assert pod(objects)["runtimeClassName"] == "nvidia"
        assert "runtimeClassName" not in pod(objects, "worker")


class TestHome:
    def test_pods_of_their_own_volume_share_no_claim(self) -> None:
        objects = render({**APART, **WORKER, "replicas": 2})

        assert "PersistentVolumeClaim" not in kinds(objects)
        for component in ("server", "worker"):
            [home] = [v for v in pod(objects, component)["volumes"] if v["name"] == "home"]
            claim = home["ephemeral"]["volumeClaimTemplate"]["spec"]
            assert claim["accessModes"] == ["ReadWriteOnce"]
            assert claim["resources"]["requests"]["storage"] == "20Gi"
            assert "affinity" not in pod(objects, component)

    @pytest.mark.parametrize("missing", ["database", "store_url", "files_url"])
    def test_what_pods_with_a_volume_of_their_own_must_share_is_asked_for(
        self, missing: str
    ) -> None:
        values = {**APART, "settings": {k: v for k, v in APART["settings"].items() if k != missing}}
        if missing == "database":
            del values["database"]

        with pytest.raises(helm.HelmRenderError, match=rf"shared is false.*{missing}"):
            render(values)

    def test_a_claim_for_all_and_a_volume_for_each_contradict(self) -> None:
        values = {**APART, "persistence": {"shared": False, "existingClaim": "mine"}}

        with pytest.raises(helm.HelmRenderError, match="existingClaim"):
            render(values)


class TestWorker:
    def test_there_is_none_until_asked_for(self) -> None:
        assert "worker" not in templates(render())
        assert settings_file(render())["worker_jobs"] == 1

    def test_servers_leave_the_jobs_to_it(self) -> None:
        assert settings_file(render(WORKER))["worker_jobs"] == 0

    def test_the_command_takes_its_arguments(self, capsys: pytest.CaptureFixture[str]) -> None:
        values = {"worker": {"enabled": True, "jobs": 3, "graceSeconds": 77}}
        arguments = main_container(render(values), "worker")["args"]
        assert arguments[0] == "worker"
        assert arguments[1:5] == ["--jobs", "3", "--grace-s", "77"]

        with pytest.raises(SystemExit) as ended:
            worker_main([*arguments[1:], "--help"])
        assert ended.value.code == 0
        assert "unrecognized" not in capsys.readouterr().err

    def test_it_reads_the_settings_of_the_servers_and_no_keys(self) -> None:
        objects = render(WORKER)
        mounts = {
            m["name"]: m["mountPath"] for m in main_container(objects, "worker")["volumeMounts"]
        }

        assert mounts["config"] == "/var/lib/modiste/modiste.yaml"
        assert mounts["home"] == "/var/lib/modiste"
        assert "keys" not in mounts

    def test_it_has_resources_and_a_gpu_of_its_own(self) -> None:
        limits = {"cpu": "7", "memory": "70Gi"}
        worker = {"enabled": True, "gpuCount": 2, "resources": {"limits": limits}}
        container = main_container(render({"worker": worker}), "worker")

        assert container["resources"]["limits"] == {**limits, "nvidia.com/gpu": 2}
        assert container["image"].endswith("-gpu")
        assert "OMP_NUM_THREADS" not in env(container)
        assert "nvidia.com/gpu" not in server(render({"worker": worker}))["resources"]["limits"]

    def test_it_is_beside_the_servers_while_they_share_a_node(self) -> None:
        [term] = pod(render(WORKER), "worker")["affinity"]["podAffinity"][
            "requiredDuringSchedulingIgnoredDuringExecution"
        ]
        labels = templates(render(WORKER))["server"]["metadata"]["labels"]

        assert term["labelSelector"]["matchLabels"].items() <= labels.items()

    def test_it_outlives_the_way_of_its_jobs_to_their_next_step(self) -> None:
        spec = pod(render({"worker": {"enabled": True, "graceSeconds": 300}}), "worker")

        assert spec["terminationGracePeriodSeconds"] >= 310

    def test_it_is_restarted_when_its_sign_of_life_is_old(self) -> None:
        container = main_container(
            render({"worker": {"enabled": True, "stuckAfterMinutes": 45}}), "worker"
        )
        alive = container["args"][container["args"].index("--alive") + 1]

        assert container["startupProbe"]["exec"]["command"] == ["test", "-e", alive]
        assert f"find {alive} -mmin -45" in container["livenessProbe"]["exec"]["command"][-1]

    def test_a_worker_that_could_not_see_the_jobs_is_refused(self) -> None:
        with pytest.raises(helm.HelmRenderError, match=r"worker\.enabled"):
            render({**WORKER, "persistence": {"enabled": False}})


class TestMigration:
    def objects(self, **database: Any) -> Objects:
        return render({"database": database})

    def test_it_runs_before_pods_are_replaced_and_needs_nothing_of_the_release(self) -> None:
        objects = self.objects(existingSecret="db", secretKey="uri")
        job = only(objects, "Job")
        spec = job["spec"]["template"]["spec"]

        assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"
        assert "serviceAccountName" not in spec  # the chart's is made later
        assert {"config", "home"} & {v["name"] for v in spec["volumes"]} == set()
        [container] = spec["containers"]
        assert container["args"] == ["database", "upgrade"]
        source = env(container)["MODISTE_DATABASE_URL"]["valueFrom"]["secretKeyRef"]
        assert source == {"name": "db", "key": "uri"}

    def test_an_address_of_the_values_comes_in_a_secret_made_before_it(self) -> None:
        objects = self.objects(url="postgresql://db/x")
        job = only(objects, "Job")
        name = env(job["spec"]["template"]["spec"]["containers"][0])["MODISTE_DATABASE_URL"][
            "valueFrom"
        ]["secretKeyRef"]["name"]
        [secret] = [o for o in of_kind(objects, "Secret") if o["metadata"]["name"] == name]
        weights = [int(o["metadata"]["annotations"]["helm.sh/hook-weight"]) for o in (secret, job)]

        assert weights == sorted(weights)
        assert weights[0] < weights[1]
        assert "hook-succeeded" in secret["metadata"]["annotations"]["helm.sh/hook-delete-policy"]

    def test_there_is_none_without_a_database_or_against_the_values(self) -> None:
        assert "Job" not in kinds(render())
        assert "Job" not in kinds(self.objects(existingSecret="db", migration={"enabled": False}))

    def test_a_service_account_of_ones_own_is_there_and_used(self) -> None:
        values = {"database": DATABASE, "serviceAccount": {"create": False, "name": "mine"}}

        assert pod(render(values), "migration")["serviceAccountName"] == "mine"


class TestNetwork:
    def test_nobody_connects_to_a_worker(self) -> None:
        values = {**scenario("several-nodes"), **WORKER}
        objects = render(values)
        policy = only(objects, "NetworkPolicy", "worker")["spec"]

        assert policy["ingress"] == []
        assert policy["egress"] == values["networkPolicy"]["egress"]

    @pytest.mark.parametrize("name", ["store_url", "files_url"])
    def test_a_policy_that_shuts_the_store_out_is_refused(self, name: str) -> None:
        values = {"settings": {name: "s3://m/x"}, "networkPolicy": {"enabled": True}}

        with pytest.raises(helm.HelmRenderError, match=name):
            render(values)
