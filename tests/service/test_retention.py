"""Retention: what is over its time goes once, what is not stays."""

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select, update
from typer.testing import CliRunner

from adapters.audit import Act
from adapters.connect import Database, open_database
from adapters.database import AuditRow
from adapters.registry import Registry
from service.cli import app
from service.database import FileRow, JobEventRow, JobRow, UploadRow, UsageRow
from service.files import UPLOADED, WRITTEN, About, Files
from service.jobs.queue import Jobs, Order
from service.keys import Keys
from service.retention import Due, Periods, Retention
from service.settings import Settings
from service.uploads import Uploads
from service.uses import USES

NOW = datetime.now(UTC)
OLD = NOW - timedelta(days=40)
MONTH = timedelta(days=30)


@pytest.fixture
def files(registry: Registry) -> Files:
    return Files(registry.database, registry.home, USES)


def retention(registry: Registry, **periods: timedelta) -> Retention:
    files = Files(registry.database, registry.home, USES)
    return Retention(registry.database, files, registry.home.jobs, Periods(**periods))


def add(files: Files, project: str = "ours", purpose: str = "fine-tune", *, old: bool) -> str:
    content = files.scratch.parent.parent / "content"
    content.write_bytes(b"text")
    file = files.add(content, About(project, "a.jsonl", purpose))
    if old:
        with files._database.write() as session:
            session.execute(update(FileRow).where(FileRow.id == file.id).values(created=OLD))
    return file.id


def left(registry: Registry) -> set[str]:
    """Files that are there, in the database and in the store."""
    with registry.database.read() as session:
        known = set(session.scalars(select(FileRow.id).where(FileRow.deleted.is_(None))))
    assert known == {path.name for path in registry.home.files.iterdir() if path.is_file()}
    return known


def entries(registry: Registry, act: Act) -> list[AuditRow]:
    with registry.database.read() as session:
        rows = select(AuditRow).where(AuditRow.act == act).order_by(AuditRow.number)
        return list(session.scalars(rows))


def job(registry: Registry, training_file: str, project: str = "ours") -> JobRow:
    order = Order(project, "key", "b", training_file, None, None, 0, {}, None, {})
    return Jobs(registry.database).create(order)


def test_old_files_go_and_young_ones_and_those_in_use_stay(
    registry: Registry, files: Files
) -> None:
    kept = {add(files, old=False), add(files, purpose="batch_output", old=True)}
    used = add(files, old=True)
    job(registry, used)
    old = [add(files, old=True), add(files, purpose="batch", old=True)]
    foreign = add(files, "theirs", old=True)
    rules = retention(registry, files=MONTH)

    assert rules.due() == [Due("files", "ours", 2), Due("files", "theirs", 1)]
    assert left(registry) == {*kept, used, *old, foreign}
    assert rules.apply() == [Due("files", "ours", 2), Due("files", "theirs", 1)]
    assert left(registry) == {*kept, used}
    assert (rules.due(), rules.apply()) == ([], [])
    assert [(e.project, e.details) for e in entries(registry, Act.RETENTION_FILES)] == [
        ("ours", {"count": 2, "ids": old, "older_than_days": 30.0}),
        ("theirs", {"count": 1, "ids": [foreign], "older_than_days": 30.0}),
    ]
    assert entries(registry, Act.FILES_EXPIRED) == []


def test_outputs_have_a_time_of_their_own(registry: Registry, files: Files) -> None:
    uploaded = add(files, old=True)
    for purpose in ("batch_output", "fine-tune-results"):
        add(files, purpose=purpose, old=True)
    retention(registry, outputs=MONTH).keep()
    assert left(registry) == {uploaded}
    (entry,) = entries(registry, Act.RETENTION_OUTPUTS)
    assert (entry.kind, entry.who, entry.details["count"]) == ("server", "retention", 2)


