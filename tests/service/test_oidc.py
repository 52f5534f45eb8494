"""Tokens of an issuer that really answers, really signed; and those of attackers."""

import asyncio
import base64
import hmac
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from adapters.audit import current_actor
from adapters.home import Home
from service import oidc
from service.auth import Authenticator
from service.errors import NotReady, ServiceError, Unauthenticated
from service.middleware import Bound, Bounds, Edge, Table
from service.oidc import ALGORITHMS, Issuer, is_token
from service.settings import Settings, SettingsError
from service.settings_sources import load_settings
from service.telemetry import Metrics
from service.trust import Trust, check_issuer

AUDIENCE = "modiste"


@cache
def private_key(kind: str, name: str = "a") -> Any:
    if kind.startswith("RSA"):
        return rsa.generate_private_key(65537, int(kind.partition("-")[2] or 2048))
    if kind == "Ed25519":
        return ed25519.Ed25519PrivateKey.generate()
    curves = {"P-256": ec.SECP256R1(), "P-384": ec.SECP384R1(), "P-521": ec.SECP521R1()}
    return ec.generate_private_key(curves[kind])


def public(kind: str, kid: str, name: str = "a", **more: Any) -> dict[str, Any]:
    """A key as the issuer publishes it."""
    algorithm = ALGORITHMS[kind.partition("-")[0] if kind.startswith("RSA") else kind][0]
    key = jwt.get_algorithm_by_name(algorithm)
    told: dict[str, Any] = json.loads(key.to_jwk(private_key(kind, name).public_key()))
    return {"kid": kid, **told, **more}


@dataclass
class Realm:
    """An issuer on a port of its own, and what was asked of it."""

    url: str = ""
    keys: list[dict[str, Any]] = field(default_factory=list)
    about: dict[str, Any] = field(default_factory=dict)
    """What its document says instead."""
    asked: list[str] = field(default_factory=list)
    status: int = 200
    waits_s: float = 0.0
    pads: int = 0

    @property
    def trust(self) -> Trust:
        return Trust(self.url, AUDIENCE)

    def answer(self, path: str) -> dict[str, Any]:
        if path == "/keys":
            return {"keys": self.keys, "pad": " " * self.pads}
        return {"issuer": self.url, "jwks_uri": f"{self.url}/keys", **self.about}

    def token(
        self, kind: str = "RSA", kid: str | None = "one", name: str = "a",
        algorithm: str | None = None, **claims: Any,
    ) -> str:  # fmt: skip
        """One that is right but for what is said otherwise; a claim that is None is left out."""
        now = int(time.time())
        told = {
            "iss": self.url, "aud": AUDIENCE, "sub": "ann", "project": "team", "iat": now,
            "exp": now + 60, **claims,
        }  # fmt: skip
        told = {claim: value for claim, value in told.items() if value is not None}
        headers = {} if kid is None else {"kid": kid}
        algorithm = algorithm or ALGORITHMS[kind.partition("-")[0] if "RSA" in kind else kind][0]
        return jwt.encode(told, private_key(kind, name), algorithm, headers=headers)


@contextmanager
def serving(realm: Realm) -> Iterator[Realm]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            realm.asked.append(self.path)
            time.sleep(realm.waits_s)
            data = json.dumps(realm.answer(self.path)).encode()
            self.send_response(realm.status)
            if realm.status in (301, 302):
                self.send_header("location", f"{realm.url}/elsewhere")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    realm.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield realm
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def realm() -> Iterator[Realm]:
    with serving(Realm(keys=[public("RSA", "one")])) as realm:
        yield realm


def ask(issuer: Issuer, *tokens: str) -> list[Any]:
    """What the edge does with each token, one after the other: a caller, or the refusal."""

    async def run() -> list[Any]:
        return [await one(issuer, token) for token in tokens]

    return asyncio.run(run())


async def one(issuer: Issuer, token: str) -> Any:
    authenticator = Authenticator(["a-key-of-sixteen-characters"], None, issuer)
    await authenticator.prepare(f"Bearer {token}")
    try:
        return authenticator.caller(f"Bearer {token}")
    except ServiceError as error:
        return error


