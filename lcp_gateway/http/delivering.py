"""From an answer to the client that waits for it: whole, or as it comes."""

import asyncio

from aiohttp import web

from lcp_gateway.http.charging import Charging
from lcp_gateway.http.errors import ApiError
from lcp_gateway.http.exchange import Exchange
from lcp_gateway.http.failures import of_error
from lcp_gateway.http.relay import Relay, end_with_connection
from lcp_gateway.http.result_headers import EVENTS, JSON, STREAMING, result_headers
from lcp_gateway.http.shaping import Shaping
from lcp_gateway.purchase.answers import Answer
from lcp_gateway.purchase.errors import Undelivered
from lcp_gateway.purchase.order import Order
from lcp_gateway.purchase.service import PurchaseService
from lcp_gateway.telemetry.metrics import Metrics

# The counter of streamed bytes is touched this often, not for every chunk.
_COUNT_EVERY_BYTES = 16_384
# How often is looked whether a slow client has taken what was written.
_LEAST_PAUSE_S = 0.002
_MOST_PAUSE_S = 0.1


class Delivering:
    """Hands answers over."""

    def __init__(
        self,
        *,
        service: PurchaseService,
        metrics: Metrics,
        charging: Charging,
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
        exchange: Exchange,
        order: Order,
        answer: Answer,
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
            shaping = Shaping(order, purchase, head.content_encoding, given_id=answer.given_id)
            await self._charging.tell(exchange)
            if purchase.order.task.stream:
                headers = {
                    **result_headers(purchase, head, EVENTS),
                    **shaping.headers(),
                    **STREAMING,
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
        exchange: Exchange,
        answer: Answer,
        shaping: Shaping,
        headers: dict[str, str],
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers=headers)
        relay = Relay(
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
            failure = _not_read(answer) if isinstance(error, TimeoutError) else of_error(error)
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
                end_with_connection(request, response)
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

    def _note_bytes(self, exchange: Exchange, count: int) -> None:
        if not exchange.result_bytes:
            self._metrics.first_byte(exchange.endpoint, exchange.model, exchange.elapsed_s())
        exchange.result_bytes += count
        if exchange.result_bytes - exchange.counted_bytes >= _COUNT_EVERY_BYTES:
            self._count(exchange)

    def _count(self, exchange: Exchange) -> None:
        self._metrics.streamed(exchange.result_bytes - exchange.counted_bytes)
        exchange.counted_bytes = exchange.result_bytes


def _not_read(answer: Answer) -> ApiError:
    return ApiError(
        408,
        "the answer was not read in time",
        code="answer_not_read",
        verdict=answer.verdict,
        quote=answer.purchase.quote if answer.purchase is not None else None,
    )
