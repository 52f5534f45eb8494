"""From an API key to a caller. Keys are looked up by their digests.

How long that takes may depend on the digest of what was given; but nobody can choose one that is
nearer to a key's, so the time tells nothing of any key. Keys come from the settings, all of the
project `default`, and from the database, where `modiste keys` makes and revokes them while servers
run.
"""

import asyncio
import hashlib
import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from adapters.errors import AdapterError
from service.errors import Unauthenticated
from service.keys import DEFAULT_PROJECT, Key
from service.oidc import Issuer, is_token
from service.scopes import ALL, DEFAULT, Scopes

logger = logging.getLogger("modiste.auth")

HINT = "send the header `Authorization: Bearer KEY`"
REFRESH_S = 1.0
"""Within so long a key that was made or revoked takes effect."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks; `name` tells keys apart in logs without showing them."""

    name: str
    project: str = DEFAULT_PROJECT
    scopes: Scopes = DEFAULT


# where no key is asked for, whoever reaches the server is its operator
ANONYMOUS = Caller("anonymous", scopes=ALL)


class Made(Protocol):
    """Where keys that were made are looked up; `service.keys.Keys` is one."""

    def by_digest(self) -> dict[bytes, Key]: ...


class Authenticator:
    """Knows the accepted keys by their SHA-256.

    Args:
        keys: of the settings.
        made: those of the database; read once here, and by `follow`.
        issuer: whose tokens are taken beside keys.

    Raises:
        StoreFailed: the database can't be read.
    """

    def __init__(
        self, keys: list[str], made: Made | None = None, issuer: Issuer | None = None
    ) -> None:
        self._issuer = issuer
        self._fixed = {hashlib.sha256(key.encode()).digest() for key in keys}
        self._source = made
        self._made: dict[bytes, Key] = {} if made is None else made.by_digest()

    @property
    def asks_for_keys(self) -> bool:
        """From the first key on that was ever made: revoking the last one opens no door."""
        return bool(self._fixed or self._made or self._issuer)

    async def follow_issuer(self) -> None:
        """Keep the issuer's keys fresh."""
        if self._issuer is not None:
            await self._issuer.follow()

    async def prepare(self, authorization: str | None) -> None:
        """What has to be asked for before `caller` can tell; nothing for keys."""
        if self._issuer is not None and (given := _given(authorization)) and is_token(given):
            await self._issuer.prepare(given)

    def refresh(self) -> None:
        """Know the keys of the database as they are now.

        Raises:
            StoreFailed: the database can't be read; what is known stays.
        """
        if self._source is not None:
            self._made = self._source.by_digest()

    async def follow(self) -> None:
        """Read the keys of the database again and again; what is known stays while it is away."""
        while self._source is not None:
            await asyncio.sleep(REFRESH_S)
            try:
                await asyncio.to_thread(self.refresh)
            except AdapterError as error:
                logger.warning("keys are not followed: %s", error)
            except Exception:  # revoked keys would go on opening doors
                logger.exception("keys are not followed")

    def caller(self, authorization: str | None) -> Caller:
        """The caller of a request.

        Raises:
            Unauthenticated: keys are on, and the header has none or a wrong one.
            NotReady: it has a token of the issuer, whose keys are not known yet.
        """
        if not self.asks_for_keys:
            return ANONYMOUS
        key = _given(authorization)
        if not key:
            raise Unauthenticated("no API key was given", hint=HINT, code="missing_api_key")
        given = hashlib.sha256(key.encode()).digest()
        if given in self._fixed:
            return Caller(f"key-{given.hex()[:8]}", scopes=ALL)  # the operator's own
        made = self._made.get(given)
        if made is None:
            if self._issuer is not None and is_token(key):
                bearer = self._issuer.bearer(key)
                return Caller(bearer.name, bearer.project)
            raise Unauthenticated("the API key is not valid", hint=HINT)
        if not made.works(datetime.now(UTC)):
            raise Unauthenticated(
                "the API key has expired or was revoked", hint="ask for another key"
            )
        return Caller(made.id, made.project, made.scopes)


def _given(authorization: str | None) -> str:
    """The key or token of the header; empty: there is none."""
    scheme, _, key = (authorization or "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""