def refusal(realm: Realm, token: str) -> str:
    """Why a token is not taken; nothing of it is repeated."""
    (error,) = ask(Issuer(realm.trust), token)
    assert isinstance(error, Unauthenticated)
    assert error.hint
    for part in (*token.split("."), "mallory", realm.url):
        assert not part or part not in error.message + error.hint
    return error.message


@pytest.mark.parametrize(
    ("kind", "algorithm"),
    [(kind, name) for kind, names in ALGORITHMS.items() for name in names],
)
def test_a_token_that_is_signed_with_a_public_key_names_its_caller(
    realm: Realm, kind: str, algorithm: str
) -> None:
    realm.keys = [public(kind, "one")]
    (caller,) = ask(Issuer(realm.trust), realm.token(kind, algorithm=algorithm))
    assert (caller.name, caller.project) == ("oidc:ann", "team")


def test_keys_are_taken_beside_tokens(realm: Realm) -> None:
    (caller,) = ask(Issuer(realm.trust), "a-key-of-sixteen-characters")
    assert (caller.name[:4], caller.project) == ("key-", "default")
    assert realm.asked == []
    (error,) = ask(Issuer(realm.trust), "not-a-key")
    assert (error.code, realm.asked) == ("invalid_api_key", [])
    assert Authenticator([], None, Issuer(realm.trust)).asks_for_keys
    with pytest.raises(Unauthenticated, match="no API key"):
        Authenticator([], None, Issuer(realm.trust)).caller(None)


@pytest.mark.parametrize(
    ("claims", "reason"),
    [
        ({"exp": 1}, "has expired"),
        ({"exp": None}, "lacks one of exp"),
        ({"exp": "soon"}, "is not valid"),
        ({"nbf": 4_000_000_000}, "is not valid yet"),
        ({"iat": 4_000_000_000}, "is not valid yet"),
        ({"aud": "another"}, "is for another audience"),
        ({"aud": ["another", "modiste2"]}, "is for another audience"),
        ({"aud": None}, "lacks one of exp"),
        ({"iss": "https://mallory.example"}, "is of another issuer"),
        ({"iss": None}, "lacks one of exp"),
        ({"sub": None}, "lacks one of exp"),
        ({"project": None}, "names no project in its claim 'project'"),
        ({"project": "../mallory"}, "names no project"),
        ({"project": ["team"]}, "names no project"),
        ({"project": ""}, "names no project"),
    ],
)
def test_a_claim_that_is_wrong_is_told(realm: Realm, claims: Any, reason: str) -> None:
    assert reason in refusal(realm, realm.token(**claims))


def test_the_clocks_may_differ_by_the_leeway(realm: Realm) -> None:
    now = int(time.time())
    late, early = realm.token(exp=now - 20), realm.token(nbf=now + 20, iat=now + 20)
    assert [caller.project for caller in ask(Issuer(realm.trust), late, early)] == ["team"] * 2
    assert "has expired" in refusal(realm, realm.token(exp=now - 40))
    exact = Issuer(Trust(realm.url, AUDIENCE, leeway_s=0))
    assert all(isinstance(error, Unauthenticated) for error in ask(exact, late, early))


def test_an_audience_among_several_and_another_claim_are_taken(realm: Realm) -> None:
    trust = Trust(realm.url, AUDIENCE, "https://example.com/tenant")
    token = realm.token(aud=["x", AUDIENCE], **{"https://example.com/tenant": "acme"})
    assert ask(Issuer(trust), token)[0].project == "acme"


@pytest.mark.parametrize("sub", ["a b", "ann\nadmin", "ü", "x" * 101])
def test_an_odd_subject_is_named_by_its_digest(realm: Realm, sub: str) -> None:
    (caller,) = ask(Issuer(realm.trust), realm.token(sub=sub))
    assert len(caller.name) == len("oidc:") + 16
    assert sub not in caller.name


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _encoded(value: Any) -> str:
    return _b64(json.dumps(value).encode())


