"""The POST routes that buy: chat completions, responses, completions, embeddings."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from aiohttp import web

from lcp_gateway.accounts.limits.concurrency import Lease
from lcp_gateway.accounts.limits.rates import Allowance
from lcp_gateway.http.authentication import check_may_buy
from lcp_gateway.http.context import CONTEXT, RequestContext
from lcp_gateway.http.error_mapping import map_error, map_purchase_error
from lcp_gateway.http.errors import ApiError
from lcp_gateway.http.fields import json_response
from lcp_gateway.http.openai.admission import Admission, Job, JobsInFlight
from lcp_gateway.http.openai.background import BackgroundResponses
from lcp_gateway.http.openai.history import History
from lcp_gateway.http.openai.request_body import ParsedRequest, parse_request, read_body
from lcp_gateway.http.openai.request_headers import RequestHeaders, read_request_headers
from lcp_gateway.http.openai.response import JSON, ChargeReport, ResponseWriter, quote_response
from lcp_gateway.purchase.errors import Refused
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


class CreateRoutes:
    """Serves the routes that buy something."""

    def __init__(
        self,
        *,
        service: PurchaseService,
        limits: SpendingLimits,
        jobs: JobsInFlight,
        metrics: Metrics,
        admission: Admission,
        charging: ChargeReport,
        stateful: History,
        background: BackgroundResponses,
        delivering: ResponseWriter,
        follow: Callable[[web.Request, BackgroundJob], Awaitable[web.StreamResponse]],
        explain: Callable[[Order], Mapping[str, object]],
        default_model: str,
        read_timeout_s: float,
    ) -> None:
        """``explain`` says how an order would be routed, and does nothing about it; ``follow`` streams a job's events."""
        self._service = service
        self._limits = limits
        self._jobs = jobs
        self._metrics = metrics
        self._admission = admission
        self._charging = charging
        self._stateful = stateful
        self._background = background
        self._delivering = delivering
        self._follow = follow
        self._explain = explain
        self._default_model = default_model
        self._read_timeout_s = read_timeout_s

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
        exchange = request[CONTEXT]
        exchange.operation = operation
        with self._jobs.admit() as job:
            try:
                lease = await self._admission.job(exchange.caller)
            except Refused as refusal:
                raise map_purchase_error(refusal) from refusal
            place = _Place(self._admission, exchange, job, lease)
            try:
                return await self._answer(request, exchange, kind, place)
            except asyncio.CancelledError:
                self._note_departure(exchange)
                raise
            except ApiError:
                raise
            except InsufficientBalance as error:
                raise await self._charging.refuse(exchange, error) from error
            except Exception as error:
                if isinstance(error, BoughtBefore):
                    self._metrics.joined("lost")
                    exchange.earlier = error.earlier
                failure = map_error(error)
                if failure is None:
                    raise
                await self._charging.say(exchange, failure)
                await self._charging.tell(exchange)
                raise failure from error
            finally:
                await place.leave()

    async def _answer(
        self, request: web.Request, exchange: RequestContext, kind: TaskKind, place: "_Place"
    ) -> web.StreamResponse:
        asked = read_request_headers(request.headers)
        if not asked.route_only:
            check_may_buy(exchange.caller)
        body = await read_body(request, self._read_timeout_s)
        parsed = parse_request(kind, body, self._default_model)
        task = parsed.task
        exchange.model, exchange.stream = task.model, task.stream
        exchange.request_bytes = len(task.body)
        wishes = self._stateful.read(kind, parsed.document)
        order = self._admission.order(
            exchange.caller, task, request_id=exchange.request_id, limit_msat=asked.limit_msat
        )
        place.allowance = await self._admission.count(exchange.caller, task)
        exchange.headers.update(place.allowance.headers)
        if asked.route_only:
            return json_response(self._explain(self._stateful.complete(order, wishes).order))
        if asked.quote_only:
            held = await self._service.quote(self._stateful.complete(order, wishes).order)
            return quote_response(held, self._limits)
        if (undecided := self._service.find_undecided(order, asked.repeat)) is not None:
            await self._service.learn_outcome(undecided)
        if wishes.background:
            return await self._in_background(request, exchange, parsed, order, asked, place)
        answer = self._find(order, asked.repeat)
        if answer is None and asked.quote_id is not None:
            await self._service.check_quote(order, asked.quote_id)
            answer = self._find(order, asked.repeat)
        if answer is None:
            answer = self._start(exchange, order, wishes, asked)
        else:
            self._note_joined(exchange, answer)
        return await self._delivering.deliver(request, exchange, order, answer)

    def _find(self, order: Order, repeat: RepeatKeys) -> ResultBuffer | None:
        try:
            return self._service.find(order, repeat)
        except ResultLost:
            self._metrics.joined("lost")
            raise

    def _start(
        self, exchange: RequestContext, order: Order, wishes: RequestOptions, asked: RequestHeaders
    ) -> ResultBuffer:
        """Begin to buy. Nothing is awaited since the answer was looked for: nobody else has begun meanwhile."""
        completed = self._stateful.complete(order, wishes)
        exchange.request_bytes = len(completed.order.task.body)
        answer = self._service.start(completed.order, asked.repeat, asked.quote_id)
        if plan := self._stateful.plan(order, completed, wishes):
            self._stateful.keep(answer, plan)
        return answer

    async def _in_background(
        self,
        request: web.Request,
        exchange: RequestContext,
        parsed: ParsedRequest,
        order: Order,
        asked: RequestHeaders,
        place: "_Place",
    ) -> web.StreamResponse:
        job = self._background.repeated(order, asked.repeat)
        if job is None:
            job = await self._begin(exchange, parsed, order, asked)
        if job.attended:
            self._note_joined(exchange, job.answer)
        else:
            place.hand_over(self._background, job)
        exchange.answer = job.answer
        if order.task.stream:
            return await self._follow(request, job)
        document, headers = self._background.given(job)
        return web.Response(body=document, headers={**headers, "Content-Type": JSON})

    async def _begin(
        self, exchange: RequestContext, parsed: ParsedRequest, order: Order, asked: RequestHeaders
    ) -> BackgroundJob:
        wishes = self._stateful.read(order.task.kind, parsed.document)
        completed = self._stateful.complete(order, wishes)
        exchange.request_bytes = len(completed.order.task.body)
        plan = self._stateful.plan(order, completed, wishes)
        assert plan is not None  # noqa: S101 - the background is refused where nothing is stored
        return await self._background.begin(
            completed.order, plan, parsed.document, repeat=asked.repeat, quote_name=asked.quote_id
        )

    def _note_joined(self, exchange: RequestContext, answer: ResultBuffer) -> None:
        exchange.joined = True
        self._metrics.joined("replayed" if answer.ended else "running")

    def _note_departure(self, exchange: RequestContext) -> None:
        answer = exchange.answer
        if answer is None or answer.purchase is None:
            phase = "quote"
        else:
            phase = "execute" if answer.head is None else "stream"
        self._metrics.client_disconnect(phase)
        exchange.problem = f"the client went away ({phase})"


class _Place:
    """What a request holds while it is worked on: its place among the jobs, its key's lease, its share of the rates."""

    def __init__(
        self, admission: Admission, exchange: RequestContext, job: Job, lease: Lease
    ) -> None:
        self.allowance = Allowance()
        self._admission = admission
        self._exchange = exchange
        self._job = job
        self._lease = lease
        self._handed_over = False

    def hand_over(self, background: BackgroundResponses, job: BackgroundJob) -> None:
        """Let it last as long as a job in the background."""
        self._handed_over = True
        self._job.hand_over(background.attend(job, self._give_back(job.answer)))

    async def leave(self) -> None:
        """Give everything back, unless it was handed over."""
        if not self._handed_over:
            await self._give_back(None)

    async def _give_back(self, answer: ResultBuffer | None) -> None:
        exchange = self._exchange
        result_bytes = exchange.result_bytes if answer is None else answer.size
        await self._admission.release(
            self._lease, self.allowance, exchange.request_bytes, result_bytes
        )
