"""Personal data and secrets in texts: found by their form and, where they have one, their checksum.

Names, addresses and what only a person would recognise are not found.
"""

import ipaddress
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, get_args

Kind = Literal[
    "private_key", "jwt", "aws_key", "github_token", "api_key", "email", "iban", "credit_card",
    "ip_address", "phone",
]  # fmt: skip
KINDS: tuple[Kind, ...] = get_args(Kind)
SECRETS: frozenset[Kind] = frozenset({"private_key", "jwt", "aws_key", "github_token", "api_key"})


@dataclass(frozen=True, slots=True)
class Match:
    """A place in a text, from `start` to before `end`."""

    kind: Kind
    start: int
    end: int


def find_sensitive(text: str, kinds: Iterable[Kind] = KINDS) -> list[Match]:
    """All matches, none within another, in the order of the text; secrets win over numbers."""
    found: list[Match] = []
    digits = _DIGIT.search(text) is not None
    for kind in kinds:
        rule = _RULES[kind]
        if not (any(part in text for part in rule.needs) if rule.needs else digits):
            continue
        for match in rule.pattern.finditer(text):
            length = rule.check(match[0])
            start, end = match.start(), match.start() + length
            if length and all(end <= m.start or start >= m.end for m in found):
                found.append(Match(kind, start, end))
    return sorted(found, key=lambda m: m.start)


def redact(text: str, kinds: Iterable[Kind] = KINDS) -> str:
    """The text with a placeholder such as `[EMAIL]` for each match; equal texts come out equal."""
    parts, at = [], 0
    for match in find_sensitive(text, kinds):
        parts += [text[at : match.start], f"[{match.kind.upper()}]"]
        at = match.end
    return "".join([*parts, text[at:]])


def mask(value: str) -> str:
    """Enough of a match to find it again, too little to use it."""
    return f"{value[:2]}… ({len(value)} characters)"


def _whole(value: str) -> int:
    return len(value)


def _iban(value: str) -> int:
    """Length of the IBAN at the start (ISO 13616: length by country, remainder 97), else 0."""
    wanted = _IBAN_LENGTHS.get(value[:2], 0)
    taken, end = "", 0
    while len(taken) < wanted and end < len(value):
        taken += value[end].strip()
        end += 1
    if not wanted or len(taken) < wanted or value[end : end + 1].isalnum():
        return 0
    number = "".join(str(int(character, 36)) for character in taken[4:] + taken[:4])
    return end if int(number) % 97 == 1 else 0


def _card(value: str) -> int:
    """Length of a known issuer's number whose Luhn sum (ISO 7812) is right, else 0."""
    ends = [len(value), *(m.start() for m in reversed(list(_GAP.finditer(value))))]
    return next((end for end in ends if _is_card(_GAP.sub("", value[:end]))), 0)


def _is_card(number: str) -> bool:
    if not _ISSUERS.fullmatch(number):
        return False
    digits = [int(digit) for digit in number]
    doubled = [2 * d - 9 * (d > 4) for d in digits[-2::-2]]
    return (sum(doubled) + sum(digits[-1::-2])) % 10 == 0


def _address(value: str) -> int:
    try:
        address = ipaddress.ip_address(value)
    except ValueError:
        return 0
    nobody = address.is_loopback or address.is_unspecified or address.is_multicast
    mask_like = value.startswith("255.")
    return 0 if nobody or mask_like else len(value)


def _phone(value: str) -> int:
    count = sum(map(str.isdigit, value))
    return len(value) if 9 <= count <= 15 and not _DATE.match(value) else 0


@dataclass(frozen=True, slots=True)
class _Rule:
    needs: tuple[str, ...]
    """Texts of which a match has one; none: it has a digit. Most texts have neither."""
    pattern: re.Pattern[str]
    check: Callable[[str], int] = _whole
    """How many characters of a candidate count; 0: it is none."""


