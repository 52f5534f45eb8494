"""From an API key to a caller. Keys are compared as digests, in constant time."""

import hashlib
import hmac
from dataclasses import dataclass

from service.errors import Unauthenticated

HINT = "send the header `Authorization: Bearer KEY`"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks; `name` tells keys apart in logs without showing them."""

    name: str
    project: str = "default"


ANONYMOUS = Caller("anonymous")


class Authenticator:
    """Knows the accepted keys by their SHA-256."""

    def __init__(self, keys: list[str]) -> None:
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]

    @property
    def asks_for_keys(self) -> bool:
        return bool(self._digests)

    def caller(self, authorization: str | None) -> Caller:
        """The caller of a request.

        Raises:
            Unauthenticated: keys are on, and the header has none or a wrong one.
        """
        if not self._digests:
            return ANONYMOUS
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise Unauthenticated("no API key was given", hint=HINT, code="missing_api_key")
        given = hashlib.sha256(key.strip().encode()).digest()
        # every key is compared, so the time tells nothing of which one is near
        matches = [hmac.compare_digest(given, known) for known in self._digests]
        if True not in matches:
            raise Unauthenticated("the API key is not valid", hint=HINT)
        return Caller(f"key-{given.hex()[:8]}")
