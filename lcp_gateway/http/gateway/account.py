"""/api/account: a customer's own account."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

from aiohttp import web

from lcp_gateway.accounts.repositories import AccountRepository
from lcp_gateway.http.errors import ApiError
from lcp_gateway.http.fields import account_of, customer_of, json_response, read_fields
from lcp_gateway.http.gateway.admin import account_fields
from lcp_gateway.purchase.money import Msat


class AccountRoutes:
    """Serves the holder of an account."""

    def __init__(
        self, accounts: AccountRepository, *, on_key_change: Callable[[], Awaitable[None]], read_timeout_s: float
    ) -> None:
        """``on_key_change`` makes this process reload the keys, so that those of a deleted account are refused at once."""
        self._accounts = accounts
        self._on_key_change = on_key_change
        self._read_timeout_s = read_timeout_s

    async def get(self, request: web.Request) -> web.Response:
        """Serve GET /api/account."""
        return await self._respond(account_of(request))

    async def rename(self, request: web.Request) -> web.Response:
        """Serve PATCH /api/account."""
        account_id = account_of(request)
        fields = await read_fields(request, self._read_timeout_s)
        name = fields.text("name", required=True)
        fields.done()
        await self._accounts.rename(account_id, name, actor=customer_of(request), at=datetime.now(UTC))
        return await self._respond(account_id)

    async def delete(self, request: web.Request) -> web.Response:
        """Serve DELETE /api/account: with ``forfeit_msat``, the exact balance that is lost with it."""
        account_id = account_of(request)
        fields = await read_fields(request, self._read_timeout_s)
        forfeit_msat = Msat(fields.amount("forfeit_msat") or 0)
        fields.done()
        await self._accounts.delete(
            account_id, actor=customer_of(request), at=datetime.now(UTC), forfeit_msat=forfeit_msat
        )
        await self._on_key_change()
        return json_response({"id": account_id, "deleted": True})

    async def _respond(self, account_id: str) -> web.Response:
        account = await self._accounts.get(account_id)
        if account is None:
            raise ApiError(404, "there is no such account", code="account_not_found")
        return json_response(account_fields(account))
