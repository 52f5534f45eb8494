"""What the values become: settings and keys of the server, and restarts when they change."""

import base64
import json
from pathlib import Path
from typing import Any

import helm_python as helm
import pytest
import yaml

from service.settings import Settings
from tests.helm.rendering import (
    CHART,
    KEY,
    Objects,
    containers,
    env,
    kinds,
    of_kind,
    only,
    pod,
    pod_annotations,
    render,
    server,
    settings_file,
)

CLEAR_TEXT_OBJECTS = {"Deployment", "Pod", "ConfigMap", "Service", "Ingress", "NetworkPolicy"}


class TestSettings:
    def test_the_server_accepts_what_the_chart_writes(self, objects: Objects) -> None:
        settings = Settings.model_validate(settings_file(objects))

        assert settings.host == "0.0.0.0"
        assert settings.port == server(objects)["ports"][0]["containerPort"]

    def test_values_reach_the_file_with_their_types(self) -> None:
        values = {
            "max_model_len": 1_048_576, "vllm_args": ["--seed", "0"], "shutdown_grace_s": 0,
            "queue_wait_s": 2.5, "project_weights": {"search": 3},
        }  # fmt: skip

        assert values.items() <= settings_file(render({"settings": values})).items()

    def test_a_store_elsewhere_reaches_the_file_and_credentials_in_it_are_refused(self) -> None:
        settings = {"store_url": "s3://models/modiste", "store_cache_gib": 20}
        assert settings.items() <= settings_file(render({"settings": settings})).items()

        for url in ("s3://id:secret@models", "s3://id:se/cret@models", "sftp://me:secret@host/p"):
            with pytest.raises(helm.HelmError, match="store_url"):
                render({"settings": {"store_url": url}})

    def test_what_is_null_is_left_to_the_server(self) -> None:
        written = settings_file(render())

        assert not {"max_model_len", "max_lora_rank", "kv_cache_gib"} & written.keys()

    def test_the_charts_defaults_are_the_servers(self) -> None:
        defaults = yaml.safe_load((CHART / "values.yaml").read_text())["settings"]
        fields = Settings.model_fields

        assert {k: v for k, v in defaults.items() if v != fields[k].default} == {}

    def test_the_base_is_added_before_it_is_served(self) -> None:
        objects = render({"base": {"source": "/models/tiny", "name": "tiny"}})
        [init] = pod(objects)["initContainers"]

        assert init["args"] == ["base", "add", "/models/tiny", "--name", "tiny", "--if-missing"]
        assert settings_file(objects)["base"] == "tiny"

    def test_no_source_means_no_init_container(self) -> None:
        spec = pod(render({"base": {"source": ""}}))

        assert "initContainers" not in spec

    def test_a_changed_setting_restarts_the_pods(self) -> None:
        before = pod_annotations({"auth": {"keys": [KEY]}})
        after = pod_annotations({"auth": {"keys": [KEY]}, "settings": {"max_loras": 9}})

        assert before["checksum/config"] != after["checksum/config"]
        assert before["checksum/keys"] == after["checksum/keys"]

    def test_a_changed_key_restarts_the_pods(self) -> None:
        before = pod_annotations({"auth": {"keys": [KEY]}})
        after = pod_annotations({"auth": {"keys": [KEY, KEY[::-1]]}})

        assert before["checksum/keys"] != after["checksum/keys"]
        assert before["checksum/config"] == after["checksum/config"]

    def test_the_same_values_restart_nothing(self) -> None:
        values = {"auth": {"keys": [KEY]}}

        assert render(values) == render(values)


