"""The audit log from outside: the command, the route, and what routes and children leave in it."""

import asyncio
import getpass
import json
import os
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from adapters.audit import ACTOR, CALLER, Act, Actor, acting
from adapters.errors import StoreFailed
from adapters.registry import Registry
from service.audit import AuditLog, Sought
from service.children import Children
from service.cli import app
from service.errors import BadRequest
from service.files import UPLOADED, WRITTEN, About, Files
from service.jobs.executors import Local
from service.jobs.room import Need
from service.keys import Keys
from service.projects import Projects
from service.scopes import Scope
from tests.service.desk import Desk
from tests.service.test_files import CHAT, upload


def told(registry: Registry, **sought: Any) -> list[tuple[str, str]]:
    entries, _ = AuditLog(registry.database).page(Sought(**sought), limit=100)
    return [(entry.act, entry.what) for entry in entries]


def test_limits_that_are_set_are_on_record(registry: Registry) -> None:
    key, _ = Keys(registry.database).create("team", scopes=frozenset({Scope.INFER}))
    Keys(registry.database).limit(key.id, {"requests_per_minute": 5})
    Projects(registry.database).limit("team", {"concurrent": None})
    entries, _ = AuditLog(registry.database).page(Sought(project="team"), limit=9)
    assert [(entry.act, entry.what, entry.details) for entry in entries[:2]] == [
        (Act.PROJECT_LIMITED, "team", {"concurrent": None}),
        (Act.KEY_LIMITED, key.id, {"requests_per_minute": 5}),
    ]
    assert entries[2].details["scopes"] == ["infer"]


def test_keys_are_on_record_and_never_what_they_are(registry: Registry) -> None:
    keys = Keys(registry.database)
    key, secret = keys.create("team", "a notebook", timedelta(days=1))
    keys.revoke(key.id)
    keys.revoke(key.id)  # again: nothing happens
    entries, _ = AuditLog(registry.database).page(Sought(), limit=10)
    assert [(e.act, e.what, e.project) for e in entries] == [
        (Act.KEY_REVOKED, key.id, "team"), (Act.KEY_CREATED, key.id, "team"),
    ]  # fmt: skip
    assert entries[1].details["name"] == "a notebook"
    assert secret.removeprefix("sk-modiste-") not in repr([e.__dict__ for e in entries])


def test_entries_are_found_by_kind_time_project_and_who(registry: Registry) -> None:
    keys = Keys(registry.database)
    mine = keys.create("mine")[0]
    with acting(Actor(CALLER, "key_ann", "ours")):
        yours = keys.create("yours")[0]
        keys.revoke(yours.id)
    assert told(registry, act="key.revoked") == [(Act.KEY_REVOKED, yours.id)]
    assert len(told(registry, act="key")) == 3
    assert told(registry, act="ke") == []
    assert told(registry, act="key%") == []
    assert told(registry, project="mine") == [(Act.KEY_CREATED, mine.id)]
    assert len(told(registry, project="ours")) == len(told(registry, project="yours")) == 2
    assert len(told(registry, who="key_ann")) == 2
    assert told(registry, who=getpass.getuser()) == [(Act.KEY_CREATED, mine.id)]
    now = datetime.now(UTC)
    assert len(told(registry, since=now - timedelta(hours=1))) == 3
    assert told(registry, since=now + timedelta(seconds=1)) == []


def test_pages_have_every_entry_once(registry: Registry) -> None:
    keys, log, found = Keys(registry.database), AuditLog(registry.database), list[str]()
    made = [keys.create("team")[0].id for _ in range(5)]
    keys.create("other")
    after, more = None, True
    while more:
        page, more = log.page(Sought(project="team"), after=after, limit=2)
        found += [entry.what for entry in page]
        after = page[-1].id
    assert found == made[::-1]
    foreign = log.page(Sought(project="other"), limit=1)[0][0].id
    with pytest.raises(BadRequest, match="after"):
        log.page(Sought(project="team"), after=foreign, limit=2)


