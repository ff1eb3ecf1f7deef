"""/api/wallet/withdrawals and /api/admin/withdrawals: paying out of balances, and the operator's decisions on it."""

from collections.abc import Awaitable, Callable
from dataclasses import KW_ONLY, dataclass

from aiohttp import web

from lcp_gateway.accounts.documents import withdrawal_document
from lcp_gateway.accounts.payouts import Payouts
from lcp_gateway.accounts.wallet import InvoiceNotPaid
from lcp_gateway.accounts.withdrawal_states import WithdrawalState
from lcp_gateway.accounts.withdrawals import Withdrawal, WithdrawalNotFound, WithdrawalRepository
from lcp_gateway.clock import utc_now
from lcp_gateway.constants import MSAT_PER_SAT
from lcp_gateway.http.context import CONTEXT
from lcp_gateway.http.errors import ApiError, bad_request
from lcp_gateway.http.fields import (
    account_of,
    actor_of,
    json_response,
    list_response,
    read_fields,
    read_id,
    read_id_filter,
    read_page,
    unix_time,
)
from lcp_gateway.http.gateway.api_limits import ApiLimits, account_caller

_STATES = frozenset(WithdrawalState) - {WithdrawalState.REQUESTED}
_DECISIONS = ("approve", "deny", "settled", "failed")
# As long as an invoice may be.
_LONGEST_INVOICE = 7_089


@dataclass(frozen=True, slots=True)
class WithdrawalRoutes:
    """Serves customers and the administrator.

    ``api_limits`` bounds how many are made at one time; the application bounds the other routes.

    ``make_demo_invoice`` makes an invoice that can be paid with play money; None where money is real.
    """

    payouts: Payouts
    withdrawals: WithdrawalRepository
    _: KW_ONLY
    read_timeout_s: float
    api_limits: ApiLimits
    make_demo_invoice: Callable[[int], Awaitable[str]] | None = None

    async def create(self, request: web.Request) -> web.Response:
        """Serve POST /api/wallet/withdrawals: 201; 200 with the first one for the same invoice again."""
        account_id = account_of(request)
        fields = await read_fields(request, self.read_timeout_s)
        payment_request = fields.text("payment_request", required=True, longest=_LONGEST_INVOICE)
        amount_msat, max_fee_msat = fields.amount("amount_msat"), fields.amount("max_fee_msat")
        fields.done()
        # Only once the body is read: a client that sends it slowly must not occupy the limit meanwhile.
        async with self.api_limits.place(account_caller(account_id)):
            made, is_new = await self.payouts.request(
                account_id,
                request[CONTEXT].key_id,
                payment_request.strip(),
                amount_msat=amount_msat,
                max_fee_msat=max_fee_msat,
            )
        return json_response(_document(made), status=201 if is_new else 200)

    async def of_customer(self, request: web.Request) -> web.Response:
        """Serve GET /api/wallet/withdrawals."""
        return await self._page(request, account_of(request), _document)

    async def get_own(self, request: web.Request) -> web.Response:
        """Serve GET /api/wallet/withdrawals/{id}."""
        found = await self._find(request)
        if found.account_id != account_of(request):
            raise WithdrawalNotFound
        return json_response(_document(found))

    async def cancel(self, request: web.Request) -> web.Response:
        """Serve DELETE /api/wallet/withdrawals/{id}: one that has not been paid yet."""
        canceled = await self.withdrawals.cancel(account_of(request), read_id(request), utc_now())
        return json_response(_document(canceled))

    async def demo_invoice(self, request: web.Request) -> web.Response:
        """Serve POST /api/wallet/demo-invoice: an invoice of the demo's customer, to withdraw to."""
        if self.make_demo_invoice is None:
            raise ApiError(404, "only the embedded node has a wallet with play money", code="not_found")
        fields = await read_fields(request, self.read_timeout_s)
        amount_sat = fields.amount("amount_sat") or 0
        fields.done()
        try:
            payment_request = await self.make_demo_invoice(amount_sat * MSAT_PER_SAT)
        except InvoiceNotPaid as error:
            raise ApiError(503, "the node makes no invoice right now", code="node_unavailable", retry=True) from error
        return json_response({"object": "lcp.demo_invoice", "payment_request": payment_request}, status=201)

    async def list_all(self, request: web.Request) -> web.Response:
        """Serve GET /api/admin/withdrawals, filtered by ``status`` and ``account_id``."""
        return await self._page(request, read_id_filter(request, "account_id"), _admin_document)

    async def get(self, request: web.Request) -> web.Response:
        """Serve GET /api/admin/withdrawals/{id}."""
        return json_response(_admin_document(await self._find(request)))

    async def decide(self, request: web.Request) -> web.Response:
        """Serve POST /api/admin/withdrawals/{id}: ``approve`` or ``deny`` one that waits, end an unknown one by hand."""
        withdrawal_id = read_id(request)
        fields = await read_fields(request, self.read_timeout_s)
        decision = fields.text("decision", required=True)
        reason = fields.text("reason", required=True)
        fee_msat = fields.amount("fee_msat")
        fields.done()
        if decision not in _DECISIONS:
            raise bad_request(f"decision may be {', '.join(_DECISIONS)}", "decision", "invalid_value")
        if fee_msat is not None and decision != "settled":
            raise bad_request("only a settled withdrawal has a fee", "fee_msat", "invalid_value")
        by = {"reason": reason, "actor": actor_of(request)}
        if decision in {"approve", "deny"}:
            decided, _ = await self.withdrawals.decide(withdrawal_id, approve=decision == "approve", at=utc_now(), **by)
        else:
            decided = await self.payouts.resolve(
                withdrawal_id, settled=decision == "settled", fee_msat=fee_msat or 0, **by
            )
        return json_response(_admin_document(decided))

    async def freeze(self, request: web.Request) -> web.Response:
        """Serve POST /api/admin/accounts/{id}/withdrawals: keep an account from withdrawing, or let it again."""
        account_id = read_id(request)
        fields = await read_fields(request, self.read_timeout_s)
        frozen = bool(fields.flag("frozen"))
        reason = fields.text("reason", required=True)
        fields.done()
        await self.withdrawals.freeze(account_id, frozen=frozen, reason=reason, actor=actor_of(request), at=utc_now())
        return json_response({"id": account_id, "withdrawals_frozen": frozen})

    async def _page(
        self, request: web.Request, account_id: str | None, document: Callable[[Withdrawal], dict[str, object]]
    ) -> web.Response:
        limit, after = read_page(request)
        page = await self.withdrawals.page(
            account_id=account_id, state=_state(request), limit=limit, after=after or None
        )
        return list_response(map(document, page.items), page.after)

    async def _find(self, request: web.Request) -> Withdrawal:
        found = await self.withdrawals.get(read_id(request))
        if found is None:
            raise WithdrawalNotFound
        return found


def _state(request: web.Request) -> WithdrawalState | None:
    word = request.query.get("status")
    if not word:
        return None
    if word not in _STATES:
        raise bad_request(f"status may be {', '.join(sorted(_STATES))}", "status", "invalid_value")
    return WithdrawalState(word)


def _document(withdrawal: Withdrawal) -> dict[str, object]:
    return {"object": "lcp.withdrawal", **withdrawal_document(withdrawal, unix_time)}


def _admin_document(withdrawal: Withdrawal) -> dict[str, object]:
    # The preimage is the customer's proof of payment.
    document = {key: value for key, value in _document(withdrawal).items() if key != "preimage"}
    return {**document, "account_id": withdrawal.account_id, "key_id": withdrawal.key_id}
