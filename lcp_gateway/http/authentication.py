"""Authentication: static keys, customers' keys, agents' tokens, L402 tokens, or none."""

import hashlib
import hmac
from collections.abc import Callable, Iterable
from hashlib import sha256
from typing import Protocol

from aiohttp import web

from lcp_gateway.accounts.callers import Caller, KeyRules, Scope
from lcp_gateway.accounts.keys import KeysStale
from lcp_gateway.http.errors import ApiError
from lcp_gateway.http.openai.request_headers import is_route_only
from lcp_gateway.purchase.states import Verdict

# Enough of a key's SHA-256 to tell keys apart, and nothing that lets anyone in.
_NAME_CHARS = 12


class StaticKeys:
    """A list of keys, any of which lets a request in; an empty list lets everyone in."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = tuple(_digest(key) for key in keys)

    def __bool__(self) -> bool:
        return bool(self._digests)

    def check(self, authorization: str | None) -> str:
        """Let an ``Authorization`` header pass; gives the key's name, which is not the key, or "" without keys.

        The time taken does not tell which key came close: digests of equal length are compared, and all of them.

        Raises:
            ApiError: 401.
        """
        if not self._digests:
            return ""
        scheme, _, key = (authorization or "").partition(" ")
        name = self.find(key.strip())
        if not name or scheme.lower() != "bearer":
            raise ApiError(
                401,
                "a valid API key is needed: Authorization: Bearer <key>",
                code="invalid_api_key",
                reason="auth",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return name

    def find(self, key: str) -> str:
        """Give the name of a key, or "" for one that is none of these; in the same time for all."""
        presented = _digest(key)
        found = False
        for digest in self._digests:
            found |= hmac.compare_digest(digest, presented)
        return f"key_{presented.hex()[:_NAME_CHARS]}" if found else ""


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


AGENT_TOKEN = "agent_token"  # noqa: S105 - the name of a part of a path
"""What the part of the path is called that holds an agent's token."""

_ADMIN_PATHS = "/api/admin/"
_WALLET_PATHS = ("/api/wallet",)
_METRICS = "/metrics"
_MODELS, _RANKING = "/v1/models", "/api/models/route"
# The routes that can be paid for at the door: what is stored belongs to somebody who has a credential already.
_BUYING_PATHS = frozenset(
    {"/v1/chat/completions", "/v1/responses", "/v1/completions", "/v1/embeddings", _RANKING}
)
ANONYMOUS = Caller("", None, KeyRules(scopes=frozenset({Scope.INFERENCE})))
_ADMINISTRATOR = Caller("admin", None, KeyRules(scopes=frozenset({Scope.ADMIN})))


class Authenticator(Protocol):
    """Lets callers in."""

    async def admit(self, request: web.Request) -> Caller:
        """Tell who sends a request.

        Raises:
            ApiError: 401, or 403 for a key that is not good for this.
        """
        ...


class OpenAuthenticator:
    """Serves everyone."""

    async def admit(self, request: web.Request) -> Caller:  # noqa: ARG002 - the protocol's signature
        """Let it in."""
        return ANONYMOUS


class StaticKeyAuthenticator:
    """Serves who has one of the static keys."""

    def __init__(self, keys: StaticKeys) -> None:
        self._keys = keys

    async def admit(self, request: web.Request) -> Caller:
        """Let a key pass."""
        key_id = self._keys.check(request.headers.get("Authorization"))
        return Caller(key_id, None, ANONYMOUS.rules)


