"""Print the part of a lock with hashes that this Python's environment doesn't have at all.

The GPU image starts from vLLM's own, whose packages stay as vLLM built them; only what is missing
there is installed. `--same` names the packages that must have the lock's very version, since the
rest of the lock was resolved for it.
"""

import argparse
import re
import sys
from importlib.metadata import distributions
from pathlib import Path

# A requirement and the hash lines that follow it; comment lines are left behind.
ENTRY = re.compile(
    r"^(?P<name>[A-Za-z0-9._-]+)==(?P<version>[^ \\\n]+) \\\n(?:    --hash=[^\n]+\n)+", re.MULTILINE
)


def canonical(name: str) -> str:
    """The name as package indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def missing(lock: str, installed: dict[str, str]) -> list[str]:
    """The lock's entries, hashes included, whose package is not in `installed` (name: version)."""
    return [e.group(0) for e in ENTRY.finditer(lock) if canonical(e["name"]) not in installed]


def differing(lock: str, installed: dict[str, str], same: list[str]) -> list[str]:
    """One line for each package of `same` that is not installed in the lock's version.

    A local part such as `+cu130` doesn't count: it names a build of the same version.
    """
    locked = {canonical(e["name"]): e["version"] for e in ENTRY.finditer(lock)}
    return [
        f"{name}: the lock has {locked.get(name)}, the environment {installed.get(name)}"
        for name in map(canonical, same)
        if locked.get(name) != installed.get(name, "").partition("+")[0]
    ]


def main() -> int:
    """Read the lock named on the command line; 2 when a package of `--same` differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("lock", type=Path)
    parser.add_argument("--same", nargs="*", default=[], metavar="PACKAGE")
    arguments = parser.parse_args()
    lock = arguments.lock.read_text()
    installed = {canonical(d.metadata["Name"]): d.version for d in distributions()}
    problems = differing(lock, installed, arguments.same)
    if problems:
        print("\n".join(problems), file=sys.stderr)
        return 2
    print("".join(missing(lock, installed)), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
