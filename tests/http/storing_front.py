"""A gateway that stores, with scripted providers: real routes, middleware and jobs."""

import asyncio
import json
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from types import SimpleNamespace

from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from lcp_gateway.accounts.callers import Caller
from lcp_gateway.accounts.limits.concurrency import ConcurrencyLimits, MemoryLeases
from lcp_gateway.http.application import Routes, build_application
from lcp_gateway.http.authentication import ANONYMOUS
from lcp_gateway.http.browser_guard import BrowserGuard
from lcp_gateway.http.cors import Cors
from lcp_gateway.http.errors import ApiError
from lcp_gateway.http.gateway.api_limits import ApiLimits
from lcp_gateway.http.middleware import RequestMiddleware
from lcp_gateway.http.openai.admission import Admission, JobsInFlight
from lcp_gateway.http.openai.background import BackgroundResponses
from lcp_gateway.http.openai.charges import ChargeReport
from lcp_gateway.http.openai.chats import ChatRoutes
from lcp_gateway.http.openai.create import CreateRoutes
from lcp_gateway.http.openai.history import History
from lcp_gateway.http.openai.payment_required import PaymentRequired
from lcp_gateway.http.openai.response import ResponseWriter
from lcp_gateway.http.openai.responses import ResponseRoutes
from lcp_gateway.purchase.purchase import InterruptReason
from lcp_gateway.responses.recording import Recorder
from lcp_gateway.responses.store import ResponseStore, StoreLimits
from lcp_gateway.responses.stored_items import MemoryItems
from lcp_gateway.store.database.engines import DatabaseUnavailable
from lcp_gateway.telemetry.logs import get_logger
from lcp_gateway.telemetry.metrics import Metrics
from tests.support.scripted_peers import World, world

ALICE, BOB = "alice", "bob"
LIMITS = StoreLimits(items_per_owner=100, bytes_in_all=10**7, keep_s=1e6)


