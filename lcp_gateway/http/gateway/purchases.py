"""/api/purchases: what was bought, for a key, an account or the operator; receipts; unknown payments resolved by hand."""

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from dataclasses import KW_ONLY, dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Final

import orjson
from aiohttp import web

from lcp_gateway.accounts.callers import View, view_of
from lcp_gateway.accounts.documents import csv_line
from lcp_gateway.http.context import CONTEXT
from lcp_gateway.http.errors import ApiError, bad_request
from lcp_gateway.http.fields import actor_of, json_response, list_response, read_fields, rfc3339, rfc3339_or_none
from lcp_gateway.http.gateway.api_limits import ApiLimits
from lcp_gateway.http.queries import AFTER, LIMIT, SINCE, UNTIL, Query, QueryParameter, choice
from lcp_gateway.http.server.connection import close_if_http10
from lcp_gateway.purchase.quote import ProviderSource
from lcp_gateway.purchase.records import (
    NotUnknown,
    PurchaseBooks,
    PurchaseCursor,
    PurchaseFilter,
    PurchaseRecord,
    Resolutions,
)
from lcp_gateway.purchase.states import VERDICTS, State

KeyNames = Callable[[Collection[str]], Awaitable[Mapping[str, str]]]
"""Returns the names of keys, of those that have one."""
ReceiptWriter = Callable[[PurchaseRecord], Mapping[str, object]]
"""Writes the receipt of a purchase from a peer."""

_JOB_ID: Final = re.compile(r"[0-9a-f]{64}")
_PAGE: Final = 500
_CSV_LINES: Final = 100_000
_LONGEST_REASON: Final = 500
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_RESOLVED: Final = {state.value: state for state in (State.SETTLED, State.UNDELIVERED, State.NOT_PAID)}
JOURNALED: Final = (State.PAYING, State.UNKNOWN, State.NOT_PAID, State.SETTLED, State.DELIVERED, State.UNDELIVERED)
"""The states of a purchase that the journal has; quotes that were not taken are not in it."""


class Format(StrEnum):
    """The form of a list."""

    JSON = "json"
    CSV = "csv"


class OneFormat(StrEnum):
    """The form of one purchase."""

    JSON = "json"
    RECEIPT = "receipt"


MODEL: Final = QueryParameter("model", "Of this model.")
KEY: Final = QueryParameter("key", "With the key of this id.")
PEER: Final = QueryParameter("peer", "From the provider of this id; for operators.")
ACCOUNT: Final = QueryParameter("account", "Of the account of this id; for operators.")
FORMAT: Final = choice("format", "JSON in pages, or all of it as CSV.", Format, Format.JSON)
_STATE: Final = QueryParameter(
    "state",
    "In one of these states: repeated, or separated by commas.",
    {"type": "array", "items": {"type": "string", "enum": [state.value for state in JOURNALED]}},
)
LIST_QUERY: Final = (LIMIT, AFTER, MODEL, KEY, _STATE, PEER, ACCOUNT, SINCE, UNTIL, FORMAT)
ONE_QUERY: Final = (choice("format", "With its details, or the receipt alone as a file.", OneFormat, OneFormat.JSON),)

CUSTOMER_FIELDS: Final = (
    *("object", "job_id", "state", "verdict", "task_kind", "model", "key_id", "key_name", "request_id", "stream"),
    *("charge_msat", "charged_msat", "refund", "ended_by", "received", "request_bytes", "result_bytes"),
    *("paying_at", "ended_at", "updated_at", "has_receipt"),
)
"""The fields of a purchase that a customer sees."""
COST_FIELDS: Final = (
    *("kind", "peer_id", "account_id", "price_msat", "fee_msat", "fee_cap_msat", "cost_msat", "runner_up_msat"),
    "provider_blamed",
)
"""The fields that the operator sees as well."""


def purchase_document(record: PurchaseRecord, view: View, names: Mapping[str, str]) -> dict[str, object]:
    """Return a purchase as JSON, with the fields that a view shows."""
    charge = record.charge
    document: dict[str, object] = {
        "object": "lcp.purchase",
        "job_id": record.job_id.hex(),
        "state": record.state.value,
        "verdict": VERDICTS[record.state].value,
        "task_kind": record.task_kind.value,
        "model": record.model,
        "key_id": record.key_id,
        "key_name": names.get(record.key_id),
        "request_id": record.request_id,
        "stream": bool(record.stream),
        "charge_msat": None if charge is None else charge.amount_msat,
        "charged_msat": None if charge is None else record.charged_msat,
        "refund": record.refund,
        "ended_by": record.ended_by,
        "received": record.received,
        "request_bytes": record.request_bytes,
        "result_bytes": record.result_bytes,
        "paying_at": rfc3339(record.paying_at),
        "ended_at": rfc3339_or_none(record.ended_at),
        "updated_at": rfc3339(record.updated_at),
        "has_receipt": record.kind == ProviderSource.LCP,
    }
    if view.sees_cost:
        document |= {
            "kind": record.kind,
            "peer_id": record.peer_id,
            "account_id": None if charge is None else charge.account_id,
            "price_msat": record.price_msat,
            "fee_msat": record.fee_msat,
            "fee_cap_msat": record.fee_cap_msat,
            "cost_msat": record.cost_msat,
            "runner_up_msat": record.runner_up_msat,
            "provider_blamed": record.blames_provider if record.state is State.UNDELIVERED else None,
        }
    return document


