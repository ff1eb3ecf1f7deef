"""Authentication: none, the operator's static keys, or customers' keys, agents' tokens and L402 tokens."""

import hashlib
import hmac
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Protocol

from aiohttp import web

from lcp_gateway.accounts.callers import Caller, KeyRules, Scope
from lcp_gateway.accounts.keys import KeysStale
from lcp_gateway.http.errors import ApiError
from lcp_gateway.http.permissions import BUYING_PATHS, check_permission

if TYPE_CHECKING:
    from lcp_gateway.http.gateway.l402 import L402Routes

AGENT_TOKEN = "agent_token"  # noqa: S105 - the name of a part of a path
"""The name of the part of the path that holds an agent's token."""

ANONYMOUS = Caller("", None, KeyRules(scopes=frozenset({Scope.INFERENCE})))
"""The caller where no authentication is configured, and other machines can reach the gateway."""
LOCAL_RULES = KeyRules(scopes=frozenset({Scope.INFERENCE, Scope.ADMIN}))
LOCAL = Caller("", None, LOCAL_RULES)
"""The caller where no authentication is configured, on this machine: its user is the operator."""
ADMINISTRATOR = Caller("admin", None, KeyRules(scopes=frozenset({Scope.ADMIN})))
"""The caller of ``admin_key``."""
# Enough of a key's SHA-256 to tell keys apart, and not enough to authenticate.
_NAME_CHARS = 12


class StaticKeys:
    """The keys of the settings; an empty list admits every request."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = tuple(_digest(key) for key in keys)

    @property
    def rules(self) -> KeyRules:
        """The rules of each key, where there are no customers.

        The holder of the only key is the operator. Several keys may have several holders, who see nothing of one another.
        """
        return LOCAL_RULES if len(self._digests) == 1 else ANONYMOUS.rules

    def check(self, authorization: str | None) -> str:
        """Return the name of the key in an ``Authorization`` header (never the key), or "" without keys.

        The time taken does not depend on the key: digests of equal length are compared, and all of them.

        Raises:
            ApiError: 401.
        """
        if not self._digests:
            return ""
        scheme, _, key = (authorization or "").partition(" ")
        name = self.find(key.strip())
        if not name or scheme.lower() != "bearer":
            raise _unknown_key()
        return name

    def find(self, key: str) -> str:
        """Return the name of a key, or "" for an unknown one, in the same time for all."""
        presented = _digest(key)
        found = False
        for digest in self._digests:
            found |= hmac.compare_digest(digest, presented)
        return f"key_{presented.hex()[:_NAME_CHARS]}" if found else ""


class Authenticator(Protocol):
    """Finds the caller of a request."""

    async def admit(self, request: web.Request) -> Caller:
        """Return the caller.

        Raises:
            ApiError: 401, or 403 for a key without the scope of the path.
        """
        ...


class OpenAuthenticator:
    """Admits every request; with ``is_local``, where only this machine can reach the gateway, as its operator's."""

    def __init__(self, *, is_local: bool = False) -> None:
        self._caller = LOCAL if is_local else ANONYMOUS

    async def admit(self, request: web.Request) -> Caller:
        """Return the local or the anonymous caller."""
        return _permitted(self._caller, request)


class StaticKeyAuthenticator:
    """Admits requests with one of the static keys, where there are no customers."""

    def __init__(self, keys: StaticKeys) -> None:
        self._keys = keys

    async def admit(self, request: web.Request) -> Caller:
        """Return the caller of a static key."""
        key_id = self._keys.check(request.headers.get("Authorization"))
        return _permitted(Caller(key_id, None, self._keys.rules), request)


class AccountAuthenticator:
    """Admits customers, the operator's static keys, and on its own routes the administrator."""

    def __init__(
        self,
        *,
        find: Callable[[str], Caller | None],
        admin_key: str,
        check_fresh: Callable[[], None] = lambda: None,
        l402: "L402Routes | None" = None,
    ) -> None:
        """``find`` looks a key up, in the same time for every key.

        It raises ``KeysStale`` for every key of the store while its state there is unknown; ``check_fresh`` does so for
        other credentials of accounts. The operator's static keys are in the settings, and need no store.
        """
        self._find = find
        self._check_fresh = check_fresh
        self._admin_digest = _digest(admin_key) if admin_key else None
        self._l402 = l402

    async def admit(self, request: web.Request) -> Caller:
        """Return the caller of a key, an agent's token or an L402 token with the scope of the path."""
        try:
            caller = await self._caller(request)
        except KeysStale as stale:
            raise keys_unavailable(stale) from stale
        if caller is None:
            if AGENT_TOKEN in request.match_info:
                raise unauthorized(
                    "the token in the URL is not valid: /api/agent/<token>/v1 needs an agent's token that is neither revoked "
                    "nor expired"
                )
            is_anonymous = not request.headers.get("Authorization")
            would_buy = request.method == "POST" and request.path in BUYING_PATHS
            if is_anonymous and self._l402 is not None and would_buy:
                raise await self._l402.challenge(request)
            raise _unknown_key()
        check_permission(caller, request)
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
        if self._admin_digest is not None and hmac.compare_digest(self._admin_digest, _digest(key)):
            return ADMINISTRATOR
        # A request without a key needs no store to be refused.
        return self._find(key) if key else None


def _permitted(caller: Caller, request: web.Request) -> Caller:
    """Return the caller, once it is known that it may use the route; one that there is not is told as such."""
    if request.match_info.http_exception is None:
        check_permission(caller, request)
    return caller


def _unknown_key() -> ApiError:
    return unauthorized("a valid API key is needed: Authorization: Bearer <key>")


def keys_unavailable(stale: KeysStale) -> ApiError:
    """Return the error while customers' keys cannot be checked."""
    return ApiError(
        503,
        f"this key cannot be checked right now: {stale}; nothing was paid, try again",
        code="keys_unavailable",
        retry=True,
        reason="keys",
    )


def unauthorized(message: str) -> ApiError:
    """Return the error for a credential that is not valid."""
    return ApiError(401, message, code="invalid_api_key", reason="auth", headers={"WWW-Authenticate": "Bearer"})


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
