"""/api/account: a customer's own account."""

from collections.abc import Awaitable, Callable
from dataclasses import KW_ONLY, dataclass
from datetime import UTC, datetime

from aiohttp import web

from lcp_gateway.accounts.repositories import AccountRepository
from lcp_gateway.http.errors import ApiError
from lcp_gateway.http.fields import account_of, customer_of, json_response, read_fields
from lcp_gateway.http.gateway.admin import account_fields
from lcp_gateway.purchase.money import Msat


@dataclass(frozen=True, slots=True)
class AccountRoutes:
    """Serves the holder of an account.

    ``on_key_change`` makes this process reload the keys, so that those of a deleted account are refused at once.
    """

    accounts: AccountRepository
    _: KW_ONLY
    on_key_change: Callable[[], Awaitable[None]]
    read_timeout_s: float

    async def get(self, request: web.Request) -> web.Response:
        """Serve GET /api/account."""
        return await self._respond(account_of(request))

    async def rename(self, request: web.Request) -> web.Response:
        """Serve PATCH /api/account."""
        account_id = account_of(request)
        fields = await read_fields(request, self.read_timeout_s)
        name = fields.text("name", required=True)
        fields.done()
        await self.accounts.rename(account_id, name, actor=customer_of(request), at=datetime.now(UTC))
        return await self._respond(account_id)

    async def delete(self, request: web.Request) -> web.Response:
        """Serve DELETE /api/account: with ``forfeit_msat``, the exact balance that is lost with it."""
        account_id = account_of(request)
        fields = await read_fields(request, self.read_timeout_s)
        forfeit_msat = Msat(fields.amount("forfeit_msat") or 0)
        fields.done()
        await self.accounts.delete(
            account_id, actor=customer_of(request), at=datetime.now(UTC), forfeit_msat=forfeit_msat
        )
        await self.on_key_change()
        return json_response({"id": account_id, "deleted": True})

    async def _respond(self, account_id: str) -> web.Response:
        account = await self.accounts.get(account_id)
        if account is None:
            raise ApiError(404, "there is no such account", code="account_not_found")
        return json_response(account_fields(account))