def shows(view: View, record: PurchaseRecord) -> bool:
    """Return whether a view shows a purchase."""
    account_id = None if record.charge is None else record.charge.account_id
    if view.key_id is not None and record.key_id != view.key_id:
        return False
    return view.account_id is None or view.account_id == account_id


def read_filter(query: Query, view: View) -> PurchaseFilter | None:
    """Read the filters of a query within a view; None where nothing can match.

    Raises:
        ApiError: 400, one of them is for operators.
    """
    peer_id, account_id, key_id = query.text("peer"), query.text("account"), query.text("key")
    if peer_id is not None and not view.sees_cost:
        raise bad_request("peer is a filter for operators", "peer", "unknown_parameter")
    if account_id is not None and not view.is_whole:
        raise bad_request("account is a filter for operators", "account", "unknown_parameter")
    if view.key_id is not None and key_id not in {None, view.key_id}:
        return None
    return PurchaseFilter(
        model=query.text("model"),
        peer_id=peer_id,
        key_id=key_id if view.key_id is None else view.key_id,
        account_id=account_id if view.account_id is None else view.account_id,
        since=query.time("since"),
        until=query.time("until"),
    )


def need_books(books: PurchaseBooks | None) -> PurchaseBooks:
    """Return the journal.

    Raises:
        ApiError: 404, there is none.
    """
    if books is None:
        raise ApiError(404, "the journal is off (journal_url), so nothing is recorded", code="journal_off")
    return books


