"""Responses of the routes that buy: headers, charges, changes of the body that the client asked for, and delivery."""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing, suppress
from typing import Protocol

import orjson
from aiohttp import web
from structlog.typing import FilteringBoundLogger

from lcp_gateway.accounts.models import AccountError
from lcp_gateway.accounts.repositories import InvoiceServiceUnavailable
from lcp_gateway.accounts.wallet import TopupsDisabled, Wallet
from lcp_gateway.adapters.completions import FromChatStream, from_chat, to_chat
from lcp_gateway.adapters.routing_info import RoutingInfoStream, add_to_result, header_value
from lcp_gateway.http.context import RequestContext
from lcp_gateway.http.error_mapping import map_error, map_purchase_error
from lcp_gateway.http.errors import PAYMENT_HEADER, ApiError, quote_headers
from lcp_gateway.http.gateway.api_limits import ApiLimits, account
from lcp_gateway.http.openai.sse_relay import SseRelay, close_if_http10, safe_header
from lcp_gateway.purchase.errors import Undelivered
from lcp_gateway.purchase.held_quotes import HeldQuote
from lcp_gateway.purchase.journal import EarlierPurchase, InsufficientBalance
from lcp_gateway.purchase.limits import SpendingLimits
from lcp_gateway.purchase.money import REFUND_MESSAGES, Refund
from lcp_gateway.purchase.order import Order
from lcp_gateway.purchase.purchase import Purchase
from lcp_gateway.purchase.result_buffer import ResultBuffer, ResultHead
from lcp_gateway.purchase.service import PurchaseService
from lcp_gateway.responses.documents import find_id
from lcp_gateway.responses.ids import IdInjector
from lcp_gateway.responses.replay import with_changes
from lcp_gateway.telemetry.metrics import Metrics

JSON = "application/json; charset=utf-8"
EVENTS = "text/event-stream; charset=utf-8"

STREAM_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
"""What keeps proxies from holding a stream up."""


def purchase_headers(purchase: Purchase) -> dict[str, str]:
    """Give the headers that tell of a purchase."""
    headers = {
        # Every head is that of a purchase that was paid, or that is free; a stream's goes out before it is whole.
        PAYMENT_HEADER: purchase.verdict.value,
        **quote_headers(purchase.quote),
        "X-Lcp-Price-Msat": str(purchase.cost_msat),
    }
    if purchase.runner_up_msat is not None:
        headers["X-Lcp-Runner-Up-Msat"] = str(purchase.runner_up_msat)
    return headers


def result_headers(purchase: Purchase, head: ResultHead, otherwise: str) -> dict[str, str]:
    """Give the headers of a result; ``otherwise`` is its type where the provider names none that can be sent."""
    headers = {
        "Content-Type": safe_header(head.content_type, otherwise),
        # A provider chooses the type of its bytes, and no browser shall guess another.
        "X-Content-Type-Options": "nosniff",
        **purchase_headers(purchase),
    }
    encoding = safe_header(head.content_encoding, "identity")
    if encoding.lower() != "identity":
        headers["Content-Encoding"] = encoding
    return headers


def quote_response(held: HeldQuote, limits: SpendingLimits) -> web.Response:
    """Give a quote that can be taken with ``X-Lcp-Quote-Id``; nothing was paid."""
    offer = held.offer
    quote = offer.quote
    document: dict[str, object] = {
        "object": "lcp.quote",
        "id": held.id,
        "model": offer.order.task.model,
        "source": quote.source.value,
        "peer_id": quote.peer_id,
        "job_id": quote.job_id.hex(),
        "price_msat": quote.price_msat,
        "max_fee_msat": limits.fee.fee_for(quote),
        "runner_up_msat": offer.runner_up_msat,
        "expires_at": int(quote.expires_at.timestamp()),
        "terms_hash": quote.terms_hash.hex(),
    }
    if charge := limits.charge_for(offer.order, quote):
        document["charge_msat"] = charge.amount_msat
    if offer.candidate.routing is not None:
        document["routing_info"] = {**offer.candidate.routing, "price_msat": quote.price_msat}
    return web.Response(
        body=orjson.dumps(document),
        content_type="application/json",
        headers=quote_headers(quote),
    )


