"""/api/admin/keys and /api/admin/accounts/{id}/keys: customers' keys and agents' tokens."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

from aiohttp import web

from lcp_gateway.accounts.callers import KeyRules, Scope
from lcp_gateway.accounts.documents import key_document
from lcp_gateway.accounts.models import KeyKind, KeyRecord
from lcp_gateway.accounts.repositories import KeyRepository
from lcp_gateway.http.error_mapping import account_errors
from lcp_gateway.http.errors import ApiError, bad_request
from lcp_gateway.http.fields import (
    Fields,
    actor_of,
    json_response,
    list_response,
    read_fields,
    read_id,
    read_page,
    unix_time,
)
from lcp_gateway.purchase.money import Msat

_SCOPES = frozenset(scope.value for scope in Scope)


class KeyRoutes:
    """Serves the administrator."""

    def __init__(self, keys: KeyRepository, *, on_change: Callable[[], Awaitable[None]], read_timeout_s: float) -> None:
        """``on_change`` makes this process reload the keys, so that a revoked one is refused at once."""
        self._keys = keys
        self._on_change = on_change
        self._read_timeout_s = read_timeout_s

    async def create(self, request: web.Request) -> web.Response:
        """Serve POST /api/admin/accounts/{id}/keys."""
        account_id = read_id(request)
        fields = await read_fields(request, self._read_timeout_s)
        name = fields.text("name") or "key"
        kind = _read_kind(fields)
        rules = _read_rules(fields)
        fields.done()
        with account_errors():
            made = await self._keys.create(
                account_id, name=name, actor=actor_of(request), at=datetime.now(UTC), rules=rules, kind=kind
            )
        await self._on_change()
        document = {**_key(made.record), "key": made.text}
        if kind is KeyKind.AGENT:
            document["agent_path"] = f"/api/agent/{made.text}/v1"
        return json_response(document, status=201)

    async def list(self, request: web.Request) -> web.Response:
        """Serve GET /api/admin/accounts/{id}/keys and GET /api/admin/keys."""
        limit, after = read_page(request)
        account_id = read_id(request) if "id" in request.match_info else None
        page = await self._keys.page(account_id, limit=limit, after=after or None)
        return list_response(map(_key, page.items), page.after)

    async def get(self, request: web.Request) -> web.Response:
        """Serve GET /api/admin/keys/{id}."""
        return json_response(_key(_found(await self._keys.get(read_id(request)))))

    async def revoke(self, request: web.Request) -> web.Response:
        """Serve DELETE /api/admin/keys/{id}."""
        key_id = read_id(request)
        revoked = await self._keys.revoke(key_id, actor=actor_of(request), at=datetime.now(UTC))
        record = _found(revoked)
        await self._on_change()
        return json_response(_key(record))


def _found(record: KeyRecord | None) -> KeyRecord:
    if record is None:
        raise ApiError(404, "there is no such key", code="key_not_found", param="id")
    return record


def _key(record: KeyRecord) -> dict[str, object]:
    return {"object": "lcp.key", **key_document(record, unix_time)}


def _read_kind(fields: Fields) -> KeyKind:
    try:
        return KeyKind(fields.text("kind") or KeyKind.API)
    except ValueError:
        raise bad_request("kind may be api or agent", "kind", "invalid_value") from None


def _read_rules(fields: Fields) -> KeyRules:
    scopes = fields.names("scopes", allowed=_SCOPES)
    models = fields.names("models")
    return KeyRules(
        scopes=KeyRules().scopes if scopes is None else frozenset(map(Scope, scopes)),
        models=models or frozenset(),
        max_price_msat=Msat(fields.amount("max_price_msat") or 0),
        requests_per_minute=fields.amount("requests_per_minute") or 0,
        tokens_per_minute=fields.amount("tokens_per_minute") or 0,
        budget_hour_msat=Msat(fields.amount("budget_hour_msat") or 0),
        budget_day_msat=Msat(fields.amount("budget_day_msat") or 0),
        budget_month_msat=Msat(fields.amount("budget_month_msat") or 0),
        concurrent_jobs=fields.amount("concurrent_jobs") or 0,
        expires_at=fields.time("expires_at"),
    )
