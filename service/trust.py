"""Which issuer of tokens an operator trusts; apart, since settings are read without a server."""

from dataclasses import dataclass
from urllib.parse import urlsplit


@dataclass(frozen=True, slots=True)
class Trust:
    """Which tokens are taken, and what they say."""

    issuer: str
    audience: str
    project_claim: str = "project"
    leeway_s: float = 30.0


def check_issuer(url: str) -> str:
    """An issuer's address as it is given.

    Raises:
        ValueError: it is none, or could be read on its way.
    """
    parts = urlsplit(url)
    if parts.query or parts.fragment or "@" in parts.netloc or not parts.hostname:
        raise ValueError("must be the issuer's address, such as https://login.example.com/realm")
    if not is_private(url):
        raise ValueError("must begin with https://")
    return url


def is_private(url: str) -> bool:
    """Whether nobody reads or alters what goes there; this machine itself may do without TLS."""
    parts = urlsplit(url)
    return parts.scheme == "https" or (
        parts.scheme == "http" and parts.hostname in ("127.0.0.1", "localhost", "::1")
    )
