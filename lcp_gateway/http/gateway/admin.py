"""/api/admin: accounts, adjustments, statements, the audit and the administrators' log."""

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime

from aiohttp import web

from lcp_gateway.accounts.documents import (
    LINE_FIELDS,
    account_document,
    action_document,
    audit_document,
    balance_document,
    csv_line,
    line_document,
)
from lcp_gateway.accounts.models import Account, Statement, StatementLine
from lcp_gateway.accounts.repositories import AccountRepository, AdminLogRepository, LedgerRepository
from lcp_gateway.clock import utc_now
from lcp_gateway.http.errors import ApiError, bad_request
from lcp_gateway.http.fields import (
    actor_of,
    json_response,
    list_response,
    read_fields,
    read_id,
    read_numbered_page,
    read_page,
    unix_time,
)
from lcp_gateway.http.gateway.purchases import csv_response
from lcp_gateway.purchase.money import Msat

_PAGE = 500
# Lines of a statement in one CSV file.
_CSV_LINES = 100_000
_ADJUSTMENT_ID = re.compile(r"[!-~]{1,128}")


@dataclass(frozen=True, slots=True, kw_only=True)
class AdminRoutes:
    """Serves the administrator.

    ``on_key_change`` makes this process reload the keys, so that those of a deleted account are refused at once.
    """

    accounts: AccountRepository
    ledger: LedgerRepository
    actions: AdminLogRepository
    on_key_change: Callable[[], Awaitable[None]]
    read_timeout_s: float

    async def create_account(self, request: web.Request) -> web.Response:
        """Serve POST /api/admin/accounts."""
        name = await self._read_name(request)
        account = await self.accounts.create(name, actor=actor_of(request), at=utc_now())
        return json_response(account_fields(account), status=201)

    async def list_accounts(self, request: web.Request) -> web.Response:
        """Serve GET /api/admin/accounts."""
        limit, after = read_page(request)
        page = await self.accounts.page(limit=limit, after=after or None)
        return list_response(map(account_fields, page.items), page.after)

    async def get_account(self, request: web.Request) -> web.Response:
        """Serve GET /api/admin/accounts/{id}."""
        return json_response(account_fields(await self._find(request)))

    async def rename_account(self, request: web.Request) -> web.Response:
        """Serve PATCH /api/admin/accounts/{id}."""
        account_id = read_id(request)
        name = await self._read_name(request)
        await self.accounts.rename(account_id, name, actor=actor_of(request), at=utc_now())
        return json_response(account_fields(await self._find(request)))

    async def delete_account(self, request: web.Request) -> web.Response:
        """Serve DELETE /api/admin/accounts/{id}."""
        account_id = read_id(request)
        await self.accounts.delete(account_id, actor=actor_of(request), at=utc_now())
        await self.on_key_change()
        return json_response({"id": account_id, "deleted": True})

    async def adjust(self, request: web.Request) -> web.Response:
        """Serve POST /api/admin/accounts/{id}/adjustments; with an Idempotency-Key it is made once."""
        account_id = read_id(request)
        fields = await read_fields(request, self.read_timeout_s)
        amount_msat = fields.amount("amount_msat", signed=True)
        reason = fields.text("reason", required=True)
        fields.done()
        if amount_msat is None:
            raise bad_request("amount_msat is required", "amount_msat", "missing_required_parameter")
        adjustment_id = _adjustment_id(request)
        balance = await self.ledger.adjust(
            account_id,
            Msat(amount_msat),
            reason=reason,
            actor=actor_of(request),
            at=utc_now(),
            adjustment_id=adjustment_id,
        )
        return json_response(balance_document(balance), status=201)

    async def statement(self, request: web.Request) -> web.StreamResponse:
        """Serve GET /api/admin/accounts/{id}/statement: JSON in pages, or with ``format=csv`` all of it."""
        account = await self._find(request)
        if request.query.get("format", "json") == "csv":
            return await statement_csv(
                request, lambda after: self.ledger.statement(account.id, limit=_PAGE, after=after), account.id
            )
        limit, after = read_numbered_page(request)
        found = await self.ledger.statement(account.id, limit=limit, after=after)
        return list_response(map(statement_line, found.lines), found.after)

    async def audit(self, _request: web.Request) -> web.Response:
        """Serve GET /api/admin/audit."""
        return json_response({"object": "lcp.audit", **audit_document(await self.ledger.audit())})

    async def log(self, request: web.Request) -> web.Response:
        """Serve GET /api/admin/log."""
        limit, after = read_numbered_page(request)
        page = await self.actions.page(limit=limit, after=None if after is None else str(after))
        return list_response(
            ({**action_document(action, datetime.isoformat), "id": str(action.id)} for action in page.items), page.after
        )

    async def _read_name(self, request: web.Request) -> str:
        fields = await read_fields(request, self.read_timeout_s)
        name = fields.text("name", required=True)
        fields.done()
        return name

    async def _find(self, request: web.Request) -> Account:
        account = await self.accounts.get(read_id(request))
        if account is None:
            raise ApiError(404, "there is no such account", code="account_not_found", param="id")
        return account


async def statement_csv(
    request: web.Request, read: Callable[[int | None], Awaitable[Statement]], name: str
) -> web.StreamResponse:
    """Return an account's statement as a file; ``read`` returns the page behind a line."""
    # Before the response begins: an error of the database can still become one.
    page = await read(None)
    response = csv_response(request, name)
    await response.prepare(request)
    await response.write(csv_line(LINE_FIELDS))
    count = 0
    while True:
        await response.write(b"".join(csv_line(statement_line(line).values()) for line in page.lines))
        count += len(page.lines)
        if page.after is None or count >= _CSV_LINES:
            break
        page = await read(page.after)
    await response.write_eof()
    return response


def statement_line(line: StatementLine) -> dict[str, object]:
    """Return a line of a statement as JSON."""
    return {**line_document(line, datetime.isoformat), "id": str(line.id)}


def account_fields(account: Account) -> dict[str, object]:
    """Return an account as a document."""
    document = account_document(account, unix_time)
    is_deleted = document.pop("deleted_at") is not None
    frozen = account.withdrawals_frozen
    return {"object": "lcp.account", **document, "deleted": is_deleted, "withdrawals_frozen": frozen}


def _adjustment_id(request: web.Request) -> str | None:
    """Return the id under which an adjustment is made once, if the client sent one."""
    key = request.headers.get("Idempotency-Key")
    if key is None:
        return None
    if not _ADJUSTMENT_ID.fullmatch(key):
        raise bad_request(
            "Idempotency-Key must have 1 to 128 visible ASCII characters", "Idempotency-Key", "invalid_header"
        )
    return f"adj_{key}"
