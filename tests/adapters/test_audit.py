"""The audit log: an entry for every act, in its transaction, and for ever."""

import getpass
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import delete, func, select, text, update
from sqlalchemy.orm import Session

from adapters import audit
from adapters.audit import ACTOR, CALLER, OPERATOR, SERVER, Act, Actor, acting
from adapters.database import AuditRow
from adapters.errors import AdapterError, GateFailed, StoreFailed
from adapters.registry import Registry
from adapters.rules import Rule, Side
from tests.adapters.parcels import draft, parcel, registry_with
from tests.made import add_tiny_base

ANN = Actor(CALLER, "key_ann", "ours", "req-1")


@pytest.fixture
def registry(tmp_path: Path, database: str) -> Registry:
    """`x` with three versions."""
    return registry_with(tmp_path, 3)


def entries(registry: Registry, act: Act | None = None) -> list[AuditRow]:
    with registry.database.read() as session:
        rows = session.scalars(select(AuditRow).order_by(AuditRow.number)).all()
        return [row for row in rows if act is None or row.act == act]


def told(registry: Registry, act: Act) -> list[tuple[str, dict[str, object]]]:
    return [(row.what, row.details) for row in entries(registry, act)]


def test_every_act_on_versions_and_aliases_is_on_record(registry: Registry) -> None:
    registry.promote("x@1")
    registry.promote("x@2", why="better")
    registry.promote("x@3", "staging", force=True, why="now")
    registry.rollback("x", why="worse")
    registry.start_canary("x@3", 10)
    registry.end_canary("x", promote=False)
    registry.retire("x@2", why="old")
    registry.quarantine(registry.find("x@3"), "wrong")
    registry.quarantine(registry.find("x@3"), "wrong")  # by another server
    registry.collect(keep=0, older_than_days=0)

    assert [entry.what for entry in entries(registry, Act.VERSION_PUBLISHED)] == [
        "x@1", "x@2", "x@3",
    ]  # fmt: skip
    assert told(registry, Act.ALIAS_PROMOTED) == [
        ("x@production", {"to": 1}), ("x@production", {"from": 1, "to": 2, "why": "better"}),
    ]  # fmt: skip
    assert told(registry, Act.ALIAS_FORCED) == [("x@staging", {"to": 3, "why": "now"})]
    assert told(registry, Act.ALIAS_ROLLED_BACK) == [
        ("x@production", {"from": 2, "to": 1, "why": "worse"})
    ]
    assert told(registry, Act.CANARY_STARTED) == [
        ("x@production", {"from": 1, "to": 3, "percent": 10.0})
    ]
    assert told(registry, Act.CANARY_ENDED) == [
        ("x@production", {"from": 1, "to": 3, "percent": 0.0})
    ]
    assert told(registry, Act.VERSION_RETIRED) == [("x@2", {"from": 2, "to": 2, "why": "old"})]
    assert told(registry, Act.VERSION_QUARANTINED) == [("x@3", {"why": "wrong"})]
    (deleted,) = entries(registry, Act.VERSION_DELETED)
    assert (deleted.what, deleted.details["digest"]) == ("x@2", registry.find("x@2").digest)
    assert {entry.project for entry in entries(registry)} == {"default"}
    assert {(entry.kind, entry.who) for entry in entries(registry)} == {
        (OPERATOR, getpass.getuser()), (SERVER, "rule"),
    }  # fmt: skip


def test_what_is_published_again_and_comes_back_is_on_record(
    registry: Registry, tmp_path: Path
) -> None:
    folder = parcel(tmp_path / "again", 2)
    registry.publish(folder, draft(folder))
    assert len(entries(registry, Act.VERSION_PUBLISHED)) == 3
    registry.retire("x@2")
    registry.publish(folder, draft(folder))
    assert entries(registry, Act.VERSION_PUBLISHED)[-1].details["was"] == "retired"


def test_a_base_is_on_record_once(tmp_path: Path, database: str) -> None:
    registry = Registry.open(tmp_path)
    add_tiny_base(registry)
    registry.add_base(registry.bases()[0], default=True)
    (entry,) = entries(registry)
    assert (entry.act, entry.what) == (Act.BASE_ADDED, registry.bases()[0].name)


def test_who_acts_is_named_by_the_task_the_environment_or_the_system(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ACTOR, audit.environment_of(Actor(CALLER, "key_bob", "theirs"))[ACTOR])
    registry.promote("x@1")
    with acting(ANN):
        registry.promote("x@2", who=ANN.name)
        registry.promote("x@3", who="somebody else")
    monkeypatch.setenv(ACTOR, json.dumps({"nonsense": 1}))
    registry.rollback("x")
    acts = [entry for entry in entries(registry) if entry.act.startswith("alias.")]
    assert [(e.kind, e.who, e.caller_project, e.request_id) for e in acts] == [
        (CALLER, "key_bob", "theirs", None),
        (CALLER, "key_ann", "ours", "req-1"),
        (OPERATOR, "somebody else", None, None),
        (OPERATOR, getpass.getuser(), None, None),
    ]
    assert [move.who for move in registry.alias_history("x")] == [entry.who for entry in acts]