class AccountAuthenticator:
    """Serves customers, the operator's static keys, and the administrator; to the last only what is the administrator's."""

    def __init__(
        self,
        *,
        find: Callable[[str], Caller | None],
        admin_key: str,
        check_fresh: Callable[[], None] = lambda: None,
        l402: "L402Authenticator | None" = None,
    ) -> None:
        """``find`` looks a key up, in the same time whatever it finds.

        It raises ``KeysStale`` for every key whose standing is in the store, while that cannot be known; ``check_fresh``
        does so for other credentials of accounts. The operator's own keys are in the settings, and need no store.
        """
        self._find = find
        self._check_fresh = check_fresh
        self._admin_digest = _sha256(admin_key) if admin_key else None
        self._l402 = l402

    async def admit(self, request: web.Request) -> Caller:
        """Let a key, an agent's token or an L402 token pass that is good for the path."""
        scope = scope_of(request.path)
        try:
            caller = await self._caller(request)
        except KeysStale as stale:
            raise _stale(stale) from stale
        if caller is None:
            anonymous = AGENT_TOKEN not in request.match_info and not request.headers.get(
                "Authorization"
            )
            if anonymous and self._l402 is not None and _would_buy(request):
                raise await self._l402.challenge(request)
            raise _unknown_token() if AGENT_TOKEN in request.match_info else _unknown()
        if request.path == _METRICS:
            # They tell of all customers: nothing for one of them.
            if caller.account_id is not None:
                raise _not_good_for("metrics")
            return caller
        if caller is _ADMINISTRATOR and _only_looks(request):
            return caller
        if scope not in caller.rules.scopes:
            raise _not_good_for(scope.value)
        return caller

    async def _caller(self, request: web.Request) -> Caller | None:
        if token := request.match_info.get(AGENT_TOKEN):
            return self._find(token)
        authorization = request.headers.get("Authorization", "")
        scheme, _, credential = authorization.partition(" ")
        if self._l402 is not None and scheme.lower() in {"l402", "lsat"}:
            self._check_fresh()
            return await self._l402.admit(authorization)
        key = credential.strip() if scheme.lower() == "bearer" else ""
        if self._admin_digest is not None and hmac.compare_digest(self._admin_digest, _sha256(key)):
            return _ADMINISTRATOR
        # No key at all is none whatever the store says.
        return self._find(key) if key else None


class L402Authenticator(Protocol):
    """Lets in whoever has paid at the door."""

    async def admit(self, authorization: str) -> Caller | None:
        """Tell whose token it is, or None where it proves nothing."""
        ...

    async def challenge(self, request: web.BaseRequest) -> ApiError:
        """Give the answer that asks to be paid."""
        ...


def scope_of(path: str) -> Scope:
    """Give what a key must be good for to use a path."""
    if path.startswith(_ADMIN_PATHS):
        return Scope.ADMIN
    return Scope.WALLET if path.startswith(_WALLET_PATHS) else Scope.INFERENCE


def _only_looks(request: web.Request) -> bool:
    """Tell whether a request reads what is on offer, or asks how it would be routed, and can buy nothing."""
    if request.method == "GET":
        return request.path == _MODELS or request.path.startswith(f"{_MODELS}/")
    if request.method != "POST":
        return False
    if request.path == _RANKING:
        return True
    return request.path in _BUYING_PATHS and is_route_only(request.headers)


def check_may_buy(caller: Caller) -> None:
    """Let a caller pass that may buy answers: one that may only look does not come further.

    Raises:
        ApiError: 403.
    """
    if Scope.INFERENCE not in caller.rules.scopes:
        raise _not_good_for(Scope.INFERENCE.value)


def _would_buy(request: web.Request) -> bool:
    """Tell whether a request goes to a route that buys, by the method that it takes."""
    return request.method == "POST" and request.path in _BUYING_PATHS


def _not_good_for(what: str) -> ApiError:
    return ApiError(403, f"this key is not good for {what}", code="missing_scope", reason="auth")


def _stale(stale: KeysStale) -> ApiError:
    return ApiError(
        503,
        f"this key cannot be checked right now: {stale}; nothing was paid, try again",
        code="keys_unavailable",
        retry=True,
        reason="keys",
    )


def _unknown() -> ApiError:
    return ApiError(
        401,
        "a valid API key is needed: Authorization: Bearer <key>",
        code="invalid_api_key",
        reason="auth",
        verdict=Verdict.NONE,
        headers={"WWW-Authenticate": "Bearer"},
    )


def _unknown_token() -> ApiError:
    return ApiError(
        401,
        "the token in the URL is not valid: /api/agent/<token>/v1 needs an agent's token that is neither revoked nor over",
        code="invalid_api_key",
        reason="auth",
        headers={"WWW-Authenticate": "Bearer"},
    )


def _sha256(key: str) -> bytes:
    return sha256(key.encode("utf-8", "surrogateescape")).digest()
