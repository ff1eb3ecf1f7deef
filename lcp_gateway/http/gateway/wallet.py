"""/api/wallet: a customer's balance, top-ups and transactions."""

from collections.abc import Awaitable, Callable
from dataclasses import KW_ONLY, dataclass

from aiohttp import web

from lcp_gateway.accounts.documents import balance_document, topup_document
from lcp_gateway.accounts.models import Statement, Topup, TopupState
from lcp_gateway.accounts.wallet import InvoiceNotPaid, Wallet
from lcp_gateway.constants import MSAT_PER_SAT
from lcp_gateway.http.errors import ApiError, bad_request
from lcp_gateway.http.fields import (
    account_of,
    json_response,
    list_response,
    read_fields,
    read_id,
    read_numbered_page,
    read_page,
    unix_time,
)
from lcp_gateway.http.gateway.admin import statement_csv, statement_line
from lcp_gateway.http.gateway.api_limits import ApiLimits, account_caller

# Lines of a statement that one read of the database returns.
_PAGE = 500


@dataclass(frozen=True, slots=True)
class WalletRoutes:
    """Serves the wallet of the account whose key a request has.

    ``api_limits`` bounds how many top-ups are made at one time; the application bounds the other routes.

    ``pay_for_demo`` pays an invoice with play money; None where money is real.
    """

    wallet: Wallet
    _: KW_ONLY
    read_timeout_s: float
    api_limits: ApiLimits
    pay_for_demo: Callable[[str], Awaitable[object]] | None = None

    async def balance(self, request: web.Request) -> web.Response:
        """Serve GET /api/wallet."""
        balance = await self.wallet.balance(account_of(request))
        return json_response({"object": "lcp.wallet", **balance_document(balance)})

    async def top_up(self, request: web.Request) -> web.Response:
        """Serve POST /api/wallet/topups."""
        account_id = account_of(request)
        fields = await read_fields(request, self.read_timeout_s)
        amount_msat, amount_sat = fields.amount("amount_msat"), fields.amount("amount_sat")
        memo = fields.text("memo")
        fields.done()
        if (amount_msat is None) is (amount_sat is None):
            raise bad_request("give either amount_sat or amount_msat", "amount_sat", "missing_required_parameter")
        if amount_msat is None:
            amount_msat = (amount_sat or 0) * MSAT_PER_SAT
        # Only once the body is read: a client that sends it slowly must not occupy the limit meanwhile.
        async with self.api_limits.place(account_caller(account_id)):
            topup = await self.wallet.top_up(account_id, amount_msat, memo)
        return json_response(_topup(topup), status=201)

    async def topup(self, request: web.Request) -> web.Response:
        """Serve GET /api/wallet/topups/{id}."""
        return json_response(_topup(await self._find(request)))

    async def demo_payment(self, request: web.Request) -> web.Response:
        """Serve POST /api/wallet/topups/{id}/demo-payment: the embedded node pays, so that a demo needs no wallet."""
        if self.pay_for_demo is None:
            raise ApiError(
                404, "only the embedded node can pay an invoice by itself, with play money", code="not_found"
            )
        topup = await self._find(request)
        if topup.state is not TopupState.SETTLED:
            try:
                await self.pay_for_demo(topup.payment_request)
            except InvoiceNotPaid as error:
                if error.is_final:
                    raise ApiError(409, str(error), code="invoice_not_payable") from None
                raise ApiError(503, str(error), code="node_unavailable", retry=True) from None
        return json_response(_topup(await self._find(request)))

    async def qr_code(self, request: web.Request) -> web.Response:
        """Serve GET /api/wallet/topups/{id}/qr.svg and qr.png."""
        topup = await self._find(request)
        # Imported at the first request for a picture.
        from lcp_gateway.accounts import qr  # noqa: PLC0415 - see above

        is_svg = request.match_info["form"] == "svg"
        draw = qr.svg if is_svg else qr.png
        return web.Response(
            body=draw(topup.payment_request),
            content_type=qr.SVG_TYPE if is_svg else qr.PNG_TYPE,
            headers={"Cache-Control": "private, no-store"},
        )

    async def topups(self, request: web.Request) -> web.Response:
        """Serve GET /api/wallet/topups."""
        limit, after = read_page(request)
        page = await self.wallet.topups(account_of(request), limit=limit, after=after or None)
        return list_response(map(_topup, page.items), page.after)

    async def transactions(self, request: web.Request) -> web.StreamResponse:
        """Serve GET /api/wallet/transactions: JSON in pages, or with ``format=csv`` all of it."""
        account_id = account_of(request)
        if request.query.get("format", "json") == "csv":

            async def read(after: int | None) -> Statement:
                async with self.api_limits.turn(request):
                    return await self.wallet.statement(account_id, limit=_PAGE, after=after)

            return await statement_csv(request, read, "transactions")
        limit, after = read_numbered_page(request)
        async with self.api_limits.turn(request):
            statement = await self.wallet.statement(account_id, limit=limit, after=after)
        return list_response(map(statement_line, statement.lines), statement.after)

    async def _find(self, request: web.Request) -> Topup:
        account_id, topup_id = account_of(request), read_id(request)
        found = await self.wallet.topup(account_id, topup_id)
        if found is None:
            raise ApiError(404, "there is no such top-up", code="topup_not_found", param="id")
        return found


def _topup(topup: Topup) -> dict[str, object]:
    return {
        "object": "lcp.topup",
        **topup_document(topup, unix_time),
        "payment_hash": topup.payment_hash.hex(),
        "qr_svg": f"/api/wallet/topups/{topup.id}/qr.svg",
        "qr_png": f"/api/wallet/topups/{topup.id}/qr.png",
    }