def _hmac(realm: Realm, algorithm: str, secret: bytes, kid: str = "one") -> str:
    """Signed by hand: PyJWT refuses to take a public key for a secret."""
    _, body, _ = realm.token().split(".")
    signed = f"{_encoded({'alg': algorithm, 'kid': kid, 'typ': 'JWT'})}.{body}"
    signature = hmac.digest(secret, signed.encode(), f"sha{algorithm[2:]}")
    return f"{signed}.{_b64(signature)}"


class TestAttacks:
    def test_the_public_key_is_no_shared_secret(self, realm: Realm) -> None:
        """HS256 with the bytes of the public key, as libraries once took it."""
        pem = private_key("RSA").public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )  # fmt: skip
        for secret in (pem, pem.strip(), json.dumps(realm.keys[0]).encode()):
            for algorithm in ("HS256", "HS384", "HS512"):
                forged = _hmac(realm, algorithm, secret)
                assert "is not signed with a public key" in refusal(realm, forged)

    @pytest.mark.parametrize(
        "algorithm", ["none", "None", "NONE", "", None, 5, ["RS256"], "ES256K"]
    )
    def test_no_signature_is_none(self, realm: Realm, algorithm: Any) -> None:
        _, body, signature = realm.token().split(".")
        header = _encoded({"alg": algorithm, "kid": "one", "typ": "JWT"})
        for last in ("", signature):
            reason = refusal(realm, f"{header}.{body}.{last}")
            assert "is not signed with a public key" in reason or "can't be read" in reason
        assert "is not signed" in refusal(realm, f"{_encoded({'kid': 'one'})}.{body}.")

    def test_a_shared_secret_that_the_issuer_publishes_opens_nothing(self, realm: Realm) -> None:
        secret = b"0123456789abcdef0123456789abcdef"
        realm.keys.append({"kty": "oct", "kid": "shared", "k": _b64(secret), "alg": "HS256"})
        forged = _hmac(realm, "HS256", secret, kid="shared")
        assert "is not signed with a public key" in refusal(realm, forged)

    def test_an_algorithm_that_is_not_the_keys_is_refused(self, realm: Realm) -> None:
        realm.keys = [public("RSA", "one", alg="RS256"), public("P-256", "two")]
        for token in (
            realm.token(algorithm="PS256"), realm.token(algorithm="RS512"),
            realm.token("P-256", kid="one"), realm.token("RSA", kid="two"),
        ):  # fmt: skip
            assert "a key that the issuer does not have" in refusal(realm, token)

    def test_a_body_that_was_altered_and_another_key_under_the_same_id_are_refused(
        self, realm: Realm
    ) -> None:
        head, _, signature = realm.token().split(".")
        _, body, _ = realm.token(project="mallory").split(".")
        assert "has a wrong signature" in refusal(realm, f"{head}.{body}.{signature}")
        assert "has a wrong signature" in refusal(realm, realm.token(name="mallory"))

    def test_a_key_that_the_token_brings_is_not_looked_at(self, realm: Realm) -> None:
        with serving(Realm(keys=[public("RSA", "evil", "mallory")])) as evil:
            headers = {
                "kid": "evil", "jwk": public("RSA", "evil", "mallory"), "jku": f"{evil.url}/keys",
                "x5u": f"{evil.url}/keys",
            }  # fmt: skip
            claims = jwt.decode(realm.token(), options={"verify_signature": False})
            forged = jwt.encode(claims, private_key("RSA", "mallory"), "RS256", headers)
            assert "a key that the issuer does not have" in refusal(realm, forged)
            assert evil.asked == []

    def test_a_short_key_opens_nothing(self, realm: Realm) -> None:
        realm.keys = [public("RSA-1024", "one")]
        assert "is not valid" in refusal(realm, realm.token("RSA-1024"))

    def test_a_key_for_encryption_signs_nothing(self, realm: Realm) -> None:
        realm.keys = [public("RSA", "one", use="enc"), public("P-256", "two")]
        assert "a key that the issuer does not have" in refusal(realm, realm.token())

    def test_a_token_without_a_key_id_needs_an_issuer_with_one_key(self, realm: Realm) -> None:
        assert ask(Issuer(realm.trust), realm.token(kid=None))[0].project == "team"
        realm.keys.append(public("P-256", "two"))
        assert "a key that the issuer does not have" in refusal(realm, realm.token(kid=None))

    def test_a_flood_of_unknown_keys_asks_the_issuer_once(self, realm: Realm) -> None:
        issuer = Issuer(realm.trust)
        realm.waits_s = 0.05

        async def flood() -> list[Any]:
            await one(issuer, realm.token())
            realm.asked.clear()
            issuer._tried -= oidc.AGAIN_S
            forged = [realm.token(kid=f"kid-{number}") for number in range(200)]
            return await asyncio.gather(*(one(issuer, token) for token in forged))

        errors = asyncio.run(flood())
        assert {error.code for error in errors} == {"invalid_token"}
        assert realm.asked == [oidc.DISCOVERY, "/keys"]

    @settings(max_examples=40)
    @given(st.text(max_size=200) | st.binary(max_size=90).map(_b64))
    def test_whatever_is_sent_is_a_refusal(self, text: str) -> None:
        issuer = Issuer(Trust("http://127.0.0.1:1", AUDIENCE), again_s=1e9)
        for token in (text, f"{text}.{text}.{text}", f"{_b64(b'{}')}.{text}.", f"..{text}"):
            (error,) = ask(issuer, token)
            assert error.status in (401, 503)
            assert not is_token(token) or error.code in ("invalid_token", "issuer_away")


