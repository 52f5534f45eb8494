"""What limited keys and projects used in the last minute, counted in the database for all servers.

A window slides: each request is counted in the second in which it began, and asks for the sum of
that second and the 60 before it. So in no 60 s, wherever they begin, more is let in than the limit
says; and what was used comes back within a second of its minute's end. Tokens are reserved when a
request begins and settled when it ends. A request that runs holds a place until it ends; the
places of a server that is killed run out.

One transaction counts, holds and tells. Those of a project follow one another: SQLite has one
writer, PostgreSQL an advisory lock of the project, and there all goes in one round trip.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from itertools import groupby
from operator import itemgetter
from threading import Lock
from typing import Any

from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import StaticPool

from adapters.connect import told
from adapters.database import Table
from adapters.errors import StoreFailed
from service.database import LimitHoldRow, LimitUseRow
from service.limiting.limits import Limits
from service.limiting.sql import BEGIN, LEAVE, LOCK, RELEASE, SETTLE, Statements
from service.limiting.standing import WINDOW_S, Outcome, Seen, Use

HOLD_S = 30.0
"""So long the places of a server that was killed are taken."""
_OLD_S = 2 * WINDOW_S
_LOCKS = 0x6D6F6469
"""First key of the advisory locks, `modi` in ASCII."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A key or a project, and what it may still use.

    Attributes:
        id: such as `key key_abc` or `project team`.
        limits: in effect.
    """

    id: str
    limits: Limits

    def __hash__(self) -> int:
        return hash(self.id)  # which strings keep; each request asks several times


@dataclass(frozen=True, slots=True)
class Take:
    """What a request asks for.

    Attributes:
        request: its id, of which there is no other.
        project: whose requests follow one another here.
        tokens: that it may use. Of a subject that may use fewer in a minute it reserves all, and so
            begins when nothing else was used.
        count: requests like it that are counted at once, all or none.
    """

    request: str
    project: str
    subjects: tuple[Subject, ...]
    tokens: int = 0
    count: int = 1

    def reserved(self, subject: Subject) -> int:
        most = subject.limits.tokens_per_minute
        return 0 if most is None else min(self.tokens * self.count, most)

    def places(self) -> list[str]:
        """Ids of the places that they hold."""
        return [self.request, *(f"{self.request}#{number}" for number in range(1, self.count))]


@dataclass(frozen=True, slots=True)
class Correction:
    """By how much what was counted for a subject in a second was too little."""

    subject: str
    second: int
    requests: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Returned:
    """What was counted and held, and is not needed."""

    corrections: list[Correction]
    places: list[Take]

    def __bool__(self) -> bool:
        return bool(self.corrections or self.places)


Statement = tuple[str, Mapping[str, Any]]
_parsed = cache(text)


class Windows:
    """Counts and places in one database, for all servers on it.

    Args:
        engine: from `adapters.connect.for_counts`, or of `in_memory`.
        server: whose places these are.
        clock: in place of the database's; seconds since 1970.
    """

    def __init__(
        self, engine: Engine, server: str, clock: Callable[[], float] | None = None
    ) -> None:
        self._engine, self._server, self._clock = engine, server, clock
        self._texts: dict[str, str] = {}
        self._pipelines = engine.dialect.name == "postgresql"
        self._alone = Lock()
        """Threads of one process would only wake each other by SQLite's pauses."""
        self._sql = Statements(engine.dialect.name)

    def take(self, asked: Take) -> Outcome:
        """Let a request begin if it is within all limits, and count it; else count nothing.

        Raises:
            StoreFailed: the database can't be used; maybe it was counted.
        """
        values = self._values(asked)
        take = self._sql.take[len(asked.subjects)]
        statements = [take.count, take.hold, take.tell]
        if all(subject.limits.concurrent is None for subject in asked.subjects):
            statements.remove(take.hold)
        rows = self._run([(sql, values) for sql in statements], project=asked.project)
        return self._outcome(asked, rows)

    def settle(self, asked: Take, outcome: Outcome, tokens: int, *, counts: bool = True) -> None:
        """A request that was let in has ended.

        Args:
            tokens: that it used.
            counts: it was a request; else it will be asked again.

        Raises:
            StoreFailed: the database can't be used.
        """
        statements: list[Statement] = []
        for subject in asked.subjects:
            limited = subject.limits.tokens_per_minute is not None
            more = tokens - asked.reserved(subject) if limited else 0
            if more or not counts:
                values = {
                    "subject": subject.id, "second": outcome.second, "tokens": more,
                    "requests": 0 if counts else -1,
                }  # fmt: skip
                statements.append((SETTLE, values))
        statements += _releases(asked)
        if statements:
            self._run(statements)

    def give_back(self, returned: Returned) -> None:
        """Correct counts and free places. Raises StoreFailed."""
        statements: list[Statement] = [(SETTLE, asdict(one)) for one in returned.corrections]
        for place in returned.places:
            statements += _releases(place)
        if statements:
            self._run(statements)

    def renew(self) -> None:
        """The places of this server are taken for some more time. Raises StoreFailed."""
        self._run([(self._sql.renew, self._common())])

    def leave(self) -> None:
        """Free all places of this server. Raises StoreFailed."""
        self._run([(LEAVE, {"server": self._server})])

    def sweep(self) -> None:
        """Remove what counts no more. Raises StoreFailed."""
        values = {**self._common(), "old": _OLD_S}
        self._run([(sweep, values) for sweep in self._sql.sweeps])

    def _values(self, asked: Take) -> dict[str, Any]:
        values: dict[str, Any] = {
            **self._common(), "request": asked.request, "count": asked.count,
        }  # fmt: skip
        for at, subject in enumerate(asked.subjects):
            limits = subject.limits
            values |= {
                f"subject_{at}": subject.id, f"tokens_{at}": asked.reserved(subject),
                f"most_requests_{at}": limits.requests_per_minute,
                f"most_tokens_{at}": limits.tokens_per_minute,
                f"most_at_once_{at}": limits.concurrent,
            }  # fmt: skip
        return values

    def _common(self) -> dict[str, Any]:
        now = None if self._clock is None else self._clock()
        return {"now": now, "window": WINDOW_S, "hold": HOLD_S, "server": self._server}

    def _outcome(self, asked: Take, rows: Sequence[Any]) -> Outcome:
        uses: dict[str, list[Use]] = {subject.id: [] for subject in asked.subjects}
        running, mine = {}, None
        for subject, _, second, requests, tokens, last, at_once in rows:
            running[subject] = int(at_once)
            if second is not None:
                uses[subject].append(Use(int(second), int(requests), int(tokens)))
                mine = int(second) if last == asked.request else mine
        seen = [
            Seen(one.id, one.limits, uses[one.id], running[one.id], asked.reserved(one))
            for one in asked.subjects
        ]
        return Outcome(mine, float(rows[0][1]), seen)

    def _run(self, statements: Sequence[Statement], project: str | None = None) -> list[Any]:
        """The rows of the last statement.

        Args:
            project: all statements are one transaction, alone among those of the project; None:
                each is one by itself, so that no two wait for each other.
        """
        if self._pipelines:
            return self._pipelined(statements, project)
        with self._alone, told(self._engine), self._engine.begin() as connection:
            for sql, same in groupby(statements, itemgetter(0)):
                result = connection.execute(_parsed(sql), [values for _, values in same])
            return list(result) if result.returns_rows else []

    def _pipelined(self, statements: Sequence[Statement], project: str | None) -> list[Any]:
        errors = (self._engine.dialect.loaded_dbapi.Error, DBAPIError, PoolTimeout)
        try:
            try:
                return self._send(statements, project)
            except errors:  # its connections were open when it went away
                self._engine.dispose()
                return self._send(statements, project)
        except errors as error:
            raise StoreFailed(
                f"the database can't be used: {' '.join(str(error).split())}",
                hint="check that PostgreSQL runs and can be reached",
            ) from error

    def _send(self, statements: Sequence[Statement], project: str | None) -> list[Any]:
        pooled = self._engine.raw_connection()
        driver: Any = pooled.driver_connection
        try:
            with driver.pipeline() as pipeline:
                if project is not None:
                    driver.execute(BEGIN)
                    driver.execute(*self._native(LOCK, {"locks": _LOCKS, "project": project}))
                for sql, values in statements:
                    cursor = driver.execute(*self._native(sql, values))
                    if project is None:
                        pipeline.sync()
                if project is not None:
                    driver.execute("COMMIT")
            rows = cursor.fetchall() if cursor.description else []
        except BaseException:
            pooled.invalidate()
            raise
        pooled.close()
        return list(rows)

    def _native(self, sql: str, values: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
        """With the driver's own placeholders."""
        found = self._texts.get(sql)
        if found is None:
            found = self._texts[sql] = str(_parsed(sql).compile(dialect=self._engine.dialect))
        return found, values


def _releases(asked: Take) -> list[Statement]:
    return [
        (RELEASE, {"subject": subject.id, "request": asked.request})
        for subject in asked.subjects
        if subject.limits.concurrent is not None
    ]


def in_memory() -> Engine:
    """An engine whose counts are this process's own."""
    engine = create_engine(
        "sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False}
    )
    tables: Any = [LimitUseRow.__table__, LimitHoldRow.__table__]
    Table.metadata.create_all(engine, tables=tables)
    return engine