CHARGED_HEADER = "X-Lcp-Charged-Msat"
BALANCE_HEADER = "X-Lcp-Balance-Msat"
REFUND_HEADER = "X-Lcp-Refund"
# A paid answer does not wait longer for a figure that goes with it.
_BALANCE_S = 1.0
# Nor does an error wait longer for a decision that the journal makes with its next commit.
_REFUND_S = 1.0
_PENDING = "pending"


def refund_status(purchase: Purchase | EarlierPurchase) -> str | None:
    """Return what became of a charge that is to be given back; None where there is none."""
    if purchase.refund is not None:
        return purchase.refund.value
    return _PENDING if _awaits_refund(purchase) else None


def _awaits_refund(purchase: Purchase | EarlierPurchase) -> bool:
    # The journal decides in the transaction that writes the end.
    return isinstance(purchase, Purchase) and purchase.awaits_refund


class ChargeReport:
    """Tells customers. Where there are no accounts it has nothing to tell."""

    def __init__(
        self,
        wallet: Wallet | None,
        log: FilteringBoundLogger,
        api_limits: ApiLimits | None = None,
    ) -> None:
        """``api_limits`` bounds how many invoices are made at one time, and by default none is made without a bound."""
        self._wallet = wallet
        self._log = log
        self._api_limits = api_limits or ApiLimits(1, 1)

    async def tell(self, exchange: RequestContext) -> None:
        """Put the charge and what is left into the headers of an answer that is about to go out."""
        account_id, purchase = exchange.caller.account_id, exchange.earlier or exchange.purchase
        if self._wallet is None or account_id is None:
            return
        if purchase is not None and purchase.customer_msat is not None:
            exchange.headers[CHARGED_HEADER] = str(purchase.customer_msat)
            if (refund := refund_status(purchase)) is not None:
                exchange.headers[REFUND_HEADER] = refund
            if _awaits_refund(purchase):
                # What is given back is on its way: a balance without it would only mislead.
                return
        try:
            async with asyncio.timeout(_BALANCE_S):
                balance = await self._wallet.balance(account_id)
        except Exception as error:  # noqa: BLE001 - an answer that is paid must not fail for want of a figure
            self._log.warning("a balance cannot be read", error=type(error).__name__)
            return
        exchange.headers[BALANCE_HEADER] = str(balance.available_msat)

    @staticmethod
    async def say(exchange: RequestContext, failure: ApiError) -> None:
        """Say in an error what the customer is charged all the same, and what became of a charge to be given back."""
        purchase = exchange.earlier or exchange.purchase
        if purchase is None or purchase.customer_msat is None:
            return
        if isinstance(purchase, Purchase):
            await purchase.refund_decided(_REFUND_S)
        failure.details = {**failure.details, "charged_msat": purchase.customer_msat}
        if (refund := refund_status(purchase)) is not None:
            failure.details = {**failure.details, "refund": refund}
        if purchase.refund is Refund.WITHHELD:
            failure.message = f"{failure.message}; {REFUND_MESSAGES[Refund.WITHHELD]}"

    async def refuse(self, exchange: RequestContext, error: InsufficientBalance) -> ApiError:
        """Give the answer for a balance that is too low, with an invoice for what is missing."""
        refusal = map_purchase_error(error)
        account_id = exchange.caller.account_id
        if self._wallet is None or account_id is None:
            return refusal
        missing_msat = error.required_msat - error.available_msat
        try:
            async with self._api_limits.place(account(account_id)):
                topup = await self._wallet.fill_for(account_id, missing_msat)
        except (ApiError, TopupsDisabled, InvoiceServiceUnavailable, AccountError):
            return refusal
        except Exception as problem:  # noqa: BLE001 - the refusal stands whatever became of the invoice
            self._log.warning("a top-up cannot be made", error=type(problem).__name__)
            return refusal
        refusal.details = {
            **refusal.details,
            "topup": {
                "id": topup.id,
                "amount_msat": topup.amount_msat,
                "payment_request": topup.payment_request,
                "expires_at": int(topup.expires_at.timestamp()),
            },
        }
        return refusal


ADAPTER_HEADER = "X-Lcp-Adapter"
ROUTING_HEADER = "X-Lcp-Routing"


