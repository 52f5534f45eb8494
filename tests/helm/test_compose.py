"""The Compose file: valid, hardened, and agreed with the image, the settings and the dashboard."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jsonschema
import pytest
import yaml

from adapters.home import Home
from service.settings import Settings
from service.settings_sources import load_settings
from tests.adapters.remotes import s3_client, s3_server
from tests.helm.rendering import CHART

ROOT = CHART.parent
FOLDER = CHART / "compose"
SCHEMA = json.loads((Path(__file__).parent / "compose-spec.json").read_text())
VARIABLE = re.compile(r"\$\{(\w+)(?::([-?])([^}]*))?\}")
DOCKERFILE = (ROOT / "Dockerfile").read_text()
FILES = {"cpu": ["compose.yaml"], "gpu": ["compose.yaml", "compose.gpu.yaml"]}
SECRETS = {
    "POSTGRES_PASSWORD": "p" * 24, "MINIO_PASSWORD": "m" * 24, "GRAFANA_PASSWORD": "g" * 24,
    "MODISTE_API_KEYS": f"{'k' * 24} {'l' * 24}",
}  # fmt: skip
ENDS_S = 12
"""After the grace a server ends within so long (docs/deployment.md)."""


def filled(text: str, values: dict[str, str]) -> str:
    """As Compose puts variables in."""

    def value(match: re.Match[str]) -> str:
        name, kind, rest = match.groups()
        if name in values:
            return values[name]
        assert kind == "-", f"{name} has no value: {rest}"
        return str(rest)

    return VARIABLE.sub(value, text)


def merged(under: Any, over: Any) -> Any:
    """As Compose lays a file over another, for what ours have: lists don't meet."""
    if isinstance(under, dict) and isinstance(over, dict):
        both = {key: merged(under[key], over[key]) for key in under.keys() & over.keys()}
        return {**under, **over, **both}
    return over


def composed(names: list[str]) -> dict[str, Any]:
    document: dict[str, Any] = {}
    for name in names:
        text = filled((FOLDER / name).read_text(), SECRETS)
        document = merged(document, yaml.safe_load(text))
    return document


@pytest.fixture(params=sorted(FILES))
def services(request: pytest.FixtureRequest) -> dict[str, Any]:
    found: dict[str, Any] = composed(FILES[request.param])["services"]
    return found


def ours(services: dict[str, Any]) -> dict[str, Any]:
    return {n: s for n, s in services.items() if s["image"].startswith("modiste:")}


def seconds(text: str) -> int:
    number, unit = int(text[:-1]), text[-1]
    return number * {"s": 1, "m": 60}[unit]


@pytest.mark.parametrize("name", ["compose.yaml", "compose.gpu.yaml"])
def test_each_file_is_one_of_the_specification(name: str) -> None:
    document = yaml.safe_load((FOLDER / name).read_text())
    own = {key: value for key, value in document.items() if not key.startswith("x-")}

    jsonschema.Draft201909Validator(SCHEMA).validate(own)


@pytest.mark.parametrize(
    "spoilt", [{"imge": "x"}, {"depends_on": {"y": {"condition": "healthy"}}}, {"init": "maybe"}]
)
def test_the_schema_refuses_what_is_no_service(spoilt: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft201909Validator(SCHEMA).validate({"services": {"x": spoilt}})


def test_compose_itself_takes_the_files(tmp_path: Path) -> None:
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "compose", "version"], check=False).returncode:
        pytest.skip("docker compose is not here; the schema and the checks beside it stand alone")
    (tmp_path / "env").write_text("".join(f"{k}={v}\n" for k, v in SECRETS.items()))
    for names in FILES.values():
        files = [part for name in names for part in ("-f", str(FOLDER / name))]
        command = [docker, "compose", "--env-file", str(tmp_path / "env"), *files]
        subprocess.run([*command, "config", "--quiet"], check=True)


def test_every_image_is_pinned_by_a_tag(services: dict[str, Any]) -> None:
    tags = {name: service["image"].rpartition(":")[2] for name, service in services.items()}

    assert [name for name, tag in tags.items() if not re.search(r"\d+[.-]\d+", tag)] == []


