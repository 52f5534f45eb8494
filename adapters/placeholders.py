"""Placeholders and markup in software messages, which a translation must keep.

One table says what they look like; everything else reads it.
"""

import re
from collections import Counter
from dataclasses import dataclass

KINDS: tuple[tuple[str, str], ...] = (
    ("address", r"(?:https?|ftp)://[^\s<>\"'{}|\\^`]*[^\s<>\"'{}|\\^`.,;:!?)\]]"),
    ("email", r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+"),
    ("tag", r"</?[A-Za-z][\w:.-]*(?:\s+[^<>]*)?/?>"),
    ("entity", r"&(?:[A-Za-z][A-Za-z0-9]*|\#[0-9]+|\#[xX][0-9A-Fa-f]+);"),
    ("moustache", r"\{\{[^{}\n]*\}\}"),
    ("block", r"\{%[^{}\n]*?%\}"),
    ("shell", r"\$\{[^{}\n]+\}"),
    ("brace", r"\{[^\s{},'\"]*\}"),
    ("printf_named", r"%\([^()\s]+\)[-+0#]*\d*(?:\.\d+)?[diouxXeEfFgGcrsa]"),
    ("printf_numbered", r"%\d+\$[-+0#]*\d*(?:\.\d+)?(?:hh|h|ll|l|L|z|j|t)?[diouxXeEfFgGcrsa@]"),
    # Not after a digit: "100%free" is a percentage. No space flag: "50 % de".
    (
        "printf",
        r"(?<![\d%])%[-+0#]*(?:\*|\d+)?(?:\.(?:\*|\d+))?(?:hh|h|ll|l|L|z|j|t)?"
        r"[diouxXeEfFgGcrsa@]",
    ),
    ("percent", r"%%"),
    ("escape", r"\\(?:[nrt0\"'\\]|u[0-9A-Fa-f]{4}|x[0-9A-Fa-f]{2})"),
)

_ANY = re.compile("|".join(f"(?P<{kind}>{pattern})" for kind, pattern in KINDS))


@dataclass(frozen=True, slots=True)
class Placeholder:
    kind: str
    text: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Difference:
    """How the placeholders of a translation differ from its source's."""

    missing: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    reordered: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.missing or self.added or self.reordered)


def find(text: str) -> list[Placeholder]:
    """All placeholders in order; they do not overlap."""
    return [
        Placeholder(match.lastgroup or "", match.group(), match.start(), match.end())
        for match in _ANY.finditer(text)
    ]


def blank(text: str) -> str:
    """The text with a space for every character of a placeholder; offsets stay."""
    return _ANY.sub(lambda match: " " * len(match.group()), text)


def compare(source: str, translation: str) -> Difference:
    """Which placeholders were lost, invented or, where order decides, swapped.

    Arguments of an unnumbered printf format are taken in order, so `%s … %d` and
    `%d … %s` differ; all others may move with the grammar.
    """
    before, after = find(source), find(translation)
    wanted = Counter(item.text for item in before)
    got = Counter(item.text for item in after)
    missing, added = wanted - got, got - wanted
    if missing or added:
        return Difference(tuple(missing.elements()), tuple(added.elements()))
    order = tuple(item.text for item in before if item.kind == "printf")
    if order != tuple(item.text for item in after if item.kind == "printf"):
        return Difference(reordered=order)
    return Difference()