_DIGIT = re.compile(r"\d")
_GAP = re.compile("[ -]")
_DATE = re.compile(r"\d{4}[-/.]\d{2}[-/.]\d{2}|\d{2}[-/.]\d{2}[-/.]\d{4}")
_ISSUERS = re.compile(
    r"4(\d{12}|\d{15}|\d{18})|(5[1-5]|2[2-7])\d{14}|3[47]\d{13}|6(011|5\d\d)\d{12}|35\d{14}"
)
_IBAN_LENGTHS = {
    country: int(length)
    for country, length in re.findall(
        r"([A-Z]{2})(\d{2})",
        "AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DK18 DO28 "
        "EE20 EG29 ES24 FI18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HR21 HU28 IE22 IL23 IQ23 IS26 "
        "IT27 JO30 KW30 KZ20 LB28 LC32 LI21 LT20 LU20 LV21 MC27 MD24 ME22 MK19 MR27 MT31 MU30 NL18 "
        "NO15 PK24 PL28 PS29 PT25 QA29 RO24 RS22 SA24 SC31 SE24 SI19 SK24 SM27 ST25 SV28 TL23 TN24 "
        "TR26 UA29 VA22 VG24 XK20",
    )
}
_RULES: dict[Kind, _Rule] = {
    "private_key": _Rule(
        ("PRIVATE KEY",),
        re.compile(
            r"-----BEGIN [A-Z ]{0,20}PRIVATE KEY-----"
            r".*?(?:-----END [A-Z ]{0,20}PRIVATE KEY-----|\Z)",
            re.DOTALL,
        ),
    ),
    "jwt": _Rule(("eyJ",), re.compile(r"(?<![\w-])eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]*", re.ASCII)),
    "aws_key": _Rule(
        ("AKIA", "ASIA", "aws_secret", "AWS_SECRET", "SecretAccessKey"),
        re.compile(
            r"(?<![A-Z0-9])(?:AKIA|ASIA)[A-Z2-7]{16}(?![A-Z0-9])"
            r"|(?:(?i:aws_secret_access_key)|SecretAccessKey)['\"]?\s{0,3}[=:]\s{0,3}['\"]?"
            r"[A-Za-z0-9/+]{40}"
        ),
    ),
    "github_token": _Rule(
        ("ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_"),
        re.compile(r"(?<!\w)(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_\w{22,})", re.ASCII),
    ),
    "api_key": _Rule(
        ("sk-", "hf_", "AIza", "xox", "glpat-", "sk_live_"),
        re.compile(
            r"(?<![\w-])(?:sk-[\w-]{20,}|sk_live_\w{20,}|hf_[A-Za-z]{30,}|AIza[\w-]{35}"
            r"|xox[abprs]-[\w-]{10,}|glpat-[\w-]{20,})",
            re.ASCII,
        ),
    ),
    "email": _Rule(
        ("@",),
        re.compile(
            r"(?<![\w.+%-])[\w.+%-]{1,64}@(?:[\w-]{1,63}\.){1,8}[^\W\d_]{2,24}(?![\w-])",
        ),
    ),
    "iban": _Rule((), re.compile(r"(?<!\w)[A-Z]{2}\d{2}(?: ?[A-Z0-9]){11,30}", re.ASCII), _iban),
    "credit_card": _Rule((), re.compile(r"(?<![\w.-])\d(?:[ -]?\d){12,18}(?![\w-])"), _card),
    "ip_address": _Rule(
        (),
        re.compile(
            r"(?<![\w.-])(?<!version )(?:\d{1,3}\.){3}\d{1,3}(?![\w-]|\.\d)"
            r"|(?<![\w:.])(?:[0-9A-Fa-f]{1,4}:){2,7}(?::|[0-9A-Fa-f]{1,4})(?::?[0-9A-Fa-f]{1,4}){0,6}"
            r"(?![\w:])"
        ),
        _address,
    ),
    "phone": _Rule(
        (),
        re.compile(
            r"(?<![\w+.-])(?:"
            r"\+\d{1,3}(?:[ .\-/]{0,2}\(?\d{1,5}\)?){2,6}"  # as it is dialled from abroad
            r"|\(?\d{3}\)?[ .-]\d{3}[ .-]\d{4}"
            r"|(?<!\d )\(?0[1-9]\d{0,3}\)?(?:[ .\-/]\d{2,8}){1,5}"
            r")(?![\w-]|[.,]\d)"
        ),
        _phone,
    ),
}