def test_our_images_are_stages_of_the_dockerfile_with_its_user_volume_and_port(
    services: dict[str, Any],
) -> None:
    version = re.search(r"^ARG VERSION=(\S+)", DOCKERFILE, re.MULTILINE)
    assert version is not None
    for service in ours(services).values():
        target = service["build"]["target"]
        assert (FOLDER / service["build"]["context"]).resolve() == ROOT
        assert re.search(rf"^FROM \S+ AS {target}$", DOCKERFILE, re.MULTILINE)
        assert service["image"] == f"modiste:{version[1]}-{target}"
        assert f"USER {service['user']}\n" in DOCKERFILE
        for volume in service.get("volumes", ()):
            assert f"VOLUME {volume.partition(':')[2]}\n" in DOCKERFILE
    assert services["server"]["ports"] == ["127.0.0.1:8321:8321"]
    assert "EXPOSE 8321\n" in DOCKERFILE


def test_nothing_runs_as_root_or_writes_to_its_root_file_system(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert int(service["user"].partition(":")[0]) > 0, name
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert not service.keys() & {"privileged", "cap_add", "network_mode", "pid", "ipc"}, name


def test_everything_has_a_limit(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert service["deploy"]["resources"]["limits"].keys() == {"cpus", "memory"}, name


def test_what_is_published_is_published_to_this_machine_alone(services: dict[str, Any]) -> None:
    ports = [port for service in services.values() for port in service.get("ports", ())]

    assert ports
    assert [port for port in ports if not port.startswith("127.0.0.1:")] == []
    outside = {name for name, s in services.items() if "outside" in s["networks"]}
    assert outside == {name for name, s in services.items() if s.get("ports")}


def test_who_waits_for_health_waits_for_something_that_tells_it(services: dict[str, Any]) -> None:
    for name, service in services.items():
        for other, wait in service.get("depends_on", {}).items():
            awaited = services[other]
            if wait["condition"] == "service_healthy":
                assert awaited["healthcheck"]["test"][0] == "CMD", (name, other)
            else:
                assert wait["condition"] == "service_completed_successfully"
                assert awaited["restart"] == "no", (name, other)


def test_what_goes_on_is_started_again_and_tells_its_health(services: dict[str, Any]) -> None:
    for name, service in services.items():
        if service["restart"] == "no":
            continue
        assert service["restart"] == "unless-stopped", name
        # the worker listens on nothing
        assert ("test" in service["healthcheck"]) is (name != "worker"), name


def test_health_is_asked_by_a_program_on_the_servers_port(services: dict[str, Any]) -> None:
    test = services["server"]["healthcheck"]["test"]

    assert test[:3] == ["CMD", "python", "-c"]
    compile(test[3], "health check", "exec")
    assert "127.0.0.1:8321/health/ready" in test[3]


def test_server_and_worker_have_time_to_drain(services: dict[str, Any]) -> None:
    for name in ("server", "worker"):
        given = seconds(services[name]["stop_grace_period"])
        assert given > Settings().shutdown_grace_s + ENDS_S


def test_the_settings_are_the_servers_and_worker_and_server_share_their_state(
    services: dict[str, Any], tmp_path: Path
) -> None:
    read = {
        name: load_settings(Home(tmp_path), {}, service["environment"])
        for name, service in ours(services).items()
        if "environment" in service
    }

    assert read.keys() == {"server", "worker", "base", "bucket"}
    assert read["server"].worker_jobs == 0
    assert len(read["server"].keys()) == 2
    for settings in read.values():
        assert settings.database_url == read["server"].database_url
        assert settings.store_url == read["server"].store_url == "s3://modiste/store"
        assert settings.files_url == read["server"].files_url == "s3://modiste/files"
    assert services["server"]["volumes"] == services["worker"]["volumes"]


def test_addresses_are_those_of_services(services: dict[str, Any]) -> None:
    environment = services["server"]["environment"]
    database = urlsplit(environment["MODISTE_DATABASE_URL"])

    assert database.hostname in services
    assert database.username == services["postgres"]["environment"]["POSTGRES_USER"]
    assert database.password == services["postgres"]["environment"]["POSTGRES_PASSWORD"]
    assert database.path[1:] == services["postgres"]["environment"]["POSTGRES_DB"]
    assert urlsplit(environment["AWS_ENDPOINT_URL"]).hostname in services
    assert environment["AWS_ACCESS_KEY_ID"] == services["minio"]["environment"]["MINIO_ROOT_USER"]
    assert (
        environment["AWS_SECRET_ACCESS_KEY"]
        == services["minio"]["environment"]["MINIO_ROOT_PASSWORD"]
    )


def test_every_variable_is_in_the_example_and_secrets_have_no_default() -> None:
    text = "".join((FOLDER / name).read_text() for name in FILES["gpu"])
    required = {name for name, kind, _ in VARIABLE.findall(text) if kind == "?"}
    optional = {name for name, kind, _ in VARIABLE.findall(text) if kind == "-"}
    example = (FOLDER / ".env.example").read_text()

    assert required == set(re.findall(r"^(\w+)=$", example, re.MULTILINE)) == SECRETS.keys()
    assert optional == set(re.findall(r"^#(\w+)=\S+$", example, re.MULTILINE))
    assert len(re.findall(r"\$\{", text)) == len(VARIABLE.findall(text))


def test_the_file_with_the_secrets_is_kept_out_of_the_repository() -> None:
    assert "/helm/compose/.env\n" in (ROOT / ".gitignore").read_text()


def test_what_is_mounted_from_here_exists_and_can_only_be_read(services: dict[str, Any]) -> None:
    volumes = [volume for s in services.values() for volume in s.get("volumes", ())]
    mounted = [volume for volume in volumes if volume.startswith(".")]

    assert len(mounted) == 5
    for volume in mounted:
        source, _, mode = volume.split(":")
        assert (FOLDER / source).is_file(), volume
        assert mode == "ro", volume
    named = {volume.partition(":")[0] for volume in volumes} - {
        m.partition(":")[0] for m in mounted
    }
    assert named == composed(["compose.yaml"])["volumes"].keys()


def test_the_bucket_is_made_once_and_the_second_time_nothing_happens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bucket = composed(FILES["gpu"])["services"]["bucket"]
    python, *arguments = bucket["entrypoint"]
    assert python == "python"
    environment = bucket["environment"]
    with s3_server() as endpoint:
        for name, value in {**environment, "AWS_ENDPOINT_URL": endpoint}.items():
            monkeypatch.setenv(name, str(value))
        for _ in range(2):
            subprocess.run([sys.executable, *arguments], check=True)
        buckets = [bucket["Name"] for bucket in s3_client(endpoint).list_buckets()["Buckets"]]

    # other tests' servers share what moto holds
    assert buckets.count(urlsplit(environment["MODISTE_STORE_URL"]).hostname) == 1


def test_prometheus_asks_the_server_under_the_name_that_alerts_know() -> None:
    config = yaml.safe_load((FOLDER / "prometheus.yaml").read_text())
    [job] = config["scrape_configs"]

    assert "modiste" in job["job_name"]
    assert job["static_configs"] == [{"targets": ["server:8321"]}]
    assert config["rule_files"] == ["alerts.yaml"]


def test_promtool_takes_the_configuration(services: dict[str, Any], tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not here (Debian: apt-get install prometheus)")
    for volume in services["prometheus"]["volumes"]:
        source, place = volume.split(":")[:2]
        if place.startswith("/etc/prometheus/"):
            shutil.copy(FOLDER / source, tmp_path / Path(place).name)
    assert "--config.file=/etc/prometheus/prometheus.yaml" in services["prometheus"]["command"]

    command = [promtool, "check", "config", str(tmp_path / "prometheus.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "rules found" in done.stdout


def test_grafana_finds_prometheus_and_our_dashboard(services: dict[str, Any]) -> None:
    places = {
        volume.split(":")[1]: FOLDER / volume.split(":")[0]
        for volume in services["grafana"]["volumes"]
        if volume.startswith(".")
    }
    provisioning = "/etc/grafana/provisioning"
    [source] = yaml.safe_load(places[f"{provisioning}/datasources/modiste.yaml"].read_text())[
        "datasources"
    ]
    [provider] = yaml.safe_load(places[f"{provisioning}/dashboards/modiste.yaml"].read_text())[
        "providers"
    ]
    url = urlsplit(source["url"])
    dashboards = [path for path in places if path.startswith(provider["options"]["path"] + "/")]

    assert source["type"] == "prometheus"
    assert source["isDefault"] is True  # the dashboard's variable takes the default one
    assert services["prometheus"]["ports"] == [f"127.0.0.1:{url.port}:{url.port}"]
    assert url.hostname == "prometheus"
    assert [places[path].resolve() for path in dashboards] == [CHART / "files" / "dashboard.json"]


def test_the_packaged_chart_is_without_it() -> None:
    assert "compose/" in (CHART / ".helmignore").read_text().splitlines()