class StreamStep(Protocol):
    """Changes a stream as it flows."""

    def feed(self, chunk: bytes) -> bytes:
        """Take some bytes and give those that can go on."""
        ...

    def rest(self) -> bytes:
        """Give what was held back, at the end."""
        ...


class ResultTransform:
    """What the answer to one order needs: the way back through an adapter, and the word on the routing."""

    def __init__(
        self,
        order: Order,
        purchase: Purchase,
        content_encoding: str,
        *,
        given_id: str = "",
    ) -> None:
        """``order`` is as the client sent it: it tells what a result has to be turned back into.

        ``given_id`` is the id of a result that has none.
        """
        candidate = purchase.candidate
        plain = content_encoding.strip().lower() in {"", "identity"}
        self._adapter = candidate.adapter
        self._plan = to_chat(order.task.body).plan if self._adapter and plain else None
        self._info: Mapping[str, object] | None = None
        if candidate.routing is not None:
            self._info = {**candidate.routing, "price_msat": purchase.cost_msat}
        self._tells_inside = self._info is not None and plain
        self._purchase = purchase
        self._given_id = given_id if plain else ""

    def headers(self) -> dict[str, str]:
        """Give the headers that say what was done."""
        found = {}
        if self._adapter:
            found[ADAPTER_HEADER] = self._adapter
        if self._info is not None:
            found[ROUTING_HEADER] = header_value(self._info)
        return found

    def whole(self, body: bytes) -> bytes:
        """Give a whole result as the client gets it."""
        if self._plan is not None:
            try:
                body = from_chat(body, self._plan)
            except ValueError as error:
                raise self._undelivered(error) from error
        if self._given_id and find_id((body,), stream=False) is None:
            # What is no JSON object has no place for an id, and is not stored either.
            with suppress(ValueError):
                body = with_changes(body, {"id": self._given_id})
        if self._tells_inside and self._info is not None:
            body = add_to_result(body, self._info)
        return body

    def stream(self, chunks: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
        """Give a stream's bytes as the client gets them."""
        steps: list[StreamStep] = []
        if self._plan is not None:
            steps.append(FromChatStream(self._plan))
        if self._given_id:
            steps.append(IdInjector(self._given_id))
        if self._tells_inside and self._info is not None:
            steps.append(RoutingInfoStream(self._info))
        return self._through(chunks, steps) if steps else chunks

    async def _through(
        self, chunks: AsyncGenerator[bytes, None], steps: Sequence[StreamStep]
    ) -> AsyncGenerator[bytes, None]:
        try:
            async with aclosing(chunks):
                async for chunk in chunks:
                    shaped = chunk
                    for step in steps:
                        shaped = step.feed(shaped)
                    if shaped:
                        yield shaped
            tail = b""
            for step in steps:
                tail = step.feed(tail) + step.rest()
            if tail:
                yield tail
        except ValueError as error:
            # It came whole, and is beyond what the adapter can turn back.
            raise self._undelivered(error) from error

    def _undelivered(self, error: ValueError) -> Undelivered:
        purchase = self._purchase
        return Undelivered(
            f"the result cannot be adapted: {error}",
            quote=purchase.quote,
            verdict=purchase.verdict,
        )


# The counter of streamed bytes is touched this often, not for every chunk.
_COUNT_EVERY_BYTES = 16_384
# How often is looked whether a slow client has taken what was written.
_LEAST_PAUSE_S = 0.002
_MOST_PAUSE_S = 0.1


class ResponseWriter:
    """Hands answers over."""

    def __init__(
        self,
        *,
        service: PurchaseService,
        metrics: Metrics,
        charging: ChargeReport,
        heartbeat_s: float,
        relay_limit_s: float,
    ) -> None:
        self._service = service
        self._metrics = metrics
        self._charging = charging
        self._heartbeat_s = heartbeat_s
        self._relay_limit_s = relay_limit_s

    async def deliver(
        self,
        request: web.Request,
        exchange: RequestContext,
        order: Order,
        answer: ResultBuffer,
    ) -> web.StreamResponse:
        """Give the response. ``order`` is as the client sent it.

        Raises:
            Exception: what kept the answer from coming, as long as the response has not begun.
        """
        exchange.answer = answer
        self._service.joined(answer)
        try:
            head = await answer.wait_head()
            purchase = answer.purchase
            assert purchase is not None  # noqa: S101 - a head comes of a purchase
            shaping = ResultTransform(
                order, purchase, head.content_encoding, given_id=answer.given_id
            )
            await self._charging.tell(exchange)
            if purchase.order.task.stream:
                headers = {
                    **result_headers(purchase, head, EVENTS),
                    **shaping.headers(),
                    **STREAM_HEADERS,
                }
                return await self._stream(request, exchange, answer, shaping, headers)
            body = shaping.whole(b"".join([block async for block in answer.chunks()]))
            exchange.result_bytes = len(body)
            self._metrics.first_byte(exchange.endpoint, exchange.model, exchange.elapsed_s())
            headers = {**result_headers(purchase, head, JSON), **shaping.headers()}
            response = web.Response(body=body, headers=headers)
            if purchase.holds_delivery:
                await self._hand_over(request, response)
                self._service.handed_over(answer)
            return response
        finally:
            self._service.left(answer)

    async def _stream(
        self,
        request: web.Request,
        exchange: RequestContext,
        answer: ResultBuffer,
        shaping: ResultTransform,
        headers: dict[str, str],
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers=headers)
        relay = SseRelay(
            request,
            response,
            kind=answer.order.task.kind,
            heartbeat_s=self._heartbeat_s,
            limit_s=self._relay_limit_s,
            on_bytes=lambda count: self._note_bytes(exchange, count),
        )
        try:
            await relay.run(shaping.stream(answer.chunks()))
            if answer.purchase is not None and answer.purchase.holds_delivery:
                await self._wait_until_sent(request)
                self._service.handed_over(answer)
        except ConnectionError:
            # The write found the client gone before the cancellation did.
            raise asyncio.CancelledError from None
        except Exception as error:
            failure = _not_read(answer) if isinstance(error, TimeoutError) else map_error(error)
            if failure is None or not relay.begun:
                raise
            exchange.problem = failure.code or "broken off"
            await self._charging.say(exchange, failure)
            is_told = isinstance(error, Undelivered) and error.is_told
            await relay.break_off(failure, is_told=is_told)
        finally:
            self._count(exchange)
        return response

    async def _hand_over(self, request: web.Request, response: web.Response) -> None:
        """Write a response in one piece here and now, so that it is known when it has left this process."""
        try:
            async with asyncio.timeout(self._relay_limit_s):
                close_if_http10(request, response)
                await response.prepare(request)
                await response.write_eof()
            await self._wait_until_sent(request)
        except (ConnectionError, TimeoutError):
            if request.transport is not None:
                request.transport.abort()
            raise asyncio.CancelledError from None

    async def _wait_until_sent(self, request: web.Request) -> None:
        """Wait until the kernel has taken all that was written: from then on a kill of this process takes nothing back.

        A client that does not read for as long as a result may take is cut off.
        """
        pause_s, left_s = _LEAST_PAUSE_S, self._relay_limit_s
        transport = request.transport
        while transport is not None and not transport.is_closing():
            if not transport.get_write_buffer_size():
                return
            if left_s <= 0:
                transport.abort()
                return
            await asyncio.sleep(pause_s)
            left_s -= pause_s
            pause_s = min(2 * pause_s, _MOST_PAUSE_S)

    def _note_bytes(self, exchange: RequestContext, count: int) -> None:
        if not exchange.result_bytes:
            self._metrics.first_byte(exchange.endpoint, exchange.model, exchange.elapsed_s())
        exchange.result_bytes += count
        if exchange.result_bytes - exchange.counted_bytes >= _COUNT_EVERY_BYTES:
            self._count(exchange)

    def _count(self, exchange: RequestContext) -> None:
        self._metrics.streamed(exchange.result_bytes - exchange.counted_bytes)
        exchange.counted_bytes = exchange.result_bytes


def _not_read(answer: ResultBuffer) -> ApiError:
    return ApiError(
        408,
        "the answer was not read in time",
        code="answer_not_read",
        verdict=answer.verdict,
        quote=answer.purchase.quote if answer.purchase is not None else None,
    )
