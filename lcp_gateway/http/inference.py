"""POST /v1/chat/completions and /v1/responses: a request in, an order, and what comes of it out."""

import asyncio
from collections.abc import Callable, Mapping

from aiohttp import web

from lcp_gateway.accounts.rates import Allowance
from lcp_gateway.http.admission import Admission
from lcp_gateway.http.asking import read_asked
from lcp_gateway.http.body import read_body
from lcp_gateway.http.charging import Charging
from lcp_gateway.http.documents import json_response
from lcp_gateway.http.errors import PAYMENT_HEADER, ApiError, quote_headers
from lcp_gateway.http.exchange import EXCHANGE, Exchange
from lcp_gateway.http.failures import of_error, of_purchase
from lcp_gateway.http.jobs import Jobs
from lcp_gateway.http.quotes import quote_response
from lcp_gateway.http.relay import Relay, safe_header
from lcp_gateway.http.shaping import Shaping
from lcp_gateway.http.validation import parse_task
from lcp_gateway.purchase.answers import Answer
from lcp_gateway.purchase.errors import Refused
from lcp_gateway.purchase.journal import InsufficientBalance
from lcp_gateway.purchase.limits import SpendingLimits
from lcp_gateway.purchase.memory import AnswerLost, Repeat
from lcp_gateway.purchase.order import Order
from lcp_gateway.purchase.purchase import Purchase
from lcp_gateway.purchase.service import PurchaseService
from lcp_gateway.purchase.task import TaskKind
from lcp_gateway.telemetry.metrics import Metrics

_JSON = "application/json; charset=utf-8"
_EVENTS = "text/event-stream; charset=utf-8"
# The counter of streamed bytes is touched this often, not for every chunk.
_COUNT_EVERY_BYTES = 16_384


