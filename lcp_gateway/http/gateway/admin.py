"""/api/admin: accounts, keys, adjustments and the books, for whoever runs the gateway."""

import csv
import io
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime

from aiohttp import web

from lcp_gateway.accounts.callers import KeyRules, Scope
from lcp_gateway.accounts.models import Account, KeyKind, KeyRecord, StatementLine
from lcp_gateway.accounts.repositories import (
    AccountRepository,
    AdminLogRepository,
    KeyRepository,
    LedgerRepository,
)
from lcp_gateway.http.context import CONTEXT
from lcp_gateway.http.errors import ApiError, bad_request
from lcp_gateway.http.fields import (
    Fields,
    json_response,
    read_fields,
    read_id,
    read_numbered_page,
    read_page,
)
from lcp_gateway.http.gateway.wallet import balance_document, line_document, told
from lcp_gateway.http.openai.sse_relay import close_if_http10
from lcp_gateway.purchase.money import Msat

_PAGE = 500
# Most of a statement that is given as CSV at once.
_CSV_LINES = 100_000
_ONCE = re.compile(r"[!-~]{1,128}")
_SCOPES = frozenset(scope.value for scope in Scope)


class AdminRoutes:
    """Serves the administrator."""

    def __init__(
        self,
        *,
        accounts: AccountRepository,
        keys: KeyRepository,
        ledger: LedgerRepository,
        acts: AdminLogRepository,
        on_key_change: Callable[[], Awaitable[None]],
        read_timeout_s: float,
    ) -> None:
        """``on_key_change`` has the keys of this process read anew, so that a revoked one is gone at once."""
        self._accounts = accounts
        self._keys = keys
        self._ledger = ledger
        self._acts = acts
        self._on_key_change = on_key_change
        self._read_timeout_s = read_timeout_s

    # -- accounts -------------------------------------------------------------------------------

    async def create_account(self, request: web.Request) -> web.Response:
        """Serve POST /api/admin/accounts."""
        fields = await self._fields(request)
        name = fields.text("name", required=True)
        fields.done()
        account = await told(lambda: self._accounts.create(name, actor=_actor(request), at=_now()))
        return json_response(_account(account), status=201)

    async def list_accounts(self, request: web.Request) -> web.Response:
        """Serve GET /api/admin/accounts."""
        limit, after = read_page(request)
        page = await self._accounts.page(limit=limit, after=after or None)
        return _listing([_account(account) for account in page.items], page.after)

    async def get_account(self, request: web.Request) -> web.Response:
        """Serve GET /api/admin/accounts/{id}."""
        return json_response(_account(await self._account(request)))

    async def rename_account(self, request: web.Request) -> web.Response:
        """Serve PATCH /api/admin/accounts/{id}."""
        account_id = read_id(request)
        fields = await self._fields(request)
        name = fields.text("name", required=True)
        fields.done()
        await told(
            lambda: self._accounts.rename(account_id, name, actor=_actor(request), at=_now())
        )
        return json_response(_account(await self._account(request)))

    async def delete_account(self, request: web.Request) -> web.Response:
        """Serve DELETE /api/admin/accounts/{id}."""
        account_id = read_id(request)
        await told(lambda: self._accounts.delete(account_id, actor=_actor(request), at=_now()))
        await self._on_key_change()
        return json_response({"id": account_id, "deleted": True})

    async def adjust(self, request: web.Request) -> web.Response:
        """Serve POST /api/admin/accounts/{id}/adjustments; an Idempotency-Key makes it happen once."""
        account_id = read_id(request)
        fields = await self._fields(request)
        amount_msat = fields.amount("amount_msat", signed=True)
        reason = fields.text("reason", required=True)
        fields.done()
        if amount_msat is None:
            raise bad_request(
                "amount_msat is required", "amount_msat", "missing_required_parameter"
            )
        once = _adjustment_id(request)
        balance = await told(
            lambda: self._ledger.adjust(
                account_id,
                Msat(amount_msat),
                reason=reason,
                actor=_actor(request),
                at=_now(),
                adjustment_id=once,
            )
        )
        return json_response(balance_document(balance), status=201)

    async def statement(self, request: web.Request) -> web.StreamResponse:
        """Serve GET /api/admin/accounts/{id}/statement, as JSON in pages or with ``format=csv`` whole."""
        account = await self._account(request)
        if request.query.get("format", "json") == "csv":
            return await self._statement_csv(request, account)
        limit, after = read_numbered_page(request)
        found = await self._ledger.statement(account.id, limit=limit, after=after)
        following = None if found.after is None else str(found.after)
        return _listing([line_document(line) for line in found.lines], following)

    # -- keys -----------------------------------------------------------------------------------

    async def create_key(self, request: web.Request) -> web.Response:
        """Serve POST /api/admin/accounts/{id}/keys."""
        account_id = read_id(request)
        fields = await self._fields(request)
        name = fields.text("name") or "key"
        kind = _kind(fields)
        rules = _rules(fields)
        fields.done()
        made = await told(
            lambda: self._keys.create(
                account_id, name=name, actor=_actor(request), at=_now(), rules=rules, kind=kind
            )
        )
        await self._on_key_change()
        document = _key(made.record)
        document["key"] = made.text
        if kind is KeyKind.AGENT:
            document["agent_path"] = f"/api/agent/{made.text}/v1"
        return json_response(document, status=201)

    async def list_keys(self, request: web.Request) -> web.Response:
        """Serve GET /api/admin/accounts/{id}/keys and GET /api/admin/keys."""
        limit, after = read_page(request)
        account_id = read_id(request) if "id" in request.match_info else None
        page = await self._keys.page(account_id, limit=limit, after=after or None)
        return _listing([_key(record) for record in page.items], page.after)

    async def get_key(self, request: web.Request) -> web.Response:
        """Serve GET /api/admin/keys/{id}."""
        record = await self._keys.get(read_id(request))
        if record is None:
            raise _no_key()
        return json_response(_key(record))

    async def revoke_key(self, request: web.Request) -> web.Response:
        """Serve DELETE /api/admin/keys/{id}."""
        record = await self._keys.revoke(read_id(request), actor=_actor(request), at=_now())
        if record is None:
            raise _no_key()
        await self._on_key_change()
        return json_response(_key(record))

    # -- the books ------------------------------------------------------------------------------

    async def audit(self, _request: web.Request) -> web.Response:
        """Serve GET /api/admin/audit."""
        found = await self._ledger.audit()
        return json_response(
            {
                "object": "lcp.audit",
                "ok": found.ok,
                "problems": list(found.problems),
                "accounts": found.totals.accounts,
                "balance_msat": found.totals.balance_msat,
                "held_msat": found.totals.held_msat,
                "books": dict(found.books),
                "entries": found.entries,
                "purchases": found.purchases,
            }
        )

    async def log(self, request: web.Request) -> web.Response:
        """Serve GET /api/admin/log."""
        limit, after = read_numbered_page(request)
        page = await self._acts.page(limit=limit, after=None if after is None else str(after))
        return _listing(
            [
                {
                    "id": str(act.id),
                    "at": act.at.isoformat(),
                    "actor": act.actor,
                    "action": act.action,
                    "target": act.target,
                    "detail": dict(act.detail),
                }
                for act in page.items
            ],
            page.after,
        )

    async def _fields(self, request: web.Request) -> Fields:
        return await read_fields(request, self._read_timeout_s)

    async def _account(self, request: web.Request) -> Account:
        account = await self._accounts.get(read_id(request))
        if account is None:
            raise ApiError(404, "there is no such account", code="account_not_found", param="id")
        return account

    async def _statement_csv(self, request: web.Request, account: Account) -> web.StreamResponse:
        response = web.StreamResponse(
            headers={
                "Content-Type": "text/csv; charset=utf-8",
                "Content-Disposition": f'attachment; filename="{account.id}.csv"',
            }
        )
        close_if_http10(request, response)
        await response.prepare(request)
        await response.write(_row(["id", "at", "amount_msat", "balance_msat", "cause", "cause_id"]))
        async for line in self._lines(account.id):
            document = line_document(line)
            await response.write(_row(list(document.values())))
        await response.write_eof()
        return response

    async def _lines(self, account_id: str) -> AsyncIterator[StatementLine]:
        after: int | None = None
        given = 0
        while given < _CSV_LINES:
            page = await self._ledger.statement(account_id, limit=_PAGE, after=after)
            for line in page.lines:
                yield line
            given += len(page.lines)
            after = page.after
            if after is None:
                return


