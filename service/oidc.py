"""Bearer tokens of an OpenID Connect issuer: who sends one, told by the token itself.

The issuer's keys are fetched beside requests and kept: every hour, and where a token names an
unknown one, though not more often than every half minute, whatever comes. While the issuer is away
what is known goes on. Only signatures with a public key are taken: a shared secret, or none, would
let whoever knows that key sign.
"""

import asyncio
import json
import logging
import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from time import monotonic
from typing import Any

import httpx
import jwt

from adapters.errors import AdapterError, InvalidName
from adapters.names import check_name
from service.errors import NotReady, ServiceError, Unauthenticated
from service.trust import Trust, is_private

logger = logging.getLogger("modiste.oidc")

ALGORITHMS = {
    "RSA": ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    "P-256": ("ES256",), "P-384": ("ES384",), "P-521": ("ES512",), "Ed25519": ("EdDSA",),
}  # fmt: skip
"""What a key may sign with, by its type, or its curve where it has one."""

REFRESH_S = 3600.0
AGAIN_S = 30.0
"""Between two fetches at least."""
CLOSED_S = 2.0
"""How often it is looked which projects are being deleted."""
TIMEOUT_S = 5.0
MOST_BYTES = 2**20
"""Of a document of the issuer."""
MOST_KEYS = 100
MOST_TOKEN = 16 * 2**10
DISCOVERY = "/.well-known/openid-configuration"

_COMPACT = re.compile(r"[\w-]+\.[\w-]+\.[\w-]*", re.ASCII)
_PLAIN = re.compile(r"[\w.@|:/+-]{1,100}", re.ASCII)

Keys = Mapping[str, Mapping[str, jwt.PyJWK]]
"""By their id and by the algorithm."""
_REASONS: tuple[tuple[type[jwt.InvalidTokenError], str, str], ...] = (
    (jwt.ExpiredSignatureError, "has expired", "get a new one"),
    (jwt.ImmatureSignatureError, "is not valid yet", "look at the clocks of both machines"),
    (jwt.InvalidIssuedAtError, "was issued in the future", "look at the clocks of both machines"),
    (jwt.InvalidAudienceError, "is for another audience", "ask the issuer for this one's"),
    (jwt.InvalidIssuerError, "is of another issuer", "ask the issuer that this server trusts"),
    (jwt.InvalidSignatureError, "has a wrong signature", "send it as it was issued"),
    (jwt.MissingRequiredClaimError, "lacks one of exp, iss, aud and sub", "ask for one that has"),
)


@dataclass(frozen=True, slots=True)
class Bearer:
    """Who sent a token."""

    name: str
    project: str


def is_token(given: str) -> bool:
    """Whether a text has the form of a signed token."""
    return len(given) <= MOST_TOKEN and _COMPACT.fullmatch(given) is not None


