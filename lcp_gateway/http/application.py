"""Puts the routes, the edge and the limits together into one aiohttp application."""

from collections.abc import Callable
from dataclasses import dataclass

from aiohttp import hdrs, web

from lcp_gateway.http.authentication import AGENT_TOKEN
from lcp_gateway.http.browser_guard import BrowserGuard
from lcp_gateway.http.errors import PAGE_HEADERS, ApiError
from lcp_gateway.http.gateway.admin import AdminRoutes
from lcp_gateway.http.gateway.api_limits import ApiLimits, Handler
from lcp_gateway.http.gateway.health import HealthRoutes
from lcp_gateway.http.gateway.receipts import ReceiptRoutes
from lcp_gateway.http.gateway.refunds import RefundRoutes
from lcp_gateway.http.gateway.route import RankingRoutes
from lcp_gateway.http.gateway.wallet import WalletRoutes
from lcp_gateway.http.gateway.welcome import WelcomeRoutes
from lcp_gateway.http.middleware import RequestMiddleware
from lcp_gateway.http.openai.chats import ChatRoutes
from lcp_gateway.http.openai.create import CreateRoutes
from lcp_gateway.http.openai.input_tokens import InputTokenRoutes
from lcp_gateway.http.openai.models import ModelRoutes
from lcp_gateway.http.openai.responses import ResponseRoutes
from lcp_gateway.purchase.order import TaskKind

Bounded = Callable[[Handler], Handler]
"""Bounds how often a handler runs at one time."""

AGENT_PREFIX = f"/api/agent/{{{AGENT_TOKEN}}}"
"""Where tools go that can only be told an address: the key is part of it."""


@dataclass(frozen=True, slots=True)
class Routes:
    """The families of routes."""

    create: CreateRoutes
    models: ModelRoutes
    ranking: RankingRoutes
    health: HealthRoutes
    receipts: ReceiptRoutes
    input_tokens: InputTokenRoutes
    responses: ResponseRoutes
    chats: ChatRoutes
    wallet: WalletRoutes | None = None
    admin: AdminRoutes | None = None
    welcome: WelcomeRoutes | None = None
    refunds: RefundRoutes | None = None


def build_application(
    routes: Routes,
    middleware: RequestMiddleware,
    *,
    max_body_bytes: int,
    with_metrics: bool,
    api_limits: ApiLimits,
) -> web.Application:
    """Give the application of the main address; ``with_metrics`` puts /metrics on it too.

    ``api_limits`` bounds what asks the database and is no purchase.
    """
    app = web.Application(middlewares=[middleware.handle], client_max_size=max_body_bytes)
    app.on_response_prepare.append(middleware.on_response_prepare)
    bounded = api_limits.bounded
    for prefix in ("", AGENT_PREFIX):
        _add_openai_routes(app, routes, prefix, bounded)
    if routes.wallet is not None:
        _add_wallet_routes(app, routes.wallet, bounded)
    if routes.admin is not None:
        _add_admin_routes(app, routes.admin, bounded)
    if routes.welcome is not None:
        for path in ("/", "/v1", "/v1/"):
            app.router.add_get(path, routes.welcome.get)
    if routes.refunds is not None:
        _add_refund_routes(app, routes.refunds, bounded)
    app.router.add_get("/healthz", routes.health.healthz)
    app.router.add_get("/readyz", routes.health.readyz)
    if with_metrics:
        app.router.add_get("/metrics", routes.health.metrics)
    return app


def build_metrics_application(health: HealthRoutes, guard: BrowserGuard) -> web.Application:
    """Give the application of the metrics' own address, which asks for no key, and is no place for web pages either."""

    async def metrics(request: web.Request) -> web.Response:
        try:
            guard.check(request)
        except ApiError as error:
            return health.refused(error)
        return await health.metrics(request)

    async def add_headers(_request: web.Request, response: web.StreamResponse) -> None:
        response.headers.update(PAGE_HEADERS)

    app = web.Application()
    app.on_response_prepare.append(add_headers)
    app.router.add_get("/metrics", metrics)
    app.router.add_get("/healthz", health.healthz)
    return app


def _add_openai_routes(app: web.Application, routes: Routes, prefix: str, bounded: Bounded) -> None:
    """Add what clients of OpenAI use; an agent's address may leave the version out."""
    create = routes.create
    handlers = {
        "chat/completions": create.handler(TaskKind.CHAT_COMPLETIONS),
        "responses": create.handler(TaskKind.RESPONSES),
        "completions": create.handler(TaskKind.COMPLETIONS),
        "embeddings": create.handler(TaskKind.EMBEDDINGS),
    }
    for version in ("/v1", "") if prefix else ("/v1",):
        base = prefix + version
        for path, handler in handlers.items():
            app.router.add_route("POST", f"{base}/{path}", handler, expect_handler=_expect)
        _add_stored_routes(app, routes, base)
        app.router.add_get(f"{base}/models", routes.models.list)
        app.router.add_get(f"{base}/models/{{model:.+}}", routes.models.get)
        app.router.add_get(f"{base}/receipts/{{job_id}}", bounded(routes.receipts.get))
    app.router.add_post(f"{prefix}/api/models/route", routes.ranking.rank)