def _rules(fields: Fields) -> KeyRules:
    usual = KeyRules()
    scopes = fields.names("scopes", allowed=_SCOPES)
    models = fields.names("models")
    return KeyRules(
        scopes=usual.scopes if scopes is None else frozenset(Scope(scope) for scope in scopes),
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


def _kind(fields: Fields) -> KeyKind:
    try:
        return KeyKind(fields.text("kind") or KeyKind.API)
    except ValueError:
        raise bad_request("kind may be api or agent", "kind", "invalid_value") from None


def _adjustment_id(request: web.Request) -> str | None:
    """Read the id that makes an adjustment happen once, where there is one."""
    key = request.headers.get("Idempotency-Key")
    if key is None:
        return None
    if not _ONCE.fullmatch(key):
        raise bad_request(
            "Idempotency-Key must have 1 to 128 visible ASCII characters",
            "Idempotency-Key",
            "invalid_header",
        )
    return f"adj_{key}"


def _account(account: Account) -> dict[str, object]:
    return {
        "id": account.id,
        "object": "lcp.account",
        "name": account.name,
        "created_at": int(account.created_at.timestamp()),
        "deleted": account.deleted_at is not None,
        **balance_document(account.balance),
    }


def _key(record: KeyRecord) -> dict[str, object]:
    rules = record.rules
    return {
        "id": record.id,
        "object": "lcp.key",
        "account_id": record.account_id,
        "name": record.name,
        "kind": record.kind.value,
        "prefix": record.prefix,
        "scopes": sorted(scope.value for scope in rules.scopes),
        "models": sorted(rules.models),
        "max_price_msat": rules.max_price_msat,
        "requests_per_minute": rules.requests_per_minute,
        "tokens_per_minute": rules.tokens_per_minute,
        "budget_hour_msat": rules.budget_hour_msat,
        "budget_day_msat": rules.budget_day_msat,
        "budget_month_msat": rules.budget_month_msat,
        "concurrent_jobs": rules.concurrent_jobs,
        "expires_at": None if rules.expires_at is None else int(rules.expires_at.timestamp()),
        "created_at": int(record.created_at.timestamp()),
        "revoked_at": None if record.revoked_at is None else int(record.revoked_at.timestamp()),
    }


def _listing(data: list[dict[str, object]], after: str | None) -> web.Response:
    return json_response({"object": "list", "data": data, "after": after})


def _row(values: list[object]) -> bytes:
    line = io.StringIO()
    csv.writer(line).writerow(values)
    return line.getvalue().encode()


def _no_key() -> ApiError:
    return ApiError(404, "there is no such key", code="key_not_found", param="id")


def _actor(request: web.Request) -> str:
    return f"api:{request[CONTEXT].key_id}"


def _now() -> datetime:
    return datetime.now(UTC)
