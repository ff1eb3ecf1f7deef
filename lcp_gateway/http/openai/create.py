"""The POST routes that buy: chat completions, responses, completions, embeddings."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from aiohttp import web

from lcp_gateway.http.context import CONTEXT, RequestContext
from lcp_gateway.http.error_mapping import map_error
from lcp_gateway.http.errors import ApiError
from lcp_gateway.http.fields import json_response
from lcp_gateway.http.openai.admission import Admission, AdmissionTicket, JobsInFlight
from lcp_gateway.http.openai.background import BackgroundResponses
from lcp_gateway.http.openai.charges import ChargeReport
from lcp_gateway.http.openai.history import CompletedOrder, History
from lcp_gateway.http.openai.payment_required import PaymentRequired
from lcp_gateway.http.openai.request_body import parse_request, read_body
from lcp_gateway.http.openai.request_headers import RequestHeaders, read_request_headers
from lcp_gateway.http.openai.response import JSON, ResponseWriter, quote_response
from lcp_gateway.http.permissions import check_may_buy
from lcp_gateway.purchase.idempotency import RepeatKeys, ResultLost
from lcp_gateway.purchase.journal import InsufficientBalance
from lcp_gateway.purchase.limits import SpendingLimits
from lcp_gateway.purchase.order import Order, TaskKind
from lcp_gateway.purchase.result_buffer import ResultBuffer
from lcp_gateway.purchase.service import PurchaseService
from lcp_gateway.purchase.shared_purchases import BoughtBefore
from lcp_gateway.responses.background import BackgroundJob
from lcp_gateway.responses.request_options import RequestOptions
from lcp_gateway.telemetry.metrics import Metrics

OPERATIONS: Mapping[TaskKind, str] = {
    TaskKind.CHAT_COMPLETIONS: "chat completion",
    TaskKind.RESPONSES: "response",
    TaskKind.COMPLETIONS: "completion",
    TaskKind.EMBEDDINGS: "embedding",
}
"""The names of the operations in the access log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateRoutes:
    """Serves POST /v1/chat/completions, /v1/responses, /v1/completions and /v1/embeddings.

    ``explain`` describes how an order would be routed, without effect; ``follow`` streams a background job's events; of one by its id, which another process has, it answers as for a GET.
    """

    service: PurchaseService
    limits: SpendingLimits
    jobs: JobsInFlight
    metrics: Metrics
    admission: Admission
    charges: ChargeReport
    payment_required: PaymentRequired
    history: History
    background: BackgroundResponses
    writer: ResponseWriter
    follow: Callable[[web.Request, BackgroundJob | str], Awaitable[web.StreamResponse]]
    explain: Callable[[Order], Mapping[str, object]]
    default_model: str
    read_timeout_s: float

    def handler(self, kind: TaskKind) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        """Return the handler of a kind of task."""
        return partial(self._create, kind)

    async def _create(self, kind: TaskKind, request: web.Request) -> web.StreamResponse:
        context = request[CONTEXT]
        context.operation = OPERATIONS[kind]
        is_received = request.content.is_eof()
        async with AdmissionTicket(self.admission, self.jobs, context, is_received=is_received) as ticket:
            try:
                obtained = await self._obtain(request, context, kind, ticket)
                if isinstance(obtained, web.StreamResponse):
                    return obtained
                order, answer = obtained
                response = await self.writer.deliver(request, context, order, answer)
            except asyncio.CancelledError:
                self._record_departure(context)
                raise
            except ApiError:
                raise
            except InsufficientBalance as error:
                raise await self.payment_required.error_for(context, error) from error
            except Exception as error:
                if isinstance(error, BoughtBefore):
                    self.metrics.joined("lost")
                    context.earlier = error.earlier
                failure = map_error(error)
                if failure is None:
                    raise
                await self.charges.describe(context, failure)
                await self.charges.add_headers(context)
                raise failure from error
            else:
                # One that is not prepared is written by aiohttp, after the ticket.
                ticket.is_written = response.prepared
                return response

    async def _obtain(
        self, request: web.Request, context: RequestContext, kind: TaskKind, ticket: AdmissionTicket
    ) -> tuple[Order, ResultBuffer] | web.StreamResponse:
        """Return the order as the client sent it with its result, or the response of a request that needs no result."""
        headers = read_request_headers(request.headers)
        if not headers.route_only:
            check_may_buy(context.caller)
        body = await read_body(request, self.read_timeout_s)
        parsed = parse_request(kind, body, self.default_model)
        task = parsed.task
        context.model, context.stream = task.model, task.stream
        context.request_bytes = len(task.body)
        options = self.history.read(kind, parsed.document)
        order = self.admission.order(context.caller, task, request_id=context.request_id, limit_msat=headers.limit_msat)
        await ticket.count(task)
        if headers.route_only:
            return json_response(self.explain((await self.history.complete(order, options)).order))
        if headers.quote_only:
            held = await self.service.quote((await self.history.complete(order, options)).order)
            return quote_response(held, self.limits)
        if (undecided := self.service.find_undecided(order, headers.repeat)) is not None:
            await self.service.learn_outcome(undecided)
        if options.background:
            return await self._in_background(request, context, parsed.document, order, options, headers, ticket)
        answer = self._find(order, headers.repeat)
        if answer is None and headers.quote_id is not None:
            await self.service.check_quote(order, headers.quote_id)
            answer = self._find(order, headers.repeat)
        if answer is not None:
            self._record_joined(context, answer)
            return order, answer
        completed = await self.history.complete(order, options)
        if options.previous_response_id is not None:
            # The same request may have come while the earlier turns were read.
            answer = self._find(order, headers.repeat)
        if answer is None:
            answer = self._start(context, order, completed, options, headers)
        else:
            self._record_joined(context, answer)
        return order, answer

    def _find(self, order: Order, repeat: RepeatKeys) -> ResultBuffer | None:
        try:
            return self.service.find(order, repeat)
        except ResultLost:
            self.metrics.joined("lost")
            raise

    def _start(
        self,
        context: RequestContext,
        order: Order,
        completed: CompletedOrder,
        options: RequestOptions,
        headers: RequestHeaders,
    ) -> ResultBuffer:
        """Begin to buy. Nothing is awaited after the answer was looked for: no other request has begun meanwhile."""
        context.request_bytes = len(completed.order.task.body)
        answer = self.service.start(completed.order, headers.repeat, headers.quote_id)
        if plan := self.history.plan(order, completed, options):
            self.history.keep(answer, plan)
        return answer

    async def _in_background(
        self,
        request: web.Request,
        context: RequestContext,
        document: Mapping[str, Any],
        order: Order,
        options: RequestOptions,
        headers: RequestHeaders,
        ticket: AdmissionTicket,
    ) -> web.StreamResponse:
        job: BackgroundJob | str | None = self.background.repeated(order, headers.repeat)
        if job is None:
            completed = await self.history.complete(order, options)
            context.request_bytes = len(completed.order.task.body)
            plan = self.history.plan(order, completed, options)
            assert plan is not None  # noqa: S101 - background is refused where nothing is stored
            job = await self.background.begin(
                completed.order, plan, document, repeat=headers.repeat, quote_name=headers.quote_id
            )
        if isinstance(job, str):
            context.joined = True
            self.metrics.joined("running")
            return await self.follow(request, job)
        if job.attended:
            self._record_joined(context, job.answer)
        else:
            ticket.hand_over(self.background.attend(job, ticket.release(job.answer)))
        context.answer = job.answer
        if order.task.stream:
            return await self.follow(request, job)
        body, response_headers = await self.background.given(job)
        return web.Response(body=body, headers={**response_headers, "Content-Type": JSON})

    def _record_joined(self, context: RequestContext, answer: ResultBuffer) -> None:
        context.joined = True
        self.metrics.joined("replayed" if answer.ended else "running")

    def _record_departure(self, context: RequestContext) -> None:
        answer = context.answer
        if answer is None or answer.purchase is None:
            phase = "quote"
        else:
            phase = "execute" if answer.head is None else "stream"
        self.metrics.client_disconnect(phase)
        context.problem = f"the client went away ({phase})"