def test_a_file_that_goes_is_on_record_and_its_content_goes_for_good(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = Files(registry.database, registry.home)
    content = tmp_path / "content"
    content.write_bytes(CHAT)
    file = files.add(content, About("ours", "a.jsonl", "fine-tune"))

    def away(_: object) -> None:
        raise StoreFailed("gone")

    with monkeypatch.context() as patch:
        patch.setattr(files.contents, "remove", away)
        files.delete(file.id, "ours")
    assert files.page("ours", purposes=(*UPLOADED, *WRITTEN), after=None, limit=9, rising=True) == (
        [],
        False,
    )
    assert (registry.home.files / file.id).exists()
    assert files.expire() == 1
    assert not (registry.home.files / file.id).exists()
    assert files.expire() == 0
    assert told(registry) == [(Act.FILE_DELETED, file.id)]


def test_files_that_expire_are_on_record_once_for_each_project(
    registry: Registry, tmp_path: Path
) -> None:
    content = tmp_path / "content"
    content.write_bytes(CHAT)
    servers = [Files(registry.database, registry.home) for _ in range(2)]
    made = [
        servers[0].add(content, About(project, "a.jsonl", "batch", expires_after_s=0)).id
        for project in ("ours", "ours", "theirs")
    ]
    assert [files.expire() for files in servers] == [3, 0]
    entries, _ = AuditLog(registry.database).page(Sought(), limit=10)
    assert {(e.act, e.project, e.who, tuple(e.details["ids"])) for e in entries} == {
        (Act.FILES_EXPIRED, "ours", "expiry", tuple(made[:2])),
        (Act.FILES_EXPIRED, "theirs", "expiry", tuple(made[2:])),
    }


class TestTheRoute:
    def test_a_project_sees_what_was_done_to_it_and_by_its_callers(self, served: Desk) -> None:
        ours, theirs = served.openai(), served.openai("theirs")
        file = upload(ours)
        upload(theirs)
        with served.http() as http:
            http.delete(f"/v1/files/{file.id}", headers={"x-request-id": "req-77"})
            answer = http.get("/v1/audit", params={"act": "file"}).json()
            whole = http.get("/v1/audit", params={"limit": 1, "since": 0}).json()
            late = http.get("/v1/audit", params={"since": 253_402_300_799}).json()
            wrong = http.get("/v1/audit", params={"since": "yesterday"})
        (key,) = Keys(served.registry.database).all("ours")
        (entry,) = answer["data"]
        assert entry == {
            "object": "audit.entry", "id": entry["id"], "created_at": entry["created_at"],
            "act": "file.deleted", "what": file.id, "project": "ours", "details": {},
            "actor": {"kind": "caller", "name": key.id, "project": "ours"},
            "request_id": "req-77",
        }  # fmt: skip
        assert (answer["has_more"], answer["first_id"]) == (False, entry["id"])
        assert (len(whole["data"]), whole["has_more"]) == (1, True)
        assert late["data"] == []
        assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "query.since")
        with served.http("theirs") as http:
            assert http.get("/v1/audit", params={"act": "file"}).json()["data"] == []
            foreign = http.get("/v1/audit", params={"after": entry["id"]})
        assert foreign.status_code == 400


class TestTheCommand:
    def run(self, home: Path, *arguments: str) -> Any:
        return CliRunner().invoke(app, ["audit", *arguments, "--home", str(home)])

    def test_entries_are_told_as_a_table_and_as_json(self, tmp_path: Path) -> None:
        assert "nothing of that kind" in self.run(tmp_path).stdout
        key = Keys(Registry.open(tmp_path).database).create("team", "ci")[0]
        (entry,) = json.loads(self.run(tmp_path, "--json").stdout)
        assert (entry["act"], entry["what"], entry["project"]) == ("key.created", key.id, "team")
        assert entry["actor"] == {
            "kind": "operator", "name": getpass.getuser(), "project": None
        }  # fmt: skip
        assert key.id[:8] in self.run(tmp_path).stdout
        for sought in ("--since=1h", "--since=2026-01-01", "--project=team", "--act=key"):
            assert len(json.loads(self.run(tmp_path, sought, "--json").stdout)) == 1
        for sought in ("--since=2999-01-01T00:00", "--project=x", "--act=file", "--who=nobody"):
            assert json.loads(self.run(tmp_path, sought, "--json").stdout) == []

    @pytest.mark.parametrize("since", ["yesterday", "999999d", "2026-13-01"])
    def test_a_time_that_is_none_is_refused(self, tmp_path: Path, since: str) -> None:
        refused = self.run(tmp_path, "--since", since)
        assert refused.exit_code == 2
        assert "neither a span nor a time" in refused.stderr


def test_a_child_and_a_trainer_know_for_whom_they_work(tmp_path: Path) -> None:
    said = "import json, os; print(json.dumps({'actor': os.environ['MODISTE_ACTOR']}))"
    (tmp_path / "tell.py").write_text(said)
    actor = Actor(CALLER, "key_ann", "ours", "req-1")
    with acting(actor), pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(tmp_path))
        made = asyncio.run(Children().run("tell"))
        trainer = Local().start(
            "ftjob-1", [sys.executable, str(tmp_path / "tell.py")], tmp_path, Need()
        )
        while trainer.poll() is None:
            os.sched_yield()
    assert Actor(**json.loads(made["actor"])) == actor
    printed = json.loads((tmp_path / "printed").read_text())
    assert Actor(**json.loads(printed["actor"])) == actor
    assert ACTOR not in os.environ
