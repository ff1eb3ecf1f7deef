"""/api/wallet: what a customer has, how it pays in, and what became of it."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

from aiohttp import web

from lcp_gateway.accounts.models import (
    AccountError,
    AccountNotFound,
    AdjustmentExceedsBalance,
    AdjustmentIdReused,
    Balance,
    PurchaseNotFound,
    RefundNotWithheld,
    StatementLine,
    TooManyOpenTopups,
    Topup,
    TopupState,
)
from lcp_gateway.accounts.repositories import InvoiceServiceUnavailable
from lcp_gateway.accounts.wallet import AmountOutOfRange, InvoiceNotPaid, TopupsDisabled, Wallet
from lcp_gateway.http.context import CONTEXT
from lcp_gateway.http.errors import ApiError, bad_request
from lcp_gateway.http.fields import (
    json_response,
    read_fields,
    read_id,
    read_numbered_page,
    read_page,
)
from lcp_gateway.http.gateway.api_limits import ApiLimits, account

T = TypeVar("T")

_MSAT_PER_SAT = 1_000


class WalletRoutes:
    """Serves the wallet of the account that asks."""

    def __init__(
        self,
        wallet: Wallet,
        *,
        read_timeout_s: float,
        api_limits: ApiLimits,
        pay_for_demo: Callable[[str], Awaitable[object]] | None = None,
    ) -> None:
        """``api_limits`` bounds how many top-ups are made at one time; other routes are bounded from outside.

        ``pay_for_demo`` pays an invoice with play money; None where money is real.
        """
        self._wallet = wallet
        self._read_timeout_s = read_timeout_s
        self._api_limits = api_limits
        self._pay_for_demo = pay_for_demo

    async def balance(self, request: web.Request) -> web.Response:
        """Serve GET /api/wallet."""
        balance = await self._wallet.balance(account_of(request))
        return json_response({"object": "lcp.wallet", **balance_document(balance)})

    async def top_up(self, request: web.Request) -> web.Response:
        """Serve POST /api/wallet/topups."""
        account_id = account_of(request)
        fields = await read_fields(request, self._read_timeout_s)
        amount_msat, amount_sat = fields.amount("amount_msat"), fields.amount("amount_sat")
        memo = fields.text("memo")
        fields.done()
        if (amount_msat is None) is (amount_sat is None):
            raise bad_request(
                "give either amount_sat or amount_msat", "amount_sat", "missing_required_parameter"
            )
        if amount_msat is None:
            amount_msat = (amount_sat or 0) * _MSAT_PER_SAT
        # Not before its body is there: a client that sends it slowly must not hold a place meanwhile.
        async with self._api_limits.place(account(account_id)):
            topup = await told(lambda: self._wallet.top_up(account_id, amount_msat, memo))
        return json_response(topup_document(topup), status=201)

    async def topup(self, request: web.Request) -> web.Response:
        """Serve GET /api/wallet/topups/{id}."""
        return json_response(topup_document(await self._find(request)))

    async def pay_for_demo(self, request: web.Request) -> web.Response:
        """Serve POST /api/wallet/topups/{id}/demo-payment: the embedded node pays, so that a demo needs no wallet."""
        if self._pay_for_demo is None:
            raise ApiError(
                404, "only the embedded node's play money pays by itself", code="not_found"
            )
        topup = await self._find(request)
        if topup.state is not TopupState.SETTLED:
            try:
                await self._pay_for_demo(topup.payment_request)
            except InvoiceNotPaid as error:
                if error.is_final:
                    raise ApiError(409, str(error), code="invoice_not_payable") from None
                raise ApiError(503, str(error), code="node_unavailable", retry=True) from None
        return json_response(topup_document(await self._find(request)))

    async def picture(self, request: web.Request) -> web.Response:
        """Serve GET /api/wallet/topups/{id}/qr.svg and qr.png."""
        topup = await self._find(request)
        # Loaded by the first who asks for a picture.
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
        page = await self._wallet.topups(account_of(request), limit=limit, after=after or None)
        return json_response(
            {
                "object": "list",
                "data": [topup_document(topup) for topup in page.items],
                "after": page.after,
            }
        )

    async def transactions(self, request: web.Request) -> web.Response:
        """Serve GET /api/wallet/transactions."""
        limit, after = read_numbered_page(request)
        statement = await self._wallet.statement(account_of(request), limit=limit, after=after)
        return json_response(
            {
                "object": "list",
                "data": [line_document(line) for line in statement.lines],
                "after": None if statement.after is None else str(statement.after),
            }
        )

    async def _find(self, request: web.Request) -> Topup:
        account_id, topup_id = account_of(request), read_id(request)
        found = await told(lambda: self._wallet.topup(account_id, topup_id))
        if found is None:
            raise ApiError(404, "there is no such top-up", code="topup_not_found", param="id")
        return found


async def told(work: Callable[[], Awaitable[T]]) -> T:
    """Do something with accounts, and turn what is wrong into an answer.

    Raises:
        ApiError: 400, 404, 409, 429 or 503.
    """
    try:
        return await work()
    except TopupsDisabled:
        raise ApiError(
            503, "nobody can pay in here: the operator has set no lnd", code="topups_unavailable"
        ) from None
    except InvoiceServiceUnavailable as error:
        raise ApiError(503, str(error), code="topups_unavailable", retry=True) from None
    except TooManyOpenTopups as error:
        raise ApiError(429, str(error), code="too_many_open_topups") from None
    except AmountOutOfRange as error:
        raise bad_request(str(error), "amount_msat", "invalid_value") from None
    except AccountError as error:
        raise of_account_error(error) from None


def of_account_error(error: AccountError) -> ApiError:
    """Give the answer for a change that cannot be made."""
    match error:
        case AccountNotFound():
            return ApiError(404, str(error), code="account_not_found")
        case AdjustmentExceedsBalance():
            return ApiError(409, str(error), code="insufficient_balance")
        case PurchaseNotFound():
            return ApiError(404, str(error), code="purchase_not_found", param="id")
        case RefundNotWithheld():
            return ApiError(409, str(error), code="refund_not_withheld", param="id")
        case AdjustmentIdReused():
            return ApiError(409, str(error), code="id_reused")
        case _:
            return bad_request(str(error), code="invalid_value")


def balance_document(balance: Balance) -> dict[str, object]:
    """Write a balance."""
    return {
        "balance_msat": balance.balance_msat,
        "held_msat": balance.held_msat,
        "available_msat": balance.available_msat,
    }


def topup_document(topup: Topup) -> dict[str, object]:
    """Write a top-up, with where its picture is."""
    return {
        "id": topup.id,
        "object": "lcp.topup",
        "status": topup.state.value,
        "amount_msat": topup.amount_msat,
        "received_msat": topup.received_msat,
        "payment_request": topup.payment_request,
        "payment_hash": topup.payment_hash.hex(),
        "memo": topup.memo,
        "created_at": int(topup.created_at.timestamp()),
        "expires_at": int(topup.expires_at.timestamp()),
        "settled_at": None if topup.settled_at is None else int(topup.settled_at.timestamp()),
        "qr_svg": f"/api/wallet/topups/{topup.id}/qr.svg",
        "qr_png": f"/api/wallet/topups/{topup.id}/qr.png",
    }


def line_document(line: StatementLine) -> dict[str, object]:
    """Write a movement of a balance."""
    return {
        "id": str(line.id),
        "at": line.at.isoformat(),
        "amount_msat": line.amount_msat,
        "balance_msat": line.balance_msat,
        "cause": line.cause.value,
        "cause_id": line.cause_id,
    }


def account_of(request: web.Request) -> str:
    """Return the account whose key asks.

    Raises:
        ApiError: 403, the key belongs to none.
    """
    account_id = request[CONTEXT].caller.account_id
    if account_id is None:
        raise ApiError(403, "this key belongs to no account", code="no_account", reason="auth")
    return account_id
