"""/api/admin/refunds and /api/wallet/refunds: refunds of undelivered purchases, and the operator's decisions on them."""

import re
from collections.abc import Callable
from datetime import UTC, datetime

from aiohttp import web

from lcp_gateway.accounts.models import PurchaseNotFound, RefundRecord
from lcp_gateway.accounts.repositories import RefundRepository
from lcp_gateway.http.errors import ApiError, bad_request
from lcp_gateway.http.fields import account_of, actor_of, json_response, list_response, read_fields, read_page
from lcp_gateway.purchase.money import Refund, RefundDecision

_JOB_ID = re.compile(r"[0-9a-f]{64}")
_DECISIONS = {"grant": True, "deny": False}


class RefundRoutes:
    """Serves customers and the administrator."""

    def __init__(
        self, refunds: RefundRepository, *, on_decision: Callable[[RefundDecision], None], read_timeout_s: float
    ) -> None:
        """``on_decision`` is called once for each decision."""
        self._refunds = refunds
        self._on_decision = on_decision
        self._read_timeout_s = read_timeout_s

    async def of_customer(self, request: web.Request) -> web.Response:
        """Serve GET /api/wallet/refunds."""
        return await self._page(request, account_of(request), _customer_document)

    async def list_refunds(self, request: web.Request) -> web.Response:
        """Serve GET /api/admin/refunds, filtered by ``refund`` and ``account_id``."""
        return await self._page(request, request.query.get("account_id") or None, _document)

    async def get_refund(self, request: web.Request) -> web.Response:
        """Serve GET /api/admin/refunds/{id}."""
        found = await self._refunds.get(_job_id(request))
        if found is None:
            raise ApiError(404, "this purchase has no refund", code="refund_not_found", param="id")
        return json_response(_document(found))

    async def decide(self, request: web.Request) -> web.Response:
        """Serve POST /api/admin/refunds/{id}: ``grant`` or ``deny``, once."""
        job_id = _job_id(request)
        fields = await read_fields(request, self._read_timeout_s)
        decision = fields.text("decision", required=True)
        reason = fields.text("reason", required=True)
        fields.done()
        if decision not in _DECISIONS:
            raise bad_request("decision may be grant or deny", "decision", "invalid_value")
        decided, is_new = await self._refunds.decide(
            job_id, grant=_DECISIONS[decision], reason=reason, actor=actor_of(request), at=datetime.now(UTC)
        )
        if is_new:
            self._on_decision(RefundDecision(job_id, decided.account_id, decided.amount_msat, decided.refund))
        return json_response(_document(decided))

    async def _page(
        self, request: web.Request, account_id: str | None, document: Callable[[RefundRecord], dict[str, object]]
    ) -> web.Response:
        limit, after = read_page(request)
        page = await self._refunds.page(
            account_id=account_id, refund=_refund(request), limit=limit, after=after or None
        )
        return list_response(map(document, page.items), page.after)


def _refund(request: web.Request) -> Refund | None:
    word = request.query.get("refund")
    if not word:
        return None
    try:
        return Refund(word)
    except ValueError:
        allowed = ", ".join(Refund)
        raise bad_request(f"refund may be {allowed}", "refund", "invalid_value") from None


def _job_id(request: web.Request) -> bytes:
    text = request.match_info["id"]
    if not _JOB_ID.fullmatch(text):
        raise PurchaseNotFound
    return bytes.fromhex(text)


def _customer_document(record: RefundRecord) -> dict[str, object]:
    return {
        "id": record.job_id.hex(),
        "object": "lcp.refund",
        "job_id": record.job_id.hex(),
        "refund": record.refund.value,
        "amount_msat": record.amount_msat,
        "model": record.model,
        "ended_by": record.ended_by,
        "received": record.received,
        "bought_at": record.paying_at.isoformat(),
        "ended_at": None if record.ended_at is None else record.ended_at.isoformat(),
    }


def _document(record: RefundRecord) -> dict[str, object]:
    return {**_customer_document(record), "account_id": record.account_id, "peer_id": record.peer_id}
