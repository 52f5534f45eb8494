"""Write the table of values in README.md from the comments of values.yaml; `--check` compares.

Each value's comment stands right above it. A mapping whose values have comments of their own is
described in the table by its entries.
"""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

import yaml

CHART = Path(__file__).resolve().parent
BEGIN, END = "<!-- values: begin -->\n", "<!-- values: end -->\n"
KEY = re.compile(r"^(?P<indent> *)(?P<key>[A-Za-z_][A-Za-z0-9_]*):")


class Value(NamedTuple):
    """A line of the table; `default` is the YAML value, `comment` empty when there is none."""

    path: str
    default: Any
    comment: str


def read_values(text: str) -> list[Value]:
    """Every leaf of a values file, in the file's order, and every commented mapping."""
    tree = yaml.safe_load(text)
    values: list[Value] = []
    parents: list[str] = []
    comment: list[str] = []
    for line in text.splitlines():
        stripped = line.strip()
        if stripped.startswith("#"):
            comment.append(stripped.removeprefix("#").strip())
        elif (match := KEY.match(line)) is not None:
            depth = len(match["indent"]) // 2
            parents[depth:] = [match["key"]]
            default = _at(tree, parents)
            leaf = not isinstance(default, dict) or not default
            if leaf or comment:
                values.append(Value(".".join(parents), default, " ".join(comment)))
            comment = []
        else:
            comment = []
    return _without_entries_of_commented_mappings(values)


def _at(tree: Any, path: list[str]) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def _without_entries_of_commented_mappings(values: list[Value]) -> list[Value]:
    """A commented mapping whose entries have no comments (`resources.limits`) is one line."""
    kept: list[Value] = []
    for value in values:
        parent = next((v for v in kept if value.path.startswith(v.path + ".")), None)
        if parent is None or value.comment:
            kept.append(value)
    with_entries = {v.path.rpartition(".")[0] for v in kept}
    return [v for v in kept if v.path not in with_entries]


def table(values: list[Value]) -> str:
    """The Markdown table."""
    lines = ["| value | default | what it does |", "|---|---|---|"]
    for value in values:
        default = json.dumps(value.default).replace("|", "\\|")
        lines.append(
            f"| `{value.path}` | `{default}` | {value.comment.replace('|', chr(92) + '|')} |"
        )
    return "\n".join(lines) + "\n"


def rendered(readme: str, values: str) -> str:
    """The README with the table of `values` between its two marks."""
    head, _, rest = readme.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return head + BEGIN + "\n" + table(read_values(values)) + "\n" + END + tail


def main() -> int:
    """1 when `--check` finds the README out of date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing, only compare")
    check = parser.parse_args().check
    path = CHART / "README.md"
    readme = path.read_text()
    wanted = rendered(readme, (CHART / "values.yaml").read_text())
    if check and readme != wanted:
        print("helm/README.md is out of date: run python helm/document_values.py", file=sys.stderr)
        return 1
    if not check:
        path.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
