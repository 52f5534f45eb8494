"""Garbage collection in a store elsewhere.

Rows say what was removed before the first file goes, so a killed collection leaves work that the
next one finds. A publication looks for its files under the database's write lock, and files are
deleted under it, so neither takes the other's.
"""

import re
from collections.abc import Iterator

from sqlalchemy import select

from adapters.database import VersionRow
from adapters.records import REMOVED, Records
from adapters.remote import STAGING, Remote
from adapters.store import MANIFEST

REMOTE_AGE_S = 24 * 3600.0
"""A younger folder without a manifest may be an upload of another host."""

_FILE = re.compile(r"([a-z0-9][a-z0-9._-]*)/([0-9a-f]{64})/([^/]+)")


class RemoteGarbage(Records):
    """Collection in the remote store of a registry."""

    def _collect_remote(
        self, remote: Remote, doomed: set[tuple[str, str]], *, dry_run: bool
    ) -> tuple[list[str], int]:
        """Remove the files of removed versions, but their manifests, and uploads that were cut off.

        Args:
            doomed: adapter and digest of versions that would be removed, were it no dry run.

        Returns:
            URLs of the cut-off uploads, and all bytes freed.

        Raises:
            StoreFailed: the remote store can't be listed or written; another call goes on.
        """
        leftovers: list[str] = []
        size = 0
        files = remote.files()
        states = self._states()
        for (name, digest), parts in _folders(files):
            state = REMOVED if (name, digest) in doomed else states.get((name, digest))
            place = f"{name}/{digest.removeprefix('sha256:')}"
            keys = [f"{place}/{part}" for part in parts if state is None or part != MANIFEST]
            if state not in (None, REMOVED) or not keys:
                continue
            # whole ones without a row may be another database's, or newer than a restored one
            if state is None and (MANIFEST in parts or not _abandoned(remote, keys)):
                continue
            if dry_run or self._remove(remote, name, digest, keys):
                size += sum(files[key] for key in keys)
                leftovers += [f"{remote.url}/{place}"] if state is None else []
        staged = [key for key in files if key.startswith(f"{STAGING}/")]
        for key in staged:
            if _abandoned(remote, [key]):
                leftovers.append(f"{remote.url}/{key}")
                size += files[key]
                if not dry_run:
                    remote.remove([key])
        return leftovers, size

    def _states(self) -> dict[tuple[str, str], str]:
        with self._read() as session:
            rows = session.execute(select(VersionRow.adapter, VersionRow.digest, VersionRow.state))
            return {(row[0], row[1]): row[2] for row in rows}

    def _remove(self, remote: Remote, name: str, digest: str, keys: list[str]) -> bool:
        """Remove files unless their version was published meanwhile."""
        with self._write() as session:
            state = session.scalar(select(VersionRow.state).filter_by(adapter=name, digest=digest))
            if state not in (None, REMOVED):
                return False
            remote.remove(keys, quick=True)
        return True


def _folders(files: dict[str, int]) -> Iterator[tuple[tuple[str, str], list[str]]]:
    """Files by adapter and digest; what has another form is not ours."""
    found: dict[tuple[str, str], list[str]] = {}
    for key in files:
        if match := _FILE.fullmatch(key):
            name, digest, part = match.groups()
            found.setdefault((name, f"sha256:{digest}"), []).append(part)
    yield from sorted(found.items())


def _abandoned(remote: Remote, keys: list[str]) -> bool:
    """Whether nobody wrote any of these files lately."""
    return min(remote.age_s(key) for key in keys) >= REMOTE_AGE_S
