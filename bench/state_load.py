"""What servers ask of the database and of the store: counted in the code, times how often.

The statements of each entry are those that the code sends; tests/bench/test_state_load.py counts
them on PostgreSQL and fails where this page says otherwise.
"""

from dataclasses import dataclass
from math import ceil

from adapters.leases import LEASE_S
from adapters.remote import PIECE_BYTES
from bench.sizing import ASSUMED, Input
from service import auth, departures, readiness, survey, usage
from service.batches import runner
from service.jobs import worker
from service.leasing import RECENT_S
from service.limiting import limiter
from service.routes import files
from service.settings import Settings

ROUND_TRIP_S = Input("a statement: there and back", 0.0005, "0.5 ms", ASSUMED)
COMMIT_S = Input("a commit that is on disk", 0.001, "1 ms", ASSUMED)
ROW_S = Input("a row that is written among many", 0.00002, "20 µs", ASSUMED)
STATEMENTS = Input("reading statements a second of one PostgreSQL", 50_000, "50,000", ASSUMED)
ROWS = Input("rows a second that it sends", 1_000_000, "1,000,000", ASSUMED)
CONNECTIONS = Input("connections that it is set up for", 1_000, "1,000", ASSUMED)
CONNECTIONS_EACH = Input(
    "connections that a server keeps open", 6, "6",
    "code: SQLAlchemy's pool of 5, one more of the limits (`adapters/connect.py`)",
)  # fmt: skip
KEYS_SHARE = Input("API keys, an adapter", 0.1, "0.1", ASSUMED)
GETS = Input(
    "GETs a second of one prefix", 5_500, "5,500",
    "published: Amazon, S3 performance guidelines",
)  # fmt: skip
NETWORK = Input("network of a host, a GPU", 1.5e9, "1.5 GB/s", ASSUMED)
OTHER_FILES = 6
"""Of a version beside its weights, each a piece: config, probe, reports, log, manifest."""

INPUTS = (
    ROUND_TRIP_S, COMMIT_S, ROW_S, STATEMENTS, ROWS, CONNECTIONS, CONNECTIONS_EACH, KEYS_SHARE,
    GETS, NETWORK,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Task:
    """What a server does again and again.

    Attributes:
        statements: of one time.
        writes: it is a write, and every other write of all servers waits for it.
        rows: that it reads or writes, in words; empty: a few.
    """

    what: str
    every_s: float
    statements: int
    writes: bool = False
    rows: str = ""


TASKS = {
    "aliases": Task("has an alias moved?", Settings().alias_poll_s, 1),
    "keys": Task("keys that open", auth.REFRESH_S, 1, rows="every key"),
    "limits": Task("limits of keys and projects", limiter.FOLLOW_S, 2, rows="those with limits"),
    "batches": Task("does a batch wait?", runner.POLL_S, 2),
    "jobs": Task("does a job wait? (a worker)", worker.POLL_S, 3),
    "database": Task("does the database answer?", readiness.ASK_S, 1),
    "retirements": Task(
        "versions taken out of use", departures.EVERY_S, 1, rows="versions of leased adapters"
    ),
    "usage": Task("a report of usage", usage.EVERY_S, 4, writes=True, rows="sums since the last"),
    "survey": Task("figures for metrics", survey.EVERY_S, 6),
    "server": Task("what this server takes", LEASE_S / 3, 4, writes=True),
    "leases": Task("leases are renewed", LEASE_S / 3, 3, writes=True, rows="leased versions"),
    "wanted": Task(
        "versions to load ahead, while places are free", LEASE_S / 3, 1, rows="free places"
    ),
    "expired": Task("files and uploads that expired", files._EXPIRE_EVERY_S, 7, writes=True),
}
"""Of one server at rest, its own worker included."""

LEASE_STATEMENTS = 4
"""Of a version that is loaded and was not leased: a write."""
LOOK_UP_STATEMENTS = 3
"""Of the first request for `name@7` since an alias moved: its project, its adapter, its row."""


def statements_at_rest() -> float:
    """Statements a second of one server."""
    return sum(task.statements / task.every_s for task in TASKS.values())


@dataclass(frozen=True, slots=True)
class Activity:
    """All servers on one database and one store.

    Attributes:
        rate: requests a second, of all.
        loads: versions that are loaded a second, of all.
        places: versions that a server keeps loaded.
        weights: bytes of an adapter's file.
    """

    servers: int
    adapters: int
    rate: float
    loads: float
    places: int
    weights: int

    @property
    def leased(self) -> float:
        """Versions that a server holds leases of: loaded, or unloaded within RECENT_S."""
        lately = self.loads / self.servers * RECENT_S
        return min(self.adapters, min(self.places, self.adapters) + lately)

    @property
    def keys(self) -> int:
        return max(1, round(self.adapters * KEYS_SHARE.value))

    @property
    def statements(self) -> float:
        """A second."""
        return self.servers * statements_at_rest() + self.loads * LEASE_STATEMENTS

    @property
    def rows(self) -> float:
        """That are read, a second: keys above all."""
        each = self.keys / TASKS["keys"].every_s + self.leased / TASKS["retirements"].every_s
        return self.servers * each

    @property
    def writing(self) -> float:
        """Share of the time for which one write or another holds the lock."""
        sums = min(self.rate / self.servers * TASKS["usage"].every_s, self.adapters)
        rows = {"usage": sums, "leases": self.leased}
        each = sum(
            _held_s(task.statements, rows.get(name, 0)) / task.every_s
            for name, task in TASKS.items()
            if task.writes
        )
        return self.servers * each + self.loads * _held_s(LEASE_STATEMENTS)

    @property
    def connections(self) -> int:
        return int(self.servers * CONNECTIONS_EACH.value)

    @property
    def gets(self) -> float:
        """A second, where no loaded version is still on the host's disk."""
        return self.loads * gets_of(self.weights)

    @property
    def fetched(self) -> float:
        """Bytes a second and server."""
        return self.loads / self.servers * self.weights


def _held_s(statements: int, rows: float = 0) -> float:
    return statements * ROUND_TRIP_S.value + COMMIT_S.value + rows * ROW_S.value


def gets_of(weights: int) -> int:
    """Requests to a store for one version: each file's size, then its pieces; the manifest once."""
    return 1 + ceil(weights / PIECE_BYTES) + 1 + 2 * OTHER_FILES