class TestKeys:
    def test_keys_are_in_the_secret_and_nowhere_else(self) -> None:
        objects = render({"auth": {"keys": [KEY, KEY[::-1]]}})
        secret = only(objects, "Secret")

        assert base64.b64decode(secret["data"]["api-keys"]).decode().split() == [KEY, KEY[::-1]]
        others = json.dumps([o for o in objects if o["kind"] in CLEAR_TEXT_OBJECTS])
        assert KEY not in others
        assert base64.b64encode(KEY.encode()).decode() not in others

    def test_no_key_reaches_an_environment(self, objects: Objects) -> None:
        for container in containers(objects):
            for variable in container["env"]:
                from_secret = "secretKeyRef" in variable.get("valueFrom", {})
                assert not from_secret or variable["name"] == "MODISTE_DATABASE_URL"

    def test_without_keys_one_is_made_that_the_server_accepts(self, tmp_path: Path) -> None:
        key = base64.b64decode(only(render(), "Secret")["data"]["api-keys"])
        (tmp_path / "keys").write_bytes(key)

        assert len(Settings(api_keys_file=tmp_path / "keys").keys()) == 1
        assert key != base64.b64decode(only(render(), "Secret")["data"]["api-keys"])

    def test_the_made_key_is_the_one_that_the_pods_were_started_with(self) -> None:
        with helm.Chart.load(CHART) as chart:
            manifests = chart.render({}, name="demo")
        deployment = yaml.safe_load(manifests["modiste/templates/deployment.yaml"])
        secret = yaml.safe_load(manifests["modiste/templates/secret.yaml"])
        key = base64.b64decode(secret["data"]["api-keys"]).decode()

        annotations = pod_annotations({"auth": {"keys": [key]}})
        made = deployment["spec"]["template"]["metadata"]["annotations"]
        assert made["checksum/keys"] == annotations["checksum/keys"]

    def test_a_secret_of_ones_own_is_mounted_and_none_is_made(self) -> None:
        objects = render({"auth": {"existingSecret": "callers", "secretKey": "keys"}})
        volumes = pod(objects)["volumes"]
        [keys] = [v["secret"] for v in volumes if v["name"] == "keys"]

        assert "Secret" not in kinds(objects)
        assert keys["secretName"] == "callers"
        assert keys["items"] == [{"key": "keys", "path": "api-keys"}]

    def test_the_server_reads_keys_from_the_mounted_file(self, objects: Objects) -> None:
        mounts = {m["name"]: m["mountPath"] for m in server(objects)["volumeMounts"]}

        assert settings_file(objects)["api_keys_file"] == f"{mounts['keys']}/api-keys"

    def test_anonymous_use_must_be_allowed_in_so_many_words(self) -> None:
        with pytest.raises(helm.HelmRenderError, match="allowAnonymous=true"):
            render({"auth": {"enabled": False}})

        objects = render({"auth": {"enabled": False, "allowAnonymous": True}})
        assert settings_file(objects)["allow_anonymous"] is True
        assert "api_keys_file" not in settings_file(objects)
        assert "Secret" not in kinds(objects)


class TestDatabase:
    def test_its_address_comes_from_the_secret_to_server_and_init_container(self) -> None:
        objects = render({"database": {"existingSecret": "db", "secretKey": "uri"}})
        [init] = pod(objects)["initContainers"]

        for container in (init, server(objects)):
            source = env(container)["MODISTE_DATABASE_URL"]["valueFrom"]
            assert source == {"secretKeyRef": {"name": "db", "key": "uri"}}

    def test_without_a_secret_the_homes_own_is_used(self) -> None:
        assert "MODISTE_DATABASE_URL" not in {v["name"] for v in server(render())["env"]}
        assert "Job" not in kinds(render())

    def test_an_address_of_the_values_is_in_secrets_and_nowhere_else(self) -> None:
        address = "postgresql://me:hunter2@db/modiste"
        objects = render({"database": {"url": address}, "worker": {"enabled": True}})
        secrets = [o for o in of_kind(objects, "Secret") if "database-url" in o["data"]]

        for secret in secrets:
            assert base64.b64decode(secret["data"]["database-url"]).decode() == address
        names = {secret["metadata"]["name"] for secret in secrets}
        for container in containers(objects):
            source = env(container).get("MODISTE_DATABASE_URL")
            assert source is None or source["valueFrom"]["secretKeyRef"]["name"] in names
        assert "hunter2" not in json.dumps([o for o in objects if o["kind"] != "Secret"])

    def test_a_changed_address_restarts_servers_and_workers(self) -> None:
        for component in ("server", "worker"):
            before, after = (
                pod_annotations({"database": {"url": url}, "worker": {"enabled": True}}, component)[
                    "checksum/database"
                ]
                for url in ("postgresql://db/a", "postgresql://db/b")
            )
            assert before != after

    @pytest.mark.parametrize(
        ("values", "together"),
        [
            ({}, True),
            ({"database": {"existingSecret": "db"}}, True),
            ({"persistence": {"accessModes": ["ReadWriteMany"]}}, True),
            (
                {
                    "database": {"existingSecret": "db"},
                    "persistence": {"accessModes": ["ReadWriteMany"]},
                },
                False,
            ),
        ],
    )
    def test_replicas_part_only_with_a_database_and_a_volume_for_all_nodes(
        self, values: dict[str, Any], together: bool
    ) -> None:
        objects = render({"replicas": 2, **values})
        spec = pod(objects)

        assert ("affinity" in spec) == together

    def test_a_network_policy_that_shuts_it_out_is_refused(self) -> None:
        with pytest.raises(helm.HelmRenderError, match="could not reach the database"):
            render({"database": {"existingSecret": "db"}, "networkPolicy": {"enabled": True}})
