"""A Ray cluster that is away, or was left alone, as its client tells of it."""

import json
import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests

from service.errors import NotReady
from service.jobs.ray_jobs import RayJobs, RayTrainer
from service.jobs.room import Need
from service.jobs.states import Outcome
from tests.service.jobs.stage import Stage


class OfRay(Exception):
    """Ray's own errors have no common base with those of HTTP; not imported: it prints by then."""


AWAY = [
    requests.ConnectionError("refused"), requests.ReadTimeout("slow"), TimeoutError("slow"),
    OfRay("no token"),
]  # fmt: skip


class Status(str):
    """As Ray's, a text that knows whether it is the last."""

    __slots__ = ()

    def is_terminal(self) -> bool:
        return self in ("SUCCEEDED", "FAILED", "STOPPED")


@dataclass
class Cluster:
    """In place of Ray's client."""

    statuses: dict[str, str] = field(default_factory=dict)
    submitted: list[dict[str, Any]] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)
    away: Exception | None = None

    def _answer(self) -> None:
        if self.away is not None:
            raise self.away

    def list_jobs(self) -> list[Any]:
        self._answer()
        known = [
            SimpleNamespace(submission_id=id_, status=Status(status))
            for id_, status in self.statuses.items()
        ]
        return [*known, SimpleNamespace(submission_id=None, status=Status("RUNNING"))]

    def submit_job(self, **how: Any) -> str:
        self._answer()
        self.submitted.append(how)
        self.statuses[how["submission_id"]] = "RUNNING"
        return str(how["submission_id"])

    def get_job_info(self, id_: str) -> Any:
        self._answer()
        return SimpleNamespace(status=Status(self.statuses[id_]), driver_exit_code=0)

    def stop_job(self, id_: str) -> None:
        self._answer()
        self.stopped.append(id_)


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


@pytest.fixture
def ray(cluster: Cluster) -> RayJobs:
    made = RayJobs.__new__(RayJobs)
    made._client, made._cpus = cluster, 1
    return made


@pytest.fixture
def trainer(cluster: Cluster, tmp_path: Path) -> RayTrainer:
    cluster.statuses["ftjob-a-01234567"] = "RUNNING"
    return RayTrainer(cluster, "ftjob-a-01234567", tmp_path / "environment")


@pytest.mark.parametrize("error", AWAY, ids=repr)
def test_a_cluster_that_is_away_tells_nothing_of_a_trainer(
    cluster: Cluster, trainer: RayTrainer, error: Exception
) -> None:
    cluster.away = error
    assert trainer.poll() is None
    cluster.away = RuntimeError("Request failed with status code 404: unknown")
    assert trainer.poll() == -9
    cluster.away, cluster.statuses["ftjob-a-01234567"] = None, "SUCCEEDED"
    assert trainer.poll() == 0


@pytest.mark.parametrize("error", [*AWAY, RuntimeError("Request failed with status code 500: x")])
@pytest.mark.parametrize("way", ["terminate", "kill"])
def test_what_was_not_stopped_is_stopped_at_the_next_look(
    cluster: Cluster, trainer: RayTrainer, error: Exception, way: str
) -> None:
    cluster.away = error
    getattr(trainer, way)()
    assert trainer.poll() is None
    cluster.away = None
    trainer.poll()
    trainer.poll()
    assert cluster.stopped == ["ftjob-a-01234567"]


@pytest.mark.parametrize("error", [*AWAY, RuntimeError("Request failed with status code 503: x")])
def test_a_job_waits_for_a_cluster_that_is_away(
    cluster: Cluster, ray: RayJobs, tmp_path: Path, error: Exception
) -> None:
    cluster.away = error
    with pytest.raises(NotReady):
        ray.start("ftjob-a", ["true"], tmp_path, Need())
    with pytest.raises(NotReady):
        ray.stop_orphans(lambda _: {})
    cluster.away = RuntimeError("Request failed with status code 400: wrong")
    with pytest.raises(RuntimeError, match="400"):
        ray.start("ftjob-a", ["true"], tmp_path, Need())


def test_secrets_are_in_a_file_of_the_jobs_alone(
    cluster: Cluster, ray: RayJobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODISTE_DATABASE_URL", "postgresql://ann:it's $SECRET@db/x")
    monkeypatch.setenv("OTHER", "theirs")
    code = "import json, os; print(json.dumps([dict(os.environ), os.listdir()]))"
    trainer = ray.start("ftjob-a", ["python3", "-c", code], tmp_path, Need())
    (asked,) = cluster.submitted
    assert "SECRET" not in json.dumps(asked)
    secrets = tmp_path / "environment"
    assert secrets.stat().st_mode & 0o777 == 0o600
    assert "theirs" not in secrets.read_text()
    subprocess.run(
        asked["entrypoint"], shell=True, check=True, env={"PATH": os.environ["PATH"]}
    )  # as Ray does
    environment, there = json.loads((tmp_path / "printed").read_text())
    assert environment["MODISTE_DATABASE_URL"] == "postgresql://ann:it's $SECRET@db/x"
    assert there == []
    assert trainer.poll() is None
    assert secrets.exists()
    cluster.statuses[asked["submission_id"]] = "SUCCEEDED"
    assert trainer.poll() == 0
    assert not secrets.exists()


def test_one_that_runs_is_taken_up(cluster: Cluster, ray: RayJobs, tmp_path: Path) -> None:
    cluster.statuses = {
        "ftjob-a-01234567": "FAILED", "ftjob-a-11234567": "RUNNING", "ftjob-ab-01234567": "RUNNING"
    }  # fmt: skip
    ray.start("ftjob-a", ["true"], tmp_path, Need()).terminate()
    assert (cluster.submitted, cluster.stopped) == ([], ["ftjob-a-11234567"])


def test_trainers_of_jobs_that_need_none_are_stopped(
    cluster: Cluster, ray: RayJobs, tmp_path: Path, database: str
) -> None:
    stage = Stage(tmp_path)
    stage.worker._executor = ray
    queued, working, paused, ended = (stage.ask() for _ in range(4))
    stage.jobs.lease("w", working.id)
    stage.jobs.pause(paused.id, "ours")
    stage.jobs.lease("w", ended.id)
    stage.jobs.end(ended.id, "w", Outcome("cancelled"))
    for job in (queued.id, working.id, paused.id, ended.id, "ftjob-ofanotherdatabase"):
        cluster.statuses[f"{job}-01234567"] = "RUNNING"
    cluster.statuses["theirs"] = "RUNNING"
    stage.worker._clean()
    assert sorted(cluster.stopped) == sorted(f"{id_}-01234567" for id_ in (paused.id, ended.id))