class Issuer:
    """The issuer whose tokens are taken, and its keys.

    Args:
        closed: projects that are being deleted, whose callers are let in no more.
    """

    def __init__(
        self, trust: Trust, closed: Callable[[], frozenset[str]] = frozenset, *,
        again_s: float = AGAIN_S,
    ) -> None:  # fmt: skip
        self._trust, self._ask_closed, self._again_s = trust, closed, again_s
        self._keys: Keys | None = None
        self._closed: frozenset[str] = frozenset()
        self._tried = self._fetched = -REFRESH_S
        self._fetching: asyncio.Task[None] | None = None

    async def follow(self) -> None:
        """Keep the keys fresh, for as long as the server runs."""
        while True:
            try:
                self._closed = await asyncio.to_thread(self._ask_closed)
            except AdapterError as error:
                logger.warning("deleted projects are not followed: %s", error)
            if monotonic() - self._fetched >= REFRESH_S:
                await self._refresh()
            await asyncio.sleep(CLOSED_S)

    async def prepare(self, token: str) -> None:
        """Fetch the keys where a token names one that is not known, as after their rotation."""
        header = _header(token)
        if header is None or not _may_sign(header):
            return
        if self._keys is None or ("kid" in header and str(header["kid"]) not in self._keys):
            await self._refresh()

    def bearer(self, token: str) -> Bearer:
        """Who sent a token; asks nobody.

        Raises:
            Unauthenticated: it is not to be trusted, and why.
            NotReady: the issuer's keys are not known yet.
        """
        claims = self._claims(token)
        project = claims.get(self._trust.project_claim)
        try:
            name = check_name(project if isinstance(project, str) else "", "project")
        except InvalidName:
            raise _refused(
                f"names no project in its claim {self._trust.project_claim!r}",
                "let the issuer add the name of a project: lower case, digits, . _ -",
            ) from None
        if name in self._closed:
            raise Unauthenticated(
                "the token's project is being deleted", code="project_deleted",
                hint="ask for a token of another project",
            )  # fmt: skip
        return Bearer(_subject(str(claims["sub"])), name)

    def _claims(self, token: str) -> dict[str, Any]:
        header = _header(token)
        if header is None:
            raise _refused("can't be read", "send it as it was issued")
        if not _may_sign(header):
            raise _refused("is not signed with a public key", "ask for RS256, ES256 or their like")
        if self._keys is None:
            raise NotReady(
                "the issuer's keys are not known yet", code="issuer_away",
                hint="try again; the server's log says why it can't be reached",
            )  # fmt: skip
        try:
            return jwt.decode(
                token, self._key(header), algorithms=[header["alg"]],
                audience=self._trust.audience, issuer=self._trust.issuer,
                leeway=self._trust.leeway_s,
                options={
                    "require": ["exp", "iss", "aud", "sub"], "enforce_minimum_key_length": True,
                },
            )  # fmt: skip
        except jwt.PyJWTError as error:  # its own words may repeat what the token says
            for kind, what, hint in _REASONS:
                if isinstance(error, kind):
                    raise _refused(what, hint) from None
            raise _refused("is not valid", "send it as it was issued") from None

    def _key(self, header: dict[str, Any]) -> jwt.PyJWK:
        keys, kid = self._keys or {}, header.get("kid")
        if kid is None and len(keys) == 1:
            (known,) = keys.values()
        else:
            known = keys.get(str(kid), {})
        key = known.get(header["alg"])
        if key is None:
            raise _refused(
                "is signed with a key that the issuer does not have", "get a new one from it"
            )
        return key

    async def _refresh(self) -> None:
        """Fetch the keys; who comes meanwhile waits for the same fetch."""
        if self._fetching is None or self._fetching.done():
            if monotonic() - self._tried < self._again_s:
                return
            self._tried = monotonic()
            self._fetching = asyncio.create_task(self._fetch())
        await asyncio.shield(self._fetching)  # a caller that goes away ends it for nobody

    async def _fetch(self) -> None:
        try:
            keys = await self._ask()
        except Exception as error:  # noqa: BLE001 - whatever it is, what is known goes on
            logger.warning(
                "keys of the issuer %s are not fetched: %s", self._trust.issuer,
                str(error) or type(error).__name__,
            )  # fmt: skip
            return
        self._keys, self._fetched = keys, monotonic()

    async def _ask(self) -> Keys:
        issuer = self._trust.issuer
        client = await asyncio.to_thread(httpx.AsyncClient, timeout=TIMEOUT_S)  # reads certificates
        async with client, asyncio.timeout(2 * TIMEOUT_S):
            about = await _document(client, issuer.rstrip("/") + DISCOVERY)
            if about.get("issuer") != issuer:
                raise ValueError(f"its document says that it is {str(about.get('issuer'))[:200]!r}")
            place = str(about.get("jwks_uri"))
            if not is_private(place):
                raise ValueError(f"its keys are at {place[:200]!r}, which is not https")
            found = await _document(client, place)
        return await asyncio.to_thread(_keys, found)


async def _document(client: httpx.AsyncClient, url: str) -> dict[str, Any]:
    """A JSON object of a bounded size; another place that it is said to be at is not asked."""
    data = bytearray()
    async with client.stream("GET", url) as answer:
        if answer.status_code != 200:
            raise ValueError(f"{url} answers {answer.status_code}")
        async for piece in answer.aiter_bytes():
            data += piece
            if len(data) > MOST_BYTES:
                raise ValueError(f"{url} is longer than {MOST_BYTES} bytes")
    found = json.loads(data)
    if not isinstance(found, dict):
        raise TypeError(f"{url} is no JSON object")
    return found


def _keys(document: dict[str, Any]) -> Keys:
    """Public keys for signatures; others are left out."""
    listed = document.get("keys")
    if not isinstance(listed, list):
        raise TypeError("its document of keys has no list of them")
    found: dict[str, dict[str, jwt.PyJWK]] = defaultdict(dict)
    for one in listed[:MOST_KEYS]:
        if not isinstance(one, dict) or one.get("use", "sig") != "sig":
            continue
        kind = one.get("crv") if one.get("kty") in ("EC", "OKP") else one.get("kty")
        for algorithm in ALGORITHMS.get(str(kind), ()):
            if one.get("alg", algorithm) != algorithm:
                continue
            try:
                found[str(one.get("kid"))][algorithm] = jwt.PyJWK(one, algorithm)
            except jwt.PyJWTError as error:
                logger.warning("a key of the issuer can't be used: %s", type(error).__name__)
    if not found:
        raise ValueError("it has no public key that could be used")
    return dict(found)


def _header(token: str) -> dict[str, Any] | None:
    try:
        return jwt.get_unverified_header(token)
    except (jwt.PyJWTError, ValueError, RecursionError):
        return None


def _may_sign(header: dict[str, Any]) -> bool:
    return any(header.get("alg") in known for known in ALGORITHMS.values())


def _subject(said: str) -> str:
    """A name for logs and usage: the issuer's own for who it is, or its digest where it is odd."""
    if _PLAIN.fullmatch(said):
        return f"oidc:{said}"
    return f"oidc:{sha256(said.encode('utf-8', 'replace')).hexdigest()[:16]}"


def _refused(what: str, hint: str) -> ServiceError:
    return Unauthenticated(f"the token {what}", hint=hint, code="invalid_token")
