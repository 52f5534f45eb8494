"""The statements of the windows, for SQLite and PostgreSQL; only their clocks differ."""

from dataclasses import dataclass

BEGIN = "BEGIN ISOLATION LEVEL READ COMMITTED"  # so that what was counted before the lock is seen
LOCK = "SELECT pg_advisory_xact_lock(CAST(:locks AS integer), hashtext(CAST(:project AS text)))"
SETTLE = """
    UPDATE limit_uses SET tokens = tokens + :tokens, requests = requests + :requests
    WHERE subject = :subject AND second = :second
"""
RELEASE = "DELETE FROM limit_holds WHERE subject = :subject AND request = :request"
LEAVE = "DELETE FROM limit_holds WHERE server = :server"

_NOWS = {
    "sqlite": """
        SELECT t, CAST(t AS INTEGER) FROM (
            SELECT coalesce(:now, (julianday('now') - 2440587.5) * 86400.0) AS t
        )
    """,
    "postgresql": """
        SELECT t, CAST(floor(t) AS bigint) FROM (SELECT coalesce(
            CAST(:now AS double precision),
            CAST(extract(epoch FROM clock_timestamp()) AS double precision)
        )) AS given(t)
    """,
}
_CLOCK = """
    WITH RECURSIVE clock(now, second) AS ({now})
"""
_ASKED = """
    , asked(subject, tokens, most_requests, most_tokens, most_at_once) AS (VALUES {rows})
"""
_ROW = (
    "(CAST(:subject_{0} AS text), CAST(:tokens_{0} AS bigint), CAST(:most_requests_{0} AS bigint),"
    " CAST(:most_tokens_{0} AS bigint), CAST(:most_at_once_{0} AS bigint))"
)
# a limit of NULL makes its comparison NULL, which excludes nothing
_COUNT = """
    INSERT INTO limit_uses (subject, second, requests, tokens, last)
    SELECT a.subject, c.second, CAST(:count AS bigint), a.tokens, CAST(:request AS text)
    FROM asked a CROSS JOIN clock c
    WHERE NOT EXISTS (
        SELECT 1 FROM asked b WHERE b.most_requests < CAST(:count AS bigint) + (
            SELECT coalesce(sum(u.requests), 0) FROM limit_uses u
            WHERE u.subject = b.subject AND u.second >= c.second - CAST(:window AS bigint)
        ) OR b.most_tokens < b.tokens + (
            SELECT coalesce(sum(u.tokens), 0) FROM limit_uses u
            WHERE u.subject = b.subject AND u.second >= c.second - CAST(:window AS bigint)
        ) OR b.most_at_once < CAST(:count AS bigint) + (
            SELECT count(*) FROM limit_holds h WHERE h.subject = b.subject AND h.until > c.now
        )
    )
    ON CONFLICT (subject, second) DO UPDATE SET
        requests = limit_uses.requests + excluded.requests,
        tokens = limit_uses.tokens + excluded.tokens, last = excluded.last
"""
_NUMBERS = """
    , numbers(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM numbers
        WHERE n + 1 < CAST(:count AS bigint))
"""
_HOLD = """
    INSERT INTO limit_holds (subject, request, server, until)
    SELECT a.subject,
        CAST(:request AS text) || CASE n WHEN 0 THEN '' ELSE '#' || CAST(n AS text) END,
        CAST(:server AS text), c.now + CAST(:hold AS double precision)
    FROM asked a CROSS JOIN clock c CROSS JOIN numbers
    WHERE a.most_at_once IS NOT NULL AND EXISTS (
        SELECT 1 FROM limit_uses u
        WHERE u.subject = a.subject AND u.second >= c.second - CAST(:window AS bigint)
        AND u.last = CAST(:request AS text)
    )
    ON CONFLICT (subject, request) DO NOTHING
"""
_TELL = """
    SELECT a.subject, c.now, u.second, u.requests, u.tokens, u.last,
        (SELECT count(*) FROM limit_holds h WHERE h.subject = a.subject AND h.until > c.now)
    FROM asked a CROSS JOIN clock c
    LEFT JOIN limit_uses u
        ON u.subject = a.subject AND u.second >= c.second - CAST(:window AS bigint)
    ORDER BY a.subject, u.second
"""
_RENEW = """
    UPDATE limit_holds SET until = (SELECT now FROM clock) + CAST(:hold AS double precision)
    WHERE server = :server
"""
_SWEEPS = (
    "DELETE FROM limit_uses WHERE second < (SELECT second FROM clock) - CAST(:old AS bigint)",
    "DELETE FROM limit_holds WHERE until < (SELECT now FROM clock) - CAST(:old AS bigint)",
)


@dataclass(frozen=True, slots=True)
class Steps:
    """Of one transaction: count where there is room, hold where it was counted, tell."""

    count: str
    hold: str
    tell: str


class Statements:
    """Those that read the clock, for a dialect.

    Attributes:
        take: by the number of subjects.
    """

    def __init__(self, dialect: str) -> None:
        clock = _CLOCK.format(now=_NOWS[dialect])
        self.renew = clock + _RENEW
        self.sweeps = [clock + sweep for sweep in _SWEEPS]
        self.take: dict[int, Steps] = {}
        for count in (1, 2):
            rows = ", ".join(_ROW.format(at) for at in range(count))
            given = clock + _ASKED.format(rows=rows)
            self.take[count] = Steps(given + _COUNT, given + _NUMBERS + _HOLD, given + _TELL)
