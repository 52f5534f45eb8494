"""What must not stand in a log: secrets in any line, and what tells of a person in logged requests.

Taken out too much rather than too little: a log is read to find a fault, not to read texts.
"""

import json
import re
from collections.abc import Iterable
from typing import Any

LONGEST = 64 * 1024
"""Bytes of a request's body; a longer one is not logged."""
MOST_CHARACTERS = 2000
"""Of one text in it."""
MOST_ITEMS = 50
"""Of one list in it."""
LEAST_SECRET = 8
"""Characters; a shorter one would be found in words that are none."""

_HINTS = (
    "-----begin", "eyj", "bearer", "basic", "://", "sk-", "pk-", "rk-", "ghp_", "gho_", "ghu_",
    "ghs_", "ghr_", "github_pat_", "glpat-", "xox", "akia", "asia", "aiza", "hf_", "passw",
    "secret", "api", "access", "private", "auth", "refresh",
)  # fmt: skip
"""Each match of the following has one of these in it, whatever its case; most lines have none."""
_SECRETS = (
    (
        re.compile(r"(?s)-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----.*?(?:-----END[^-]{0,60}-----|\Z)"),
        "[PRIVATE_KEY]",
    ),
    (re.compile(r"(?<![\w-])eyJ[\w-]{8,}\.[\w-]{8,}(?:\.[\w-]*)?"), "[TOKEN]"),
    (re.compile(r"(?i)\b(bearer|basic)\s+[\w.~+/=-]{8,}"), r"\1 [SECRET]"),
    (re.compile(r"://[^\s/@]{0,100}:[^\s@]{1,200}@"), "://[SECRET]@"),
    (
        re.compile(
            r"(?<![A-Za-z0-9])(?:"
            r"(?:sk|pk|rk)-[\w-]{16,}|gh[pousr]_\w{30,}|github_pat_\w{22,}|glpat-[\w-]{20,}|"
            r"xox[abeprs]-[\w-]{10,}|(?:AKIA|ASIA)[A-Z0-9]{16}|AIza[\w-]{35}|hf_[A-Za-z0-9]{30,})"
        ),
        "[SECRET]",
    ),
    (
        re.compile(
            r"(?i)(passwor[dt]|passwd|secret|api[_-]?key|access[_-]?key|private[_-]?key|"
            r"(?:access|auth|refresh|api)[_-]?token)([\w-]{0,40}[\"']?\s{0,3}[:=]\s{0,3}[\"']?)"
            r"[^\s\"',;&}]{4,}"
        ),
        r"\1\2[SECRET]",
    ),
)
_PERSONAL = (
    (re.compile(r"(?<![\w.%+-])[\w.%+-]+@(?:[\w-]+\.)+\w{2,}"), "[EMAIL]"),
    (re.compile(r"(?<!\w)[A-Z]{2}\d{2}(?: ?[A-Z0-9]){11,30}(?!\w)"), "[IBAN]"),
    (re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w.])"), "[IP_ADDRESS]"),
    (re.compile(r"(?<![\w:])(?:[0-9A-Fa-f]{1,4}:){3,7}[0-9A-Fa-f:]{1,9}(?![\w:])"), "[IP_ADDRESS]"),
    # cards, telephones, and numbers by which somebody is known
    (re.compile(r"(?<!\w)\+?\(?\d(?:[ ()./-]{0,2}\d){7,24}(?!\w)"), "[NUMBER]"),
)


def _without_forms(text: str) -> str:
    for pattern, placeholder in _SECRETS:
        text = pattern.sub(placeholder, text)
    return text


class Secrets:
    """Takes secrets out of a text: those of a known form, and those that the server was given."""

    def __init__(self, known: Iterable[str] = ()) -> None:
        long = {secret for secret in known if len(secret) >= LEAST_SECRET}
        # the longest first: one may begin with another
        alternatives = "|".join(re.escape(secret) for secret in sorted(long, key=len)[::-1])
        self._known = re.compile(alternatives) if alternatives else None

    def out_of(self, text: str) -> str:
        """The text with a placeholder for each."""
        if self._known is not None:
            text = self._known.sub("[SECRET]", text)
        lowered = text.lower()
        for hint in _HINTS:
            if hint in lowered:
                return _without_forms(text)
        return text

    def out_of_fields(self, fields: dict[str, Any]) -> dict[str, Any]:
        """The same for the texts among fields; looked through together, for most have none."""
        texts = "\n".join([value for value in fields.values() if isinstance(value, str)])
        if self._known is None or self._known.search(texts) is None:
            lowered = texts.lower()
            if not any(hint in lowered for hint in _HINTS):
                return fields
        return {
            name: self.out_of(value) if isinstance(value, str) else value
            for name, value in fields.items()
        }

    def redact(self, text: str) -> str:
        """The text without secrets and without what tells of a person."""
        text = self.out_of(text)
        for pattern, placeholder in _PERSONAL:
            text = pattern.sub(placeholder, text)
        return text

    def of_request(self, body: bytes) -> Any:
        """A JSON body, redacted and cut, for the log; else why it is not there."""
        if len(body) > LONGEST:
            return f"[over {LONGEST} bytes]"
        try:
            return self._redacted(json.loads(body))
        except (ValueError, RecursionError):
            return f"[{len(body)} bytes that are no JSON]"

    def _redacted(self, value: Any) -> Any:
        if isinstance(value, str):
            text = self.redact(value)  # before it is cut: half a secret has no form
            return text if len(text) <= MOST_CHARACTERS else text[:MOST_CHARACTERS] + "…"
        if isinstance(value, dict):
            return {self.redact(key): self._redacted(item) for key, item in value.items()}
        if isinstance(value, list):
            if any(isinstance(item, int | float) for item in value):
                return f"[{len(value)} numbers]"  # token ids are text, too
            return [self._redacted(item) for item in value[:MOST_ITEMS]]
        return value