def test_of_several_servers_at_once_one_tells(
    registry: Registry, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.files.AT_ONCE", 7)
    old = {add(files, old=True) for _ in range(40)}
    servers = [
        Retention(
            Database(open_database(registry.database.engine.url)),
            Files(Database(open_database(registry.database.engine.url)), registry.home, USES),
            registry.home.jobs, Periods(files=MONTH, audit=timedelta(days=1)),
        )
        for _ in range(4)
    ]  # fmt: skip
    with ThreadPoolExecutor() as threads:
        gone = list(threads.map(lambda server: server.apply(), servers))
    assert sum(due.count for some in gone for due in some) == 40
    told = [id_ for e in entries(registry, Act.RETENTION_FILES) for id_ in e.details["ids"]]
    assert sorted(told) == sorted(old)
    assert left(registry) == set()


def test_what_a_kill_leaves_goes_the_next_time(
    registry: Registry, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def kill(*_: object) -> None:
        raise Killed

    add(files, old=True)
    rules = retention(registry, files=MONTH)
    with monkeypatch.context() as patch:
        patch.setattr(rules._files.contents, "remove", kill)
        with pytest.raises(Killed):
            rules.apply()
    assert files.page("ours", purposes=(*UPLOADED, *WRITTEN), after=None, limit=9, rising=True) == (
        [],
        False,
    )
    assert rules.apply() == []
    assert left(registry) == set()
    assert len(entries(registry, Act.RETENTION_FILES)) == 1


def test_events_and_logs_of_jobs_that_ended_long_ago_go(registry: Registry) -> None:
    jobs, home = Jobs(registry.database), registry.home.jobs
    made = {name: job(registry, "file-x") for name in ("old", "told", "young", "open")}
    for row in made.values():
        (home / row.id).mkdir(parents=True)
        (home / row.id / "log").write_text("said")
    for name in ("old", "told", "young"):
        jobs.cancel(made[name].id, "ours")
    with registry.database.write() as session:
        late = [made["old"].id, made["told"].id]
        session.execute(update(JobRow).where(JobRow.id.in_(late)).values(finished=OLD))
        session.execute(update(JobRow).where(JobRow.id == made["open"].id).values(created=OLD))
    rules = retention(registry, job_logs=MONTH)
    assert rules.due() == rules.apply() == [Due("job_logs", "ours", 2)]
    assert {path.name for path in home.iterdir()} == {made["young"].id, made["open"].id}
    with registry.database.read() as session:
        events = set(session.scalars(select(JobEventRow.job)))
    assert events == {made["young"].id, made["open"].id}
    assert jobs.find(made["old"].id, "ours").status == "cancelled"
    assert rules.due() == []


def test_old_usage_goes_by_days(registry: Registry) -> None:
    days = [NOW.date() - timedelta(days=back) for back in (0, 30, 31, 90)]
    with registry.database.write() as session:
        session.add_all(_usage(day, project) for day in days for project in ("ours", "theirs"))
    rules = retention(registry, usage=MONTH)
    assert rules.due(NOW) == rules.apply(NOW) == [
        Due("usage", "ours", 2), Due("usage", "theirs", 2),
    ]  # fmt: skip
    with registry.database.read() as session:
        assert set(session.scalars(select(UsageRow.day))) == set(days[:2])
    assert len(entries(registry, Act.RETENTION_USAGE)) == 2


def _usage(day: date, project: str) -> UsageRow:
    return UsageRow(
        day=day, project=project, caller="k", model="m", route="/r", requests=1, failed=0,
        prompt_tokens=1, cached_tokens=0, completion_tokens=1,
    )  # fmt: skip


def test_old_entries_go_and_that_they_went_stays(registry: Registry) -> None:
    keys = Keys(registry.database)
    for _ in range(3):
        keys.create("team")
    rules, later = retention(registry, audit=MONTH), datetime.now(UTC) + MONTH
    assert rules.due() == rules.apply() == []
    keys.create("team")
    with registry.database.read() as session:
        last = session.scalar(select(func.max(AuditRow.made)))
    assert last is not None
    assert rules.apply(last + MONTH) == [Due("audit", None, 3)]
    (said,) = entries(registry, Act.RETENTION_AUDIT)
    assert said.details == {"count": 3, "older_than_days": 30.0}
    assert len(entries(registry, Act.KEY_CREATED)) == 1
    assert rules.apply(later + MONTH) == [Due("audit", None, 2)]
    with registry.database.read() as session:
        assert session.scalar(select(func.count()).select_from(AuditRow)) == 1


def test_ended_uploads_are_forgotten_with_the_files(registry: Registry, files: Files) -> None:
    uploads, about = Uploads(registry.database, files), About("ours", "a.jsonl", "batch")
    ended, pending, young = (uploads.create(about, 9).id for _ in range(3))
    uploads.cancel(ended, "ours")
    uploads.cancel(young, "ours")
    with registry.database.write() as session:
        late = UploadRow.id.in_([ended, pending])
        session.execute(update(UploadRow).where(late).values(created=OLD))
    retention(registry, files=MONTH).apply()
    with registry.database.read() as session:
        assert set(session.scalars(select(UploadRow.id))) == {pending, young}


def test_without_settings_all_stays(registry: Registry, files: Files) -> None:
    kept = {add(files, old=True), add(files, purpose="batch_output", old=True)}
    assert Periods.of(Settings()) == Periods()
    assert retention(registry).apply(NOW + timedelta(days=36_000)) == []
    assert left(registry) == kept
    periods = Periods.of(Settings(keep_files_days=0.5, keep_audit_days=365))
    assert periods == Periods(files=timedelta(hours=12), audit=timedelta(days=365))


class TestTheCommand:
    def run(self, home: Path, *arguments: str) -> Any:
        return CliRunner().invoke(app, ["retention", *arguments, "--home", str(home)])

    def test_a_dry_run_tells_and_removes_nothing(self, tmp_path: Path) -> None:
        registry = Registry.open(tmp_path)
        (tmp_path / "modiste.yaml").write_text("keep_files_days: 30\n")
        id_ = add(Files(registry.database, registry.home), old=True)
        due = [{"kind": "files", "project": "ours", "count": 1}]
        for _ in range(2):
            told = self.run(tmp_path, "--json")
            assert json.loads(told.stdout) == {"applied": False, "due": due}
        shown = self.run(tmp_path).stdout
        assert "files are kept 30 days" in shown
        assert "usage are kept for ever" in shown
        assert left(registry) == {id_}
        assert json.loads(self.run(tmp_path, "--apply", "--json").stdout)["due"] == due
        assert left(registry) == set()
        assert "nothing is older" in self.run(tmp_path).stdout
