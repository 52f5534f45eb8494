"""`make audit`: looks the locked packages up in a database of known vulnerabilities (OSV).

It ends with 0 when none is known, with 1 when some are, and with 2 when nothing was looked up:
an audit that could not be made has not been passed.
"""

import argparse
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DATABASE = "https://api.osv.dev/v1/query"
LOCKS = ("cpu.txt", "gpu.txt", "dev.txt", "installer.txt", "base-model.txt")
NONE_KNOWN, SOME_KNOWN, NOT_AUDITED = 0, 1, 2


def unreachable(database: str, timeout_s: float = 10.0) -> str:
    """Why a database can't be asked; empty when it can."""
    question = urllib.request.Request(  # noqa: S310 - the address is the operator's
        database,
        data=b'{"package": {"name": "pip", "ecosystem": "PyPI"}, "version": "26.0"}',
        headers={"content-type": "application/json"},
    )
    try:
        with urllib.request.urlopen(question, timeout=timeout_s):  # noqa: S310
            return ""
    except urllib.error.HTTPError as error:
        return f"it answers {error.code}"
    except (OSError, ValueError) as error:
        return str(getattr(error, "reason", error))


def audit(lock: Path, database: str, more: Sequence[str]) -> int:
    """pip-audit's exit code for one lock."""
    print(f"{lock.name}:", flush=True)
    # what the lock names is all that is installed, so nothing is resolved
    command = [
        sys.executable, "-m", "pip_audit", "--requirement", str(lock), "--disable-pip",
        "--require-hashes", "--vulnerability-service", "osv", "--osv-url", database,
        "--progress-spinner", "off", *more,
    ]  # fmt: skip
    return subprocess.run(command, check=False).returncode


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--database", default=DATABASE, help="OSV's query address, or a mirror's")
    parser.add_argument("--lock", type=Path, action="append", help="instead of all locks")
    chosen, more = parser.parse_known_args(arguments)
    if why := unreachable(chosen.database):
        print(
            f"NOT AUDITED: {chosen.database} can't be reached: {why}\n"
            "  run it where it can, or name a mirror with --database",
            file=sys.stderr,
        )
        return NOT_AUDITED
    locks = chosen.lock or [ROOT / "requirements" / name for name in LOCKS]
    codes = [audit(lock, chosen.database, more) for lock in locks]
    return SOME_KNOWN if any(codes) else NONE_KNOWN


if __name__ == "__main__":
    sys.exit(main())