def _add_stored_routes(app: web.Application, routes: Routes, base: str) -> None:
    router, responses, chats = app.router, routes.responses, routes.chats
    # Before the routes of an id, which this would be.
    router.add_post(f"{base}/responses/input_tokens", routes.input_tokens.count)
    # OpenAI has it, and this gateway has not: else it would pass for an id that takes no POST.
    router.add_post(f"{base}/responses/compact", _no_such_route)
    router.add_get(f"{base}/responses/{{response_id}}", responses.get)
    router.add_delete(f"{base}/responses/{{response_id}}", responses.delete)
    router.add_post(f"{base}/responses/{{response_id}}/cancel", responses.cancel)
    router.add_get(f"{base}/responses/{{response_id}}/input_items", responses.input_items)
    router.add_get(f"{base}/chat/completions", chats.list)
    router.add_get(f"{base}/chat/completions/{{completion_id}}", chats.get)
    router.add_post(f"{base}/chat/completions/{{completion_id}}", chats.update)
    router.add_delete(f"{base}/chat/completions/{{completion_id}}", chats.delete)
    router.add_get(f"{base}/chat/completions/{{completion_id}}/messages", chats.messages)


def _add_wallet_routes(app: web.Application, wallet: WalletRoutes, bounded: Bounded) -> None:
    app.router.add_get("/api/wallet", bounded(wallet.balance))
    app.router.add_post("/api/wallet/topups", wallet.top_up)
    app.router.add_get("/api/wallet/topups", bounded(wallet.topups))
    app.router.add_get("/api/wallet/topups/{id}", bounded(wallet.topup))
    app.router.add_post("/api/wallet/topups/{id}/demo-payment", bounded(wallet.pay_for_demo))
    app.router.add_get("/api/wallet/topups/{id}/qr.{form:svg|png}", bounded(wallet.picture))
    app.router.add_get("/api/wallet/transactions", bounded(wallet.transactions))


def _add_refund_routes(app: web.Application, refunds: RefundRoutes, bounded: Bounded) -> None:
    app.router.add_get("/api/wallet/refunds", bounded(refunds.of_customer))
    app.router.add_get("/api/admin/refunds", bounded(refunds.list_refunds))
    app.router.add_get("/api/admin/refunds/{id}", bounded(refunds.get_refund))
    app.router.add_post("/api/admin/refunds/{id}", bounded(refunds.decide))


def _add_admin_routes(app: web.Application, admin: AdminRoutes, bounded: Bounded) -> None:
    base = "/api/admin"
    app.router.add_post(f"{base}/accounts", bounded(admin.create_account))
    app.router.add_get(f"{base}/accounts", bounded(admin.list_accounts))
    app.router.add_get(f"{base}/accounts/{{id}}", bounded(admin.get_account))
    app.router.add_patch(f"{base}/accounts/{{id}}", bounded(admin.rename_account))
    app.router.add_delete(f"{base}/accounts/{{id}}", bounded(admin.delete_account))
    app.router.add_post(f"{base}/accounts/{{id}}/adjustments", bounded(admin.adjust))
    app.router.add_get(f"{base}/accounts/{{id}}/statement", bounded(admin.statement))
    app.router.add_post(f"{base}/accounts/{{id}}/keys", bounded(admin.create_key))
    app.router.add_get(f"{base}/accounts/{{id}}/keys", bounded(admin.list_keys))
    app.router.add_get(f"{base}/keys", bounded(admin.list_keys))
    app.router.add_get(f"{base}/keys/{{id}}", bounded(admin.get_key))
    app.router.add_delete(f"{base}/keys/{{id}}", bounded(admin.revoke_key))
    app.router.add_get(f"{base}/audit", bounded(admin.audit))
    app.router.add_get(f"{base}/log", bounded(admin.log))


async def _no_such_route(_request: web.Request) -> web.Response:
    raise web.HTTPNotFound


async def _expect(request: web.Request) -> None:
    """Answer ``Expect: 100-continue``, unless the body that it announces is too large anyway."""
    expected = request.headers.get(hdrs.EXPECT, "")
    if expected.lower() != "100-continue":
        raise web.HTTPExpectationFailed
    announced = request.content_length or 0
    if request.version >= (1, 1) and announced <= request.client_max_size:
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        # Interim bytes are no part of the answer whose size aiohttp watches.
        request.writer.output_size = 0
