"""The one check of permissions: the scopes that open a route, whatever credential the caller was found by."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from aiohttp import web

from lcp_gateway.accounts.callers import Caller, Scope
from lcp_gateway.http.errors import ApiError
from lcp_gateway.http.openai.request_headers import is_route_only

METRICS: Final = "/metrics"
RANKING: Final = "/api/models/route"
BUYING_PATHS: Final = frozenset({"/v1/chat/completions", "/v1/responses", "/v1/completions", "/v1/embeddings", RANKING})
"""The routes that an L402 payment opens: stored objects belong to a credential that exists already."""

_INFERENCE = frozenset({Scope.INFERENCE})
_ADMIN = frozenset({Scope.ADMIN})
_WALLET = frozenset({Scope.WALLET, Scope.ACCOUNT})
_OFFERS = frozenset({Scope.INFERENCE, Scope.ACCOUNT, Scope.ADMIN})
_ANY = frozenset(Scope) - {Scope.NODE, Scope.WITHDRAW}
# By the longest beginning of a path, for reads and for all other methods.
_SCOPES: Final[Mapping[str, tuple[frozenset[Scope], frozenset[Scope]]]] = MappingProxyType(
    {
        "/api/admin": (_ADMIN, _ADMIN),
        "/api/providers": (_ADMIN, _ADMIN),
        # Every caller that can sign in can sign out.
        "/api/session": (frozenset(Scope), frozenset(Scope)),
        "/api/sessions": (frozenset(Scope), frozenset(Scope)),
        "/api/account": (_WALLET, frozenset({Scope.ACCOUNT})),
        "/api/wallet/withdrawals": (_WALLET, frozenset({Scope.WITHDRAW})),
        "/api/wallet": (_WALLET, _WALLET),
        "/api/nodes": (_WALLET, _ADMIN),
        "/api/purchases": (_ANY, _ADMIN),
        "/api/usage": (_ANY, _ADMIN),
        "/api/budgets": (_ANY, _ADMIN),
        "/api/events": (_ANY, _ADMIN),
        RANKING: (_OFFERS, _OFFERS),
        "/api/models": (_ANY, _ADMIN),
        "/v1/models": (_OFFERS, _INFERENCE),
        "/v1/receipts": (_ANY, _INFERENCE),
    }
)
_READS = frozenset({"GET", "HEAD"})
# Records of purchases: without keys all clients are one caller, and on a network each would see what the others bought.
_RECORDS = ("/api/purchases/", "/api/usage/", "/api/budgets/", "/api/events/")


def scopes_for(method: str, path: str) -> frozenset[Scope]:
    """Return the scopes of which a caller needs one for a route."""
    while path:
        if (found := _SCOPES.get(path)) is not None:
            reads, writes = found
            return reads if method in _READS else writes
        path = path.rpartition("/")[0]
    return _INFERENCE


def check_permission(caller: Caller, request: web.Request) -> None:
    """Check that a caller may use the route of a request.

    Raises:
        ApiError: 403.
    """
    path = request.path
    if path == METRICS:
        # The metrics cover all customers, so none of them may read them.
        if caller.account_id is not None:
            raise missing_scope("metrics")
        return
    scopes = caller.rules.scopes
    needed = scopes_for(request.method, path)
    if request.method == "POST" and path in BUYING_PATHS and is_route_only(request.headers):
        # The offer is shown, and nothing can be bought.
        needed = _OFFERS
    if not caller.key_id and f"{path}/".startswith(_RECORDS):
        needed = _ADMIN
    if not scopes.isdisjoint(needed):
        return
    if not caller.key_id:
        raise ApiError(
            403,
            "without authentication this route is served on the loopback interface only: set http_addr to a loopback "
            "address, or set api_keys",
            code="missing_scope",
            reason="auth",
        )
    raise missing_scope(" or ".join(sorted(needed)) if needed != _ANY else "any route")


def check_may_buy(caller: Caller) -> None:
    """Check that a caller may buy: the administrator may only read the offers.

    Raises:
        ApiError: 403.
    """
    if Scope.INFERENCE not in caller.rules.scopes:
        raise missing_scope(Scope.INFERENCE.value)


def missing_scope(scope: str) -> ApiError:
    """Return the error for a key without a scope."""
    return ApiError(403, f"this key is not good for {scope}", code="missing_scope", reason="auth")