def test_what_a_rule_does_is_the_servers_act(registry: Registry) -> None:
    registry.promote("x@1")
    with acting(ANN):
        registry.start_canary("x@2", 50, rule=Rule(promote_after=10, least_answers=10))
        sides = {1: Side(answers=20), 2: Side(answers=20)}
        started = registry.canaries()["x", "production"].started
        registry.count("here", ("x", "production"), started, sides)
        assert registry.judge_canary(("x", "production")) is not None
    assert [(e.kind, e.who) for e in entries(registry, Act.ALIAS_PROMOTED)] == [
        (OPERATOR, getpass.getuser()), (SERVER, "rule"),
    ]  # fmt: skip


def test_an_act_that_fails_leaves_no_entry_and_no_entry_leaves_no_act(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = len(entries(registry))
    with pytest.raises(AdapterError):
        registry.promote("x@9")
    assert len(entries(registry)) == before

    def refuse(*_: object, **__: object) -> None:
        raise StoreFailed("the disk is full")

    monkeypatch.setattr(audit, "record", refuse)
    for act in (
        lambda: registry.promote("x@1"), lambda: registry.retire("x@1"),
        lambda: registry.quarantine(registry.find("x@1"), "wrong"),
        lambda: registry.collect(keep=0, older_than_days=0),
    ):  # fmt: skip
        with pytest.raises(StoreFailed):
            act()
    assert registry.aliases("x") == {}
    assert {version.state for version in registry.versions("x")} == {"ready"}


@contextmanager
def refused(registry: Registry) -> Iterator[Session]:
    """A transaction that the database does not take."""
    before = [(entry.number, entry.act) for entry in entries(registry)]
    with (
        pytest.raises(StoreFailed, match=r"append-only|ck_audit_through"),
        registry.database.write() as session,
    ):
        yield session
    assert [(entry.number, entry.act) for entry in entries(registry)] == before


def test_entries_are_never_changed_nor_removed(registry: Registry, database: str) -> None:
    with refused(registry) as session:
        session.execute(update(AuditRow).values(who="nobody"))
    with refused(registry) as session:
        session.execute(delete(AuditRow).where(AuditRow.number == 1))
    with refused(registry) as session:
        session.execute(delete(AuditRow))
    copy = "SELECT number, 'audit_x', made, act, what, project, details, kind, 'nobody', "
    copy += "caller_project, request_id, through FROM audit WHERE number = 1"
    if database == "sqlite":
        with refused(registry) as session:
            session.execute(text(f"REPLACE INTO audit {copy}"))
        with refused(registry) as session:
            session.execute(text(f"INSERT OR REPLACE INTO audit {copy}"))
    else:
        with refused(registry) as session:
            session.execute(text("TRUNCATE audit"))
        with refused(registry) as session:
            session.execute(
                text(f"INSERT INTO audit {copy} ON CONFLICT (number) DO UPDATE SET who = 'nobody'")
            )


def test_entries_go_only_where_a_later_one_says_so(registry: Registry) -> None:
    with refused(registry) as session:  # none removes itself
        session.add(AuditRow(**{**_values(entries(registry)[0]), "number": 99, "through": 99}))
    with refused(registry) as session:  # nor one that is not covered
        audit.record(session, Act.RETENTION_AUDIT, "audit").through = 1
        session.flush()
        session.execute(delete(AuditRow).where(AuditRow.number <= 2))
    with registry.database.write() as session:
        audit.record(session, Act.RETENTION_AUDIT, "audit").through = 2
        session.flush()
        session.execute(delete(AuditRow).where(AuditRow.number <= 2))
    acts = [entry.act for entry in entries(registry)]
    assert acts == [Act.VERSION_PUBLISHED, Act.RETENTION_AUDIT]
    with refused(registry) as session:
        session.execute(delete(AuditRow))


def _values(row: AuditRow) -> dict[str, object]:
    columns = [column.key for column in AuditRow.__table__.columns]
    return {key: getattr(row, key) for key in columns if key != "id"} | {"id": "audit_y"}


def test_a_number_is_never_given_twice(registry: Registry) -> None:
    with registry.database.write() as session:
        last = session.scalar(select(func.max(AuditRow.number)))
        audit.record(session, Act.RETENTION_AUDIT, "audit").through = last
        session.flush()
        session.execute(delete(AuditRow).where(AuditRow.number <= (last or 0)))
    registry.promote("x@1")
    assert [entry.number for entry in entries(registry)] == [(last or 0) + 1, (last or 0) + 2]


def test_a_promotion_past_a_failed_gate_is_told_with_its_reason(
    tmp_path: Path, database: str
) -> None:
    registry = registry_with(tmp_path, 1, failed=1)
    with pytest.raises(GateFailed):
        registry.promote("x@1")
    assert entries(registry, Act.ALIAS_FORCED) == []
    registry.promote("x@1", force=True, why="the customer waits")
    ((what, details),) = told(registry, Act.ALIAS_FORCED)
    assert what == "x@production"
    assert "the customer waits" in str(details["why"])
    assert "gate" in str(details["why"])