@dataclass(frozen=True, slots=True)
class PurchaseRoutes:
    """Serves every caller the purchases that it may see.

    ``books`` and ``resolutions`` are None without a journal.
    """

    books: PurchaseBooks | None
    _: KW_ONLY
    key_names: KeyNames
    write_receipt: ReceiptWriter
    resolutions: Resolutions | None
    api_limits: ApiLimits
    read_timeout_s: float

    async def list(self, request: web.Request) -> web.StreamResponse:
        """Serve GET /api/purchases: the purchases that the caller may see, the newest first."""
        books, view = need_books(self.books), view_of(request[CONTEXT].caller)
        query = Query(request, LIST_QUERY)
        which = read_filter(query, view)
        states = query.choices("state", JOURNALED)
        limit, after = query.limit(), query.cursor(_read_cursor)
        form = query.choice("format", Format, Format.JSON)
        if which is not None:
            which = replace(which, states=states)
        if form is Format.CSV:
            return await self._csv(request, books, which, view)
        if which is None:
            return list_response([], None)
        async with self.api_limits.turn(request):
            page = await books.page(which, limit=limit, after=after)
            documents = await self._documents(page.purchases, view)
        return list_response(documents, None if page.after is None else _write_cursor(page.after))

    async def get(self, request: web.Request) -> web.Response:
        """Serve GET /api/purchases/{job_id}: a purchase with its times and its receipt, or the receipt alone as a file."""
        form = Query(request, ONE_QUERY).choice("format", OneFormat, OneFormat.JSON)
        view = view_of(request[CONTEXT].caller)
        document, receipt = await self._one(_job_id(request), view)
        if form is OneFormat.JSON:
            return json_response({**document, "receipt": receipt})
        if receipt is None:
            raise ApiError(
                404,
                "a purchase from a node has no invoice, and so no receipt",
                code="receipt_not_found",
                param="job_id",
            )
        name = f"receipt-{str(document['job_id'])[:16]}.json"
        return web.Response(
            body=orjson.dumps(receipt, option=orjson.OPT_INDENT_2),
            content_type="application/json",
            headers={"Content-Disposition": f'attachment; filename="{name}"'},
        )

    async def receipt(self, request: web.Request) -> web.Response:
        """Serve GET /v1/receipts/{job_id}: the receipt of a purchase that the caller may see."""
        text = request.match_info["job_id"].lower()
        receipt = None
        if _JOB_ID.fullmatch(text) and self.books is not None:
            found = await self._find(bytes.fromhex(text), view_of(request[CONTEXT].caller))
            receipt = None if found is None else self._receipt(found, view_of(request[CONTEXT].caller))
        if receipt is None:
            raise ApiError(404, "there is no such receipt", code="receipt_not_found", param="job_id")
        return json_response(receipt)

    async def resolve(self, request: web.Request) -> web.Response:
        """Serve POST /api/admin/purchases/{job_id}/resolution: record what became of an unknown payment, for good."""
        job_id = _job_id(request)
        fields = await read_fields(request, self.read_timeout_s)
        state = fields.text("state", required=True)
        reason = fields.text("reason", required=True, longest=_LONGEST_REASON).strip()
        fields.done()
        if state not in _RESOLVED:
            raise bad_request(f"state may be {', '.join(_RESOLVED)}", "state", "invalid_value")
        need_books(self.books)
        if self.resolutions is None:
            raise _no_purchase()
        try:
            await self.resolutions.resolve(
                job_id, _RESOLVED[state], reason=reason, actor=actor_of(request), at=datetime.now(UTC)
            )
        except NotUnknown as error:
            if error.state is None:
                raise _no_purchase() from None
            raise ApiError(409, f"{error}; nothing was changed", code="not_unknown", param="job_id") from None
        document, receipt = await self._one(job_id, view_of(request[CONTEXT].caller))
        return json_response({**document, "receipt": receipt})

    async def _one(self, job_id: bytes, view: View) -> tuple[dict[str, object], Mapping[str, object] | None]:
        need_books(self.books)
        record = await self._find(job_id, view)
        if record is None:
            raise _no_purchase()
        (document,) = await self._documents([record], view)
        document["times"] = {step.state.value: rfc3339(step.at) for step in record.steps}
        return document, self._receipt(record, view)

    async def _find(self, job_id: bytes, view: View) -> PurchaseRecord | None:
        record = await need_books(self.books).purchase(job_id)
        return record if record is not None and shows(view, record) else None

    def _receipt(self, record: PurchaseRecord, view: View) -> Mapping[str, object] | None:
        """Return the receipt; None for a purchase from a node, which gives no invoice."""
        if record.kind != ProviderSource.LCP:
            return None
        receipt = self.write_receipt(record)
        # The fee is the operator's. The price is part of the invoice, without which nothing could be verified.
        return receipt if view.sees_cost else {**receipt, "fee_msat": None}

    async def _documents(self, records: "Collection[PurchaseRecord]", view: View) -> "_Documents":
        names = await self.key_names({record.key_id for record in records if record.key_id})
        return [purchase_document(record, view, names) for record in records]

    async def _csv(
        self, request: web.Request, books: PurchaseBooks, which: PurchaseFilter | None, view: View
    ) -> web.StreamResponse:
        response = csv_response(request, "purchases")
        fields = (*CUSTOMER_FIELDS, *COST_FIELDS) if view.sees_cost else CUSTOMER_FIELDS
        pages = self._pages(request, books, which, view)
        # Before the response begins: an error of the database can still become one.
        first = await anext(pages, b"")
        await response.prepare(request)
        await response.write(csv_line(fields) + first)
        async for lines in pages:
            await response.write(lines)
        await response.write_eof()
        return response

    async def _pages(
        self, request: web.Request, books: PurchaseBooks, which: PurchaseFilter | None, view: View
    ) -> AsyncIterator[bytes]:
        """Yield the lines of each page; a slow reader holds no place among the readers of the database meanwhile."""
        after: PurchaseCursor | None = None
        for _ in range(_CSV_LINES // _PAGE):
            if which is None:
                return
            async with self.api_limits.turn(request):
                page = await books.page(which, limit=_PAGE, after=after)
                documents = await self._documents(page.purchases, view)
            yield b"".join(csv_line(document.values()) for document in documents)
            after = page.after
            if after is None:
                return


_Documents = list[dict[str, object]]


def csv_response(request: web.Request, name: str) -> web.StreamResponse:
    """Return a response that a browser stores as a file of CSV."""
    response = web.StreamResponse(
        headers={"Content-Type": "text/csv; charset=utf-8", "Content-Disposition": f'attachment; filename="{name}.csv"'}
    )
    close_if_http10(request, response)
    return response


def _job_id(request: web.Request) -> bytes:
    text = request.match_info["job_id"].lower()
    if not _JOB_ID.fullmatch(text):
        raise _no_purchase()
    return bytes.fromhex(text)


def _no_purchase() -> ApiError:
    return ApiError(404, "there is no such purchase", code="purchase_not_found", param="job_id")


def _write_cursor(cursor: PurchaseCursor) -> str:
    return f"{(cursor.paying_at - _EPOCH) // _MICROSECOND}_{cursor.job_id.hex()}"


def _read_cursor(text: str) -> PurchaseCursor:
    micros, _, job_id = text.partition("_")
    if not _JOB_ID.fullmatch(job_id):
        raise ValueError(text)
    return PurchaseCursor(_EPOCH + _MICROSECOND * int(micros), bytes.fromhex(job_id))