class Inference:
    """Serves the routes that buy something."""

    def __init__(
        self,
        *,
        service: PurchaseService,
        limits: SpendingLimits,
        jobs: Jobs,
        metrics: Metrics,
        admission: Admission,
        charging: Charging,
        explain: Callable[[Order], Mapping[str, object]],
        read_timeout_s: float,
        heartbeat_s: float,
        relay_limit_s: float,
    ) -> None:
        """``explain`` says how an order would be routed, and does nothing about it."""
        self._service = service
        self._limits = limits
        self._jobs = jobs
        self._metrics = metrics
        self._admission = admission
        self._charging = charging
        self._explain = explain
        self._read_timeout_s = read_timeout_s
        self._heartbeat_s = heartbeat_s
        self._relay_limit_s = relay_limit_s

    async def chat_completions(self, request: web.Request) -> web.StreamResponse:
        """Serve POST /v1/chat/completions."""
        return await self._serve(request, TaskKind.CHAT_COMPLETIONS, "chat completion")

    async def responses(self, request: web.Request) -> web.StreamResponse:
        """Serve POST /v1/responses."""
        return await self._serve(request, TaskKind.RESPONSES, "response")

    async def completions(self, request: web.Request) -> web.StreamResponse:
        """Serve POST /v1/completions."""
        return await self._serve(request, TaskKind.COMPLETIONS, "completion")

    async def embeddings(self, request: web.Request) -> web.StreamResponse:
        """Serve POST /v1/embeddings."""
        return await self._serve(request, TaskKind.EMBEDDINGS, "embedding")

    async def _serve(
        self, request: web.Request, kind: TaskKind, operation: str
    ) -> web.StreamResponse:
        exchange = request[EXCHANGE]
        exchange.operation = operation
        allowance = Allowance()
        with self._jobs.admit():
            try:
                lease = await self._admission.job(exchange.caller)
            except Refused as refusal:
                raise of_purchase(refusal) from refusal
            try:
                asked = read_asked(request.headers)
                task = parse_task(kind, await read_body(request, self._read_timeout_s))
                exchange.model, exchange.stream = task.model, task.stream
                exchange.request_bytes = len(task.body)
                order = self._admission.order(
                    exchange.caller,
                    task,
                    request_id=exchange.request_id,
                    limit_msat=asked.limit_msat,
                )
                allowance = await self._admission.count(exchange.caller, task)
                exchange.headers.update(allowance.headers)
                if asked.route_only:
                    return json_response(self._explain(order))
                if asked.quote_only:
                    held = await self._service.quote(order)
                    return quote_response(held, self._limits)
                answer = self._find(order, asked.repeat)
                if answer is None:
                    answer = self._service.start(order, asked.repeat, asked.quote_id)
                else:
                    exchange.joined = True
                    self._metrics.joined("replayed" if answer.ended else "running")
                return await self._deliver(request, exchange, order, answer)
            except asyncio.CancelledError:
                self._note_departure(exchange)
                raise
            except ApiError:
                raise
            except InsufficientBalance as error:
                raise await self._charging.refuse(exchange, error) from error
            except Exception as error:
                failure = of_error(error)
                if failure is None:
                    raise
                self._charging.say(exchange, failure)
                await self._charging.tell(exchange)
                raise failure from error
            finally:
                await lease.give_back()
                await self._admission.settle(
                    allowance, exchange.request_bytes, exchange.result_bytes
                )

    def _find(self, order: Order, repeat: Repeat) -> Answer | None:
        try:
            return self._service.find(order, repeat)
        except AnswerLost:
            self._metrics.joined("lost")
            raise

    async def _deliver(
        self, request: web.Request, exchange: Exchange, order: Order, answer: Answer
    ) -> web.StreamResponse:
        exchange.answer = answer
        self._service.joined(answer)
        try:
            head = await answer.wait_head()
            purchase = answer.purchase
            assert purchase is not None  # noqa: S101 - a head comes of a purchase
            shaping = Shaping(order, purchase, head.content_encoding)
            await self._charging.tell(exchange)
            if purchase.order.task.stream:
                headers = {
                    **_result_headers(purchase, head.content_type, head.content_encoding, _EVENTS),
                    **shaping.headers(),
                    "Cache-Control": "no-cache",
                    "X-Accel-Buffering": "no",
                }
                return await self._stream(request, exchange, answer, shaping, headers)
            body = shaping.whole(b"".join([block async for block in answer.chunks()]))
            exchange.result_bytes = len(body)
            self._metrics.first_byte(exchange.endpoint, exchange.model, exchange.elapsed_s())
            headers = _result_headers(purchase, head.content_type, head.content_encoding, _JSON)
            return web.Response(body=body, headers={**headers, **shaping.headers()})
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
        except ConnectionError:
            # The write found the client gone before the cancellation did.
            raise asyncio.CancelledError from None
        except Exception as error:
            failure = _not_read(answer) if isinstance(error, TimeoutError) else of_error(error)
            if failure is None or not relay.begun:
                raise
            exchange.problem = failure.code or "broken off"
            self._charging.say(exchange, failure)
            await relay.break_off(failure)
        finally:
            self._count(exchange)
        return response

    def _note_departure(self, exchange: Exchange) -> None:
        answer = exchange.answer
        if answer is None or answer.purchase is None:
            phase = "quote"
        else:
            phase = "execute" if answer.head is None else "stream"
        self._metrics.client_disconnect(phase)
        exchange.problem = f"the client went away ({phase})"

    def _note_bytes(self, exchange: Exchange, count: int) -> None:
        if not exchange.result_bytes:
            self._metrics.first_byte(exchange.endpoint, exchange.model, exchange.elapsed_s())
        exchange.result_bytes += count
        if exchange.result_bytes - exchange.counted_bytes >= _COUNT_EVERY_BYTES:
            self._count(exchange)

    def _count(self, exchange: Exchange) -> None:
        self._metrics.streamed(exchange.result_bytes - exchange.counted_bytes)
        exchange.counted_bytes = exchange.result_bytes


def _result_headers(
    purchase: Purchase, content_type: str, content_encoding: str, otherwise: str
) -> dict[str, str]:
    headers = {
        "Content-Type": safe_header(content_type, otherwise),
        # A provider chooses the type of its bytes, and no browser shall guess another.
        "X-Content-Type-Options": "nosniff",
        # Every head is that of a purchase that was paid, or that is free; a stream's goes out before it is whole.
        PAYMENT_HEADER: purchase.verdict.value,
        **quote_headers(purchase.quote),
        "X-Lcp-Price-Msat": str(purchase.cost_msat),
    }
    if purchase.runner_up_msat is not None:
        headers["X-Lcp-Runner-Up-Msat"] = str(purchase.runner_up_msat)
    encoding = safe_header(content_encoding, "identity")
    if encoding.lower() != "identity":
        headers["Content-Encoding"] = encoding
    return headers


def _not_read(answer: Answer) -> ApiError:
    return ApiError(
        408,
        "the answer was not read in time",
        code="answer_not_read",
        verdict=answer.verdict,
        quote=answer.purchase.quote if answer.purchase is not None else None,
    )