class TestTheIssuersKeys:
    def test_a_rotated_key_is_found_and_the_old_one_goes(self, realm: Realm) -> None:
        issuer = Issuer(realm.trust, again_s=0)
        old, new = realm.token(), realm.token("P-256", kid="two")
        assert [caller.project for caller in ask(issuer, old, old, old)] == ["team"] * 3
        assert realm.asked == [oidc.DISCOVERY, "/keys"]
        realm.keys = [public("P-256", "two")]
        after, before = ask(issuer, new, old)
        assert after.project == "team"
        assert before.code == "invalid_token"

    def test_an_issuer_that_is_away_leaves_what_is_known(self, realm: Realm) -> None:
        issuer = Issuer(realm.trust, again_s=0)
        ask(issuer, realm.token())
        realm.status = 503
        known, unknown, again = ask(issuer, realm.token(), realm.token(kid="two"), realm.token())
        assert (known.project, again.project) == ("team", "team")
        assert unknown.code == "invalid_token"

    def test_before_its_keys_are_known_a_token_is_to_be_sent_again(self, realm: Realm) -> None:
        realm.status = 500
        (error,) = ask(Issuer(realm.trust), realm.token())
        assert isinstance(error, NotReady)
        assert (error.code, error.retryable) == ("issuer_away", True)

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"status": 302}, "answers 302"),
            ({"about": {"issuer": "https://mallory.example"}}, "says that it is"),
            ({"about": {"jwks_uri": "http://mallory.example/keys"}}, "is not https"),
            ({"about": {"jwks_uri": "file:///etc/passwd"}}, "is not https"),
            ({"keys": []}, "no public key"),
            ({"keys": "none"}, "no list"),
            ({"keys": [{"kty": "RSA", "kid": "one", "n": "!", "e": "AQAB"}, 5]}, "no public key"),
            ({"pads": 2**20}, "is longer than"),
        ],
    )
    def test_an_answer_that_can_not_be_trusted_is_not_taken(
        self, realm: Realm, change: dict[str, Any], said: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        for name, value in change.items():
            setattr(realm, name, value)
        (error,) = ask(Issuer(realm.trust), realm.token())
        assert error.code == "issuer_away"
        assert said in caplog.text
        assert "/elsewhere" not in realm.asked

    def test_a_slow_issuer_holds_up_nobody_else(
        self, realm: Realm, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(oidc, "TIMEOUT_S", 0.1)
        realm.waits_s = 0.5

        async def run() -> tuple[Any, int]:
            asked = asyncio.create_task(one(Issuer(realm.trust), realm.token()))
            turns = 0
            while not asked.done():
                await asyncio.sleep(0.001)
                turns += 1
            return asked.result(), turns

        error, turns = asyncio.run(run())
        assert error.code == "issuer_away"
        assert turns > 20

    def test_they_are_fetched_before_anybody_comes_and_projects_that_go_are_followed(
        self, realm: Realm, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(oidc, "CLOSED_S", 0.01)
        closed: set[str] = set()
        issuer = Issuer(realm.trust, lambda: frozenset(closed))

        async def run() -> list[Any]:
            following = asyncio.create_task(issuer.follow())
            while "/keys" not in realm.asked or issuer._keys is None:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            found = [issuer.bearer(realm.token()).project]
            closed.add("team")
            while "team" not in issuer._closed:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            found += [await one(issuer, realm.token()), await one(issuer, realm.token(project="x"))]
            following.cancel()
            return found

        first, gone, other = asyncio.run(run())
        assert (first, gone.status, gone.code) == ("team", 401, "project_deleted")
        assert other.project == "x"
        assert realm.asked == [oidc.DISCOVERY, "/keys"]


class TestTheEdge:
    """As a request comes in."""

    def get(self, issuer: Issuer, path: str, *headers: str | None) -> list[httpx.Response]:
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            told = asdict(current_actor())
            await JSONResponse(told)(scope, receive, send)

        edge = Edge(
            app, table=Table.of(["/v1/models", "/health/live"]),
            authenticator=Authenticator([], None, issuer), metrics=Metrics(CollectorRegistry()),
            bounds=Bounds(Bound(1000, "max_body_bytes"), {}),
        )  # fmt: skip

        async def run() -> list[httpx.Response]:
            transport = httpx.ASGITransport(edge)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                return [
                    await client.get(path, headers={} if h is None else {"authorization": h})
                    for h in headers
                ]

        return asyncio.run(run())

    def test_a_tokens_caller_acts_for_its_project(self, realm: Realm) -> None:
        right, wrong, none = self.get(
            Issuer(realm.trust), "/v1/models", f"Bearer {realm.token()}",
            f"Bearer {realm.token(aud='another')}", None,
        )  # fmt: skip
        actor = right.json()
        assert (actor["kind"], actor["name"], actor["project"]) == ("caller", "oidc:ann", "team")
        assert actor["request_id"] == right.headers["x-request-id"]
        error = wrong.json()["error"]
        assert (wrong.status_code, error["code"]) == (401, "invalid_token")
        assert error["message"] == "the token is for another audience"
        assert (none.status_code, none.json()["error"]["code"]) == (401, "missing_api_key")

    def test_probes_never_make_the_server_ask_the_issuer(self, realm: Realm) -> None:
        (answer,) = self.get(Issuer(realm.trust), "/health/live", f"Bearer {realm.token()}")
        assert (answer.status_code, realm.asked) == (200, [])


class TestSettings:
    @pytest.mark.parametrize(
        "url",
        [
            "http://login.example.com", "login.example.com", "ftp://x", "https://",
            "https://ann:secret@example.com", "https://example.com/?x=1", "https://example.com/#x",
        ],
    )  # fmt: skip
    def test_an_address_that_is_none_or_not_private_is_refused(self, url: str) -> None:
        with pytest.raises(ValueError, match="must"):
            check_issuer(url)

    def test_an_issuer_needs_an_audience(self, tmp_path: Any) -> None:
        environment = {"MODISTE_OIDC_ISSUER": "https://login.example.com/realm"}
        with pytest.raises(SettingsError, match="needs oidc_audience"):
            load_settings(Home(tmp_path), {}, environment)
        environment["MODISTE_OIDC_AUDIENCE"] = AUDIENCE
        loaded = load_settings(Home(tmp_path), {}, environment)
        assert loaded.trust() == Trust("https://login.example.com/realm", AUDIENCE)
        assert Settings().trust() is None
