"""Keys of accounts and agents' tokens: /api/account/keys for their holders, /api/admin/keys for the operator."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from datetime import datetime
from typing import Final

from aiohttp import web

from lcp_gateway.accounts.callers import KeyRules, Scope
from lcp_gateway.accounts.documents import KEY_LIMITS, key_document
from lcp_gateway.accounts.models import KeyKind, KeyRecord
from lcp_gateway.accounts.repositories import KeyRepository
from lcp_gateway.clock import utc_now
from lcp_gateway.http.context import CONTEXT
from lcp_gateway.http.errors import ApiError, bad_request
from lcp_gateway.http.fields import (
    Fields,
    account_of,
    actor_of,
    json_response,
    list_response,
    read_fields,
    read_id,
    read_page,
    unix_time,
)
from lcp_gateway.purchase.money import Msat, Period
from lcp_gateway.purchase.records import KeyUse, PurchaseBooks

_SCOPES: Final = frozenset(scope.value for scope in Scope)
# A key that manages an account may give these, and beside them what it has itself: it cannot come to withdraw by a key that it makes.
_GIVEN_BY_CUSTOMERS: Final = frozenset({Scope.INFERENCE, Scope.WALLET, Scope.ACCOUNT, Scope.NODE})
_NO_KEY: Final = "key_none"
"""No key has this id: its use is that of a new key."""
# The limit of requests and jobs is a number, all others are amounts.
_AMOUNTS: Final = frozenset({"max_price_msat", "budget_hour_msat", "budget_day_msat", "budget_month_msat"})


@dataclass(frozen=True, slots=True)
class KeyRoutes:
    """Serves the operator, and customers for their own account.

    ``on_change`` makes this process reload the keys, so that a revoked one is refused at once; it raises nothing.

    ``books`` tell how keys are used.
    """

    keys: KeyRepository
    _: KW_ONLY
    books: PurchaseBooks | None
    on_change: Callable[[], Awaitable[None]]
    read_timeout_s: float
    now: Callable[[], datetime] = utc_now

    # -- the operator ---------------------------------------------------------------------------------

    async def create(self, request: web.Request) -> web.Response:
        """Serve POST /api/admin/accounts/{id}/keys: create a key; its text is in the response, and never again."""
        return await self._create(request, read_id(request), _SCOPES)

    async def list(self, request: web.Request) -> web.Response:
        """Serve GET /api/admin/accounts/{id}/keys: the keys of an account, the newest first."""
        return await self._page(request, read_id(request))

    async def list_all(self, request: web.Request) -> web.Response:
        """Serve GET /api/admin/keys: the keys of all accounts, the newest first."""
        return await self._page(request, None)

    async def get(self, request: web.Request) -> web.Response:
        """Serve GET /api/admin/keys/{id}: a key with its use."""
        return await self._one(_found(await self.keys.get(read_id(request))))

    async def change(self, request: web.Request) -> web.Response:
        """Serve PATCH /api/admin/keys/{id}: change its name, limits, models, scopes or end."""
        return await self._change(request, _found(await self.keys.get(read_id(request))), _SCOPES)

    async def revoke(self, request: web.Request) -> web.Response:
        """Serve DELETE /api/admin/keys/{id}: revoke a key, for good."""
        return await self._revoke(request, read_id(request))

    # -- customers ------------------------------------------------------------------------------------

    async def create_own(self, request: web.Request) -> web.Response:
        """Serve POST /api/account/keys: create a key; its text is in the response, and never again."""
        return await self._create(request, account_of(request), _grantable(request))

    async def list_own(self, request: web.Request) -> web.Response:
        """Serve GET /api/account/keys: the keys of the account, the newest first."""
        return await self._page(request, account_of(request))

    async def get_own(self, request: web.Request) -> web.Response:
        """Serve GET /api/account/keys/{id}: a key with its use."""
        return await self._one(await self._own(request))

    async def change_own(self, request: web.Request) -> web.Response:
        """Serve PATCH /api/account/keys/{id}: change its name, limits, models, scopes or end."""
        return await self._change(request, await self._own(request), _grantable(request))

    async def revoke_own(self, request: web.Request) -> web.Response:
        """Serve DELETE /api/account/keys/{id}: revoke a key, for good."""
        return await self._revoke(request, (await self._own(request)).id)

    async def _own(self, request: web.Request) -> KeyRecord:
        account_id = account_of(request)
        record = await self.keys.get(read_id(request))
        # The key of another account is answered as an id that no key has.
        return _found(record if record is not None and record.account_id == account_id else None)

    # -- both -----------------------------------------------------------------------------------------

    async def _create(self, request: web.Request, account_id: str, scopes: frozenset[str]) -> web.Response:
        fields = await read_fields(request, self.read_timeout_s)
        name = fields.text("name") or "key"
        kind = _read_kind(fields)
        rules = _read_rules(fields, KeyRules(), scopes)
        fields.done()
        # Read before the key is made: its text is in this response and nowhere else, so nothing may fail after that.
        unused = (await self._use([_NO_KEY]))[_NO_KEY]
        made = await self.keys.create(
            account_id, name=name, actor=actor_of(request), at=self.now(), rules=rules, kind=kind
        )
        await self.on_change()
        document = _document(made.record, unused)
        document["key"] = made.text
        if kind is KeyKind.AGENT:
            document["agent_path"] = f"/api/agent/{made.text}/v1"
        return json_response(document, status=201)

    async def _page(self, request: web.Request, account_id: str | None) -> web.Response:
        limit, after = read_page(request)
        page = await self.keys.page(account_id, limit=limit, after=after or None)
        return list_response(await self._documents(page.items), page.after)

    async def _one(self, record: KeyRecord) -> web.Response:
        (document,) = await self._documents([record])
        return json_response(document)

    async def _change(self, request: web.Request, record: KeyRecord, scopes: frozenset[str]) -> web.Response:
        fields = await read_fields(request, self.read_timeout_s)
        name = fields.text("name") or record.name
        # A scope that the caller may not give is kept where the operator gave it.
        rules = _read_rules(fields, record.rules, scopes | {scope.value for scope in record.rules.scopes})
        fields.done()
        changed = await self.keys.change(record.id, actor=actor_of(request), at=self.now(), name=name, rules=rules)
        await self.on_change()
        return await self._one(_found(changed))

    async def _revoke(self, request: web.Request, key_id: str) -> web.Response:
        record = _found(await self.keys.revoke(key_id, actor=actor_of(request), at=self.now()))
        await self.on_change()
        return await self._one(record)

    async def _documents(self, records: Sequence[KeyRecord]) -> "Sequence[dict[str, object]]":
        use = await self._use([record.id for record in records])
        return [_document(record, use[record.id]) for record in records]

    async def _use(self, key_ids: Sequence[str]) -> Mapping[str, KeyUse]:
        if self.books is None:
            return dict.fromkeys(key_ids, KeyUse())
        return await self.books.key_use(key_ids, self.now())


def _grantable(request: web.Request) -> frozenset[str]:
    """Return the scopes that a customer may give a key."""
    scopes = _GIVEN_BY_CUSTOMERS | request[CONTEXT].caller.rules.scopes
    return frozenset(scope.value for scope in scopes - {Scope.ADMIN})


def _found(record: KeyRecord | None) -> KeyRecord:
    if record is None:
        raise ApiError(404, "there is no such key", code="key_not_found", param="id")
    return record


def _document(record: KeyRecord, use: KeyUse) -> dict[str, object]:
    return {
        "object": "lcp.key",
        **key_document(record, unix_time),
        "last_used_at": None if use.last_used_at is None else unix_time(use.last_used_at),
        "spent_msat": {period.value: use.spent_msat.get(period, Msat(0)) for period in Period},
        "resets_at": {period.value: unix_time(at) for period, at in use.resets_at.items()},
    }


def _read_kind(fields: Fields) -> KeyKind:
    try:
        return KeyKind(fields.text("kind") or KeyKind.API)
    except ValueError:
        raise bad_request("kind may be api or agent", "kind", "invalid_value") from None


def _read_rules(fields: Fields, rules: KeyRules, allowed: frozenset[str]) -> KeyRules:
    """Read the rules of a key; those that the body leaves out stay as they are."""
    scopes = fields.names("scopes", allowed=allowed)
    models = fields.names("models")
    limits: dict[str, int] = {}
    for name in KEY_LIMITS:
        value = fields.amount(name)
        if value is not None:
            limits[name] = Msat(value) if name in _AMOUNTS else value
    # An end that is null is taken away, one that is left out stays.
    expires_at = fields.time("expires_at") if fields.has("expires_at") else rules.expires_at
    return replace(
        rules,
        scopes=rules.scopes if scopes is None else frozenset(map(Scope, scopes)),
        models=rules.models if models is None else models,
        expires_at=expires_at,
        **limits,  # type: ignore[arg-type]  # the names are those of limits
    )