def response(response_id: str | None = "resp_1", text: str = "hello", **fields) -> bytes:
    """Return a response as a provider sends it."""
    part = {"type": "output_text", "text": text, "annotations": []}
    message = {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed", "content": [part]}
    named = {} if response_id is None else {"id": response_id}
    document = {"object": "response", "created_at": 7, "status": "completed", "model": "m"}
    more = {"parallel_tool_calls": True, "tool_choice": "auto", "tools": [], **fields}
    return json.dumps({**named, **document, **more, "output": [message]}).encode()


def events(response_id: str = "resp_1", text: str = "hello") -> list[bytes]:
    """Return the events of a streamed response."""
    document = json.loads(response(response_id, text))
    begun = {**document, "status": "in_progress", "output": []}
    values = [
        {"type": "response.created", "response": begun},
        {
            "type": "response.output_text.delta",
            "item_id": "msg_1",
            "output_index": 0,
            "content_index": 0,
            "delta": text,
        },
        {"type": "response.completed", "response": document},
    ]
    return [
        b"event: %b\ndata: %b\n\n" % (value["type"].encode(), json.dumps({**value, "sequence_number": place}).encode())
        for place, value in enumerate(values)
    ]  # fmt: skip


def _parsed(body: bytes) -> object:
    try:
        return json.loads(body)
    except ValueError:
        return None


class NameAuthenticator:
    """Admits the two names as keys."""

    async def admit(self, request: web.Request) -> Caller:
        name = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if name not in {ALICE, BOB}:
            raise ApiError(401, "unknown key", code="invalid_api_key")
        return Caller(f"key_{name}", None, ANONYMOUS.rules)


@dataclass
class JobRows:
    """The table of background jobs, which can raise errors. ``left`` are the jobs of a gateway that ended."""

    rows: dict[str, str] = field(default_factory=dict)
    left: dict[tuple[str, str], SimpleNamespace] = field(default_factory=dict)
    error: Exception | None = None
    gate: asyncio.Event | None = None
    asked: list[str] = field(default_factory=list)

    async def record(self, job_id, *, key_id, model, at, repeat=None):
        await (self.gate.wait() if self.gate is not None else asyncio.sleep(0))
        if self.error is not None:
            raise self.error
        self.rows[job_id] = key_id

    async def forget(self, job_id):
        await asyncio.sleep(0)
        if isinstance(self.error, DatabaseUnavailable):
            raise self.error
        self.rows.pop(job_id, None)
        for key in [key for key in self.left if key[1] == job_id]:
            del self.left[key]

    async def find(self, job_id, key_id):
        self.asked.append(job_id)
        await asyncio.sleep(0)
        if isinstance(self.error, DatabaseUnavailable):
            raise self.error
        return self.left.get((key_id, job_id))

    def leave(self, job_id, key_id="key_alice", *, elsewhere=False, **money):
        """Add a job of another process."""
        left = SimpleNamespace(model="m", created_at=datetime(2026, 11, 21, tzinfo=UTC), elsewhere=elsewhere, money=money)  # fmt: skip
        self.left[key_id, job_id] = left


@dataclass
class Front:
    """A client of the gateway, with access to the parts behind it."""

    client: TestClient
    world: World
    store: ResponseStore
    jobs: JobsInFlight
    leases: MemoryLeases
    repository: JobRows | None
    background: BackgroundResponses
    metrics: Metrics
    complaints: list = field(default_factory=list)
    followed: list[str] = field(default_factory=list)
    """The paths of the GET requests that stream a job, in the order in which the gateway began to follow it."""

    async def ask(self, method: str, path: str, key: str = ALICE, **more):
        headers = {"Authorization": f"Bearer {key}", **more.pop("headers", {})}
        async with self.client.request(method, path, headers=headers, **more) as got:
            body = await got.read()
            document = _parsed(body)
            error = document.get("error") if isinstance(document, dict) else None
            return SimpleNamespace(
                status=got.status,
                headers=got.headers,
                body=body,
                document=document,
                payment=got.headers["X-Lcp-Payment"],
                code=(error or {}).get("code"),
                param=(error or {}).get("param"),
            )

    async def get(self, path: str, key: str = ALICE, **more):
        return await self.ask("GET", path, key, **more)

    async def follow(self, path: str) -> "asyncio.Task[SimpleNamespace]":
        """Request the stream of a job that runs; return the request once the gateway follows the job."""
        before = self.followed.count(path)
        asked = asyncio.ensure_future(self.get(path))
        async with asyncio.timeout(60):
            while self.followed.count(path) == before:
                await asyncio.sleep(0.001)
        return asked

    async def create(self, key: str = ALICE, *, headers=None, **fields):
        """Request a response."""
        document = {"model": "m", "input": "hi", **fields}
        return await self.ask("POST", "/v1/responses", key, json=document, headers=headers or {})

    async def chat(self, key: str = ALICE, **fields):
        document = {"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}
        return await self.ask("POST", "/v1/chat/completions", key, json=document)

    async def bought(self, body: bytes | list[bytes], asking):
        """Send a request, let a provider answer it with this result, and return the response."""
        at = len(self.world.upstream.works)
        asked = asyncio.ensure_future(asking)
        work = await self.work(at)
        work.deliver(body) if isinstance(body, bytes) else work.stream(*body)
        return await asked

    async def work(self, at: int = 0):
        """Wait for an execute call."""
        async with asyncio.timeout(60):
            while len(self.world.upstream.works) <= at:
                await asyncio.sleep(0.001)
        return self.world.upstream.works[at]

    async def idle(self) -> None:
        """Wait until nothing runs, and check that every admission was released."""
        async with asyncio.timeout(60):
            while len(self.jobs) or len(self.world.service):
                await asyncio.sleep(0.001)
            await asyncio.sleep(0.005)
        assert not self.leases._running
        assert self.complaints == []

    @property
    def payments(self) -> int:
        """Return how many pay calls were made."""
        return len(self.world.upstream.works)

    def sent(self, at: int = -1) -> bytes:
        """Return the body that a provider got."""
        return self.world.upstream.tasks[at].body

    def metric(self, name: str, **labels: str) -> float:
        return sum(
            sample.value
            for family in self.metrics.registry.collect()
            for sample in family.samples
            if sample.name == f"lcpgateway_{name}" and labels.items() <= sample.labels.items()
        )


@asynccontextmanager
async def storing_front(
    *,
    limits: StoreLimits = LIMITS,
    with_repository: bool = True,
    at_once: int = 0,
    per_key: int = 0,
    max_body_bytes: int = 1_000_000,
    context_tokens: int = 0,
    default_model: str = "",
    heartbeat_s: float = 0.0,
    share=None,
    **worldly,
):
    """``share`` makes the store of several processes from that of this one."""
    log, metrics, w = get_logger("test"), Metrics(), world(**worldly)
    _remember_tasks(w)
    complaints: list = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, it: complaints.append(it))
    store, jobs, leases = ResponseStore(limits), JobsInFlight(at_once, metrics), MemoryLeases()
    shared = None if share is None else share(store)
    items = shared or MemoryItems(store)
    recorder = Recorder(store, now=lambda: 7.0, on_lost=metrics.not_stored, shared=shared)
    repository = JobRows() if with_repository else None
    background = BackgroundResponses(
        service=w.service,
        store=store,
        recorder=recorder,
        repository=repository,
        is_ending=lambda: jobs.draining,
        on_change=metrics.background_jobs,
        log=log,
        shared=shared,
    )
    admission = Admission(None, ConcurrencyLimits(leases, default=per_key), lambda name: name)
    charges = ChargeReport(None, log)
    response_routes = ResponseRoutes(items, background, heartbeat_s=heartbeat_s, relay_limit_s=60)
    create = CreateRoutes(
        service=w.service,
        limits=w.limits,
        jobs=jobs,
        metrics=metrics,
        admission=admission,
        charges=charges,
        payment_required=PaymentRequired(None, log),
        history=History(
            items,
            recorder,
            max_body_bytes=max_body_bytes,
            context_tokens=lambda _model: context_tokens,
            estimate=lambda document: len(json.dumps(document)),
        ),
        background=background,
        writer=ResponseWriter(
            service=w.service, metrics=metrics, charges=charges, heartbeat_s=heartbeat_s, relay_limit_s=60
        ),
        follow=response_routes.follow,
        explain=lambda order: {"body": order.task.body.decode()},
        default_model=default_model,
        read_timeout_s=5,
    )  # fmt: skip

    async def nothing(_request: web.Request) -> web.Response:
        return web.Response()

    names = ("list", "list_with_badges", "get", "rank", "healthz", "readyz", "metrics", "count", "receipt", "resolve")
    others = SimpleNamespace(**dict.fromkeys(names, nothing))
    routes = Routes(
        create=create,
        models=others,
        ranking=others,
        health=others,
        purchases=others,
        input_tokens=others,
        responses=response_routes,
        chats=ChatRoutes(items, read_timeout_s=5),
    )
    middleware = RequestMiddleware(
        authenticator=NameAuthenticator(),
        cors=Cors([]),
        guard=BrowserGuard(Cors([])),
        metrics=metrics,
        log=log,
        open_paths=frozenset(),
        max_header_bytes=16_384,
        unavailable=(DatabaseUnavailable,),
    )
    app = build_application(
        routes, middleware, max_body_bytes=max_body_bytes, with_metrics=False, api_limits=ApiLimits(8, 32)
    )
    server = TestServer(app, handler_cancellation=True)
    async with TestClient(server) as client:
        front = Front(client, w, store, jobs, leases, repository, background, metrics, complaints)
        _record_follows(response_routes, front.followed)
        try:
            yield front
        finally:
            w.service.interrupt_all(InterruptReason.ENDED)
            await w.service.wait_idle()


def _record_follows(routes: ResponseRoutes, followed: list[str]) -> None:
    """Record the paths of the GET requests that follow a job."""
    follow = routes.follow

    async def recorded(request, *arguments):
        if request.method == "GET":
            followed.append(request.path_qs)
        return await follow(request, *arguments)

    routes.follow = recorded


def _remember_tasks(w: World) -> None:
    """Record the tasks that the upstream is asked to execute."""
    upstream = w.upstream
    upstream.tasks = []
    execute, stream = upstream.execute, upstream.execute_stream

    async def executed(quote, task, timeout_s):
        upstream.tasks.append(task)
        return await execute(quote, task, timeout_s)

    async def streamed(quote, task, timeout_s):
        upstream.tasks.append(replace(task))
        async for event in stream(quote, task, timeout_s):
            yield event

    upstream.execute, upstream.execute_stream = executed, streamed
