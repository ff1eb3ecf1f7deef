"""The route table: which handler serves which path, in one aiohttp application."""

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

from aiohttp import hdrs, web

from lcp_gateway.http.authentication import AGENT_TOKEN
from lcp_gateway.http.console.assets import PREFIX, ConsolePages
from lcp_gateway.http.console.description import DescriptionRoutes
from lcp_gateway.http.console.registration import RegistrationRoutes
from lcp_gateway.http.console.sessions import SessionRoutes
from lcp_gateway.http.gateway.account import AccountRoutes
from lcp_gateway.http.gateway.admin import AdminRoutes
from lcp_gateway.http.gateway.api_limits import ApiLimits
from lcp_gateway.http.gateway.events import EventRoutes
from lcp_gateway.http.gateway.health import HealthRoutes
from lcp_gateway.http.gateway.invites import InviteRoutes
from lcp_gateway.http.gateway.keys import KeyRoutes
from lcp_gateway.http.gateway.node_connect import NODE_CONNECT, NodeConnectRoutes
from lcp_gateway.http.gateway.nodes import NodeRoutes
from lcp_gateway.http.gateway.overview import OverviewRoutes
from lcp_gateway.http.gateway.providers import ProviderRoutes
from lcp_gateway.http.gateway.purchases import PurchaseRoutes
from lcp_gateway.http.gateway.refunds import RefundRoutes
from lcp_gateway.http.gateway.route import RankingRoutes
from lcp_gateway.http.gateway.usage import BudgetRoutes, UsageRoutes
from lcp_gateway.http.gateway.wallet import WalletRoutes
from lcp_gateway.http.gateway.welcome import WelcomeRoutes
from lcp_gateway.http.gateway.withdrawals import WithdrawalRoutes
from lcp_gateway.http.middleware import RequestMiddleware
from lcp_gateway.http.openai.chats import ChatRoutes
from lcp_gateway.http.openai.create import CreateRoutes
from lcp_gateway.http.openai.input_tokens import InputTokenRoutes
from lcp_gateway.http.openai.models import ModelRoutes
from lcp_gateway.http.openai.responses import ResponseRoutes
from lcp_gateway.http.openapi.document import ApiDescription
from lcp_gateway.purchase.order import TaskKind

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Table = Iterable[tuple[str, str, Handler]]
"""Methods, paths and handlers."""

AGENT_PREFIX = f"/api/agent/{{{AGENT_TOKEN}}}"
"""For tools that can be configured with a URL only: the key is part of it."""


@dataclass(frozen=True, slots=True)
class ConsoleRoutes:
    """The console's handlers; those of sign-in and of the page are None where it is not served."""

    pages: ConsolePages | None = None
    description: DescriptionRoutes | None = None
    sessions: SessionRoutes | None = None
    registration: RegistrationRoutes | None = None
    invites: InviteRoutes | None = None
    account: AccountRoutes | None = None


@dataclass(frozen=True, slots=True)
class Routes:
    """The handlers, by subject; None where the settings leave them out."""

    create: CreateRoutes
    models: ModelRoutes
    ranking: RankingRoutes
    health: HealthRoutes
    purchases: PurchaseRoutes
    input_tokens: InputTokenRoutes
    responses: ResponseRoutes
    chats: ChatRoutes
    wallet: WalletRoutes | None = None
    admin: AdminRoutes | None = None
    keys: KeyRoutes | None = None
    usage: UsageRoutes | None = None
    budgets: BudgetRoutes | None = None
    providers: ProviderRoutes | None = None
    overview: OverviewRoutes | None = None
    events: EventRoutes | None = None
    welcome: WelcomeRoutes | None = None
    refunds: RefundRoutes | None = None
    withdrawals: WithdrawalRoutes | None = None
    node_connect: NodeConnectRoutes | None = None
    nodes: NodeRoutes | None = None
    console: ConsoleRoutes = ConsoleRoutes()


def build_application(
    routes: Routes, middleware: RequestMiddleware, *, max_body_bytes: int, with_metrics: bool, api_limits: ApiLimits
) -> web.Application:
    """Return the application of the main address; ``with_metrics`` adds /metrics to it.

    ``api_limits`` bounds the routes that use the database and buy nothing.
    """
    app = web.Application(middlewares=[middleware.handle], client_max_size=max_body_bytes)
    app.on_response_prepare.append(middleware.on_response_prepare)
    for prefix in ("", AGENT_PREFIX):
        _add_openai_routes(app, routes, prefix, api_limits)
    app.router.add_get("/api/models", routes.models.list_with_badges)
    _add_books(app, routes)
    # Bounded by the handlers themselves, once they have read the body.
    if routes.wallet is not None:
        app.router.add_post("/api/wallet/topups", routes.wallet.top_up)
        # Bounded by each use of the database.
        app.router.add_get("/api/wallet/transactions", routes.wallet.transactions)
    if routes.withdrawals is not None:
        app.router.add_post("/api/wallet/withdrawals", routes.withdrawals.create)
    if routes.console.registration is not None:
        app.router.add_post("/api/register", routes.console.registration.register)
    for method, path, handler in _bounded_table(routes):
        _add(app, method, path, api_limits.bounded(handler))
    _add_pages(app, routes)
    _add_connections(app, routes)
    if with_metrics:
        app.router.add_get("/metrics", routes.health.expose_metrics)
    ApiDescription().add_to(app)
    return app


def _add_connections(app: web.Application, routes: Routes) -> None:
    """Add what other machines ask without a key: monitoring, and nodes, which have tokens of their own."""
    app.router.add_get("/healthz", routes.health.healthz)
    app.router.add_get("/readyz", routes.health.readyz)
    if routes.node_connect is not None:
        app.router.add_get(NODE_CONNECT, routes.node_connect.connect, allow_head=False)


def _add_openai_routes(app: web.Application, routes: Routes, prefix: str, api_limits: ApiLimits) -> None:
    """Add the routes that clients of OpenAI use; an agent's address may leave the version out."""
    create, responses, chats = routes.create, routes.responses, routes.chats
    buying = {
        "chat/completions": create.handler(TaskKind.CHAT_COMPLETIONS),
        "responses": create.handler(TaskKind.RESPONSES),
        "completions": create.handler(TaskKind.COMPLETIONS),
        "embeddings": create.handler(TaskKind.EMBEDDINGS),
    }
    receipt = api_limits.bounded(routes.purchases.receipt)
    table: Table = (
        # Before the routes with an id, which would match this path.
        ("POST", "responses/input_tokens", routes.input_tokens.count),
        # A route of OpenAI that this gateway lacks: its path would match that of an id, which takes no POST.
        ("POST", "responses/compact", _no_such_route),
        ("GET", "responses/{response_id}", responses.get),
        ("DELETE", "responses/{response_id}", responses.delete),
        ("POST", "responses/{response_id}/cancel", responses.cancel),
        ("GET", "responses/{response_id}/input_items", responses.input_items),
        ("GET", "chat/completions", chats.list),
        ("GET", "chat/completions/{completion_id}", chats.get),
        ("POST", "chat/completions/{completion_id}", chats.update),
        ("DELETE", "chat/completions/{completion_id}", chats.delete),
        ("GET", "chat/completions/{completion_id}/messages", chats.messages),
        ("GET", "models", routes.models.list),
        ("GET", "models/{model:.+}", routes.models.get),
        ("GET", "receipts/{job_id}", receipt),
    )
    for version in ("/v1", "") if prefix else ("/v1",):
        for path, handler in buying.items():
            app.router.add_route("POST", f"{prefix}{version}/{path}", handler, expect_handler=_expect)
        for method, path, handler in table:
            _add(app, method, f"{prefix}{version}/{path}", handler)
    app.router.add_post(f"{prefix}/api/models/route", routes.ranking.rank)


def _add_pages(app: web.Application, routes: Routes) -> None:
    """Add what a person opens in a browser."""
    if routes.welcome is not None:
        for path in ("/", "/v1", "/v1/"):
            app.router.add_get(path, routes.welcome.get)
    pages, sessions = routes.console.pages, routes.console.sessions
    # Where the console is off they are 404 rather than 401: they need no credential.
    app.router.add_get("/console", _no_such_route if pages is None else pages.redirect)
    app.router.add_get("/console/", _no_such_route if pages is None else pages.page)
    app.router.add_get(f"{PREFIX}/{{version}}/{{path:.+}}", _no_such_route if pages is None else pages.asset)
    if sessions is None:
        app.router.add_route("*", "/api/session", _no_such_route)
    else:
        app.router.add_post("/api/session", sessions.sign_in)


def _add_books(app: web.Application, routes: Routes) -> None:
    """Add the routes that hold a place for each use of the database, rather than as long as a slow reader takes."""
    app.router.add_get("/api/purchases", routes.purchases.list)
    if routes.usage is not None:
        app.router.add_get("/api/usage", routes.usage.get)
    if routes.events is not None:
        # A HEAD would stay open, and have nothing to read.
        app.router.add_get("/api/events", routes.events.stream, allow_head=False)


def _bounded_table(routes: Routes) -> Table:
    """Yield the routes that use the database and buy nothing."""
    yield "GET", "/api/purchases/{job_id}", routes.purchases.get
    yield "POST", "/api/admin/purchases/{job_id}/resolution", routes.purchases.resolve
    if routes.budgets is not None:
        yield "GET", "/api/budgets", routes.budgets.list
    if routes.providers is not None:
        yield "GET", "/api/providers", routes.providers.list
    if routes.overview is not None:
        yield "GET", "/api/admin/overview", routes.overview.get
    if (nodes := routes.nodes) is not None:
        yield "GET", "/api/nodes", nodes.of_owner
        yield "GET", "/api/nodes/{id}/earnings", nodes.earnings
        yield "GET", "/api/admin/nodes", nodes.list_all
        yield "POST", "/api/admin/nodes/{id}", nodes.change
    yield from _console_table(routes.console)
    yield from _money_table(routes)
    yield from _admin_table(routes)


def _money_table(routes: Routes) -> Table:
    if (wallet := routes.wallet) is not None:
        yield "GET", "/api/wallet", wallet.balance
        yield "GET", "/api/wallet/topups", wallet.topups
        yield "GET", "/api/wallet/topups/{id}", wallet.topup
        yield "POST", "/api/wallet/topups/{id}/demo-payment", wallet.demo_payment
        yield "GET", "/api/wallet/topups/{id}/qr.{form:svg|png}", wallet.qr_code
    if (withdrawals := routes.withdrawals) is not None:
        yield "GET", "/api/wallet/withdrawals", withdrawals.of_customer
        yield "GET", "/api/wallet/withdrawals/{id}", withdrawals.get_own
        yield "DELETE", "/api/wallet/withdrawals/{id}", withdrawals.cancel
        yield "POST", "/api/wallet/demo-invoice", withdrawals.demo_invoice
        yield "GET", "/api/admin/withdrawals", withdrawals.list_all
        yield "GET", "/api/admin/withdrawals/{id}", withdrawals.get
        yield "POST", "/api/admin/withdrawals/{id}", withdrawals.decide
        yield "POST", "/api/admin/accounts/{id}/withdrawals", withdrawals.freeze
    if (refunds := routes.refunds) is not None:
        yield "GET", "/api/wallet/refunds", refunds.of_customer
        yield "GET", "/api/admin/refunds", refunds.list_refunds
        yield "GET", "/api/admin/refunds/{id}", refunds.get_refund
        yield "POST", "/api/admin/refunds/{id}", refunds.decide


def _admin_table(routes: Routes) -> Table:
    if (admin := routes.admin) is not None:
        yield "POST", "/api/admin/accounts", admin.create_account
        yield "GET", "/api/admin/accounts", admin.list_accounts
        yield "GET", "/api/admin/accounts/{id}", admin.get_account
        yield "PATCH", "/api/admin/accounts/{id}", admin.rename_account
        yield "DELETE", "/api/admin/accounts/{id}", admin.delete_account
        yield "POST", "/api/admin/accounts/{id}/adjustments", admin.adjust
        yield "GET", "/api/admin/accounts/{id}/statement", admin.statement
        yield "GET", "/api/admin/audit", admin.audit
        yield "GET", "/api/admin/log", admin.log
    if (keys := routes.keys) is not None:
        yield "POST", "/api/admin/accounts/{id}/keys", keys.create
        yield "GET", "/api/admin/accounts/{id}/keys", keys.list
        yield "GET", "/api/admin/keys", keys.list_all
        yield "GET", "/api/admin/keys/{id}", keys.get
        yield "PATCH", "/api/admin/keys/{id}", keys.change
        yield "DELETE", "/api/admin/keys/{id}", keys.revoke
        yield "POST", "/api/account/keys", keys.create_own
        yield "GET", "/api/account/keys", keys.list_own
        yield "GET", "/api/account/keys/{id}", keys.get_own
        yield "PATCH", "/api/account/keys/{id}", keys.change_own
        yield "DELETE", "/api/account/keys/{id}", keys.revoke_own


def _console_table(console: ConsoleRoutes) -> Table:
    if console.description is not None:
        yield "GET", "/api/console", console.description.get
    if (sessions := console.sessions) is not None:
        yield "GET", "/api/session", sessions.get
        yield "DELETE", "/api/session", sessions.sign_out
        yield "DELETE", "/api/sessions", sessions.sign_out_everywhere
    if (account := console.account) is not None:
        yield "GET", "/api/account", account.get
        yield "PATCH", "/api/account", account.rename
        yield "DELETE", "/api/account", account.delete
    if (invites := console.invites) is not None:
        yield "POST", "/api/admin/invites", invites.create
        yield "GET", "/api/admin/invites", invites.list
        yield "GET", "/api/admin/invites/{id}", invites.get
        yield "DELETE", "/api/admin/invites/{id}", invites.revoke


def _add(app: web.Application, method: str, path: str, handler: Handler) -> None:
    # aiohttp's add_get answers HEAD as well.
    if method == "GET":
        app.router.add_get(path, handler)
    else:
        app.router.add_route(method, path, handler)


async def _no_such_route(_request: web.Request) -> web.Response:
    raise web.HTTPNotFound


async def _expect(request: web.Request) -> None:
    """Answer ``Expect: 100-continue``, unless the announced body is too large anyway."""
    expected = request.headers.get(hdrs.EXPECT, "")
    if expected.lower() != "100-continue":
        raise web.HTTPExpectationFailed
    announced = request.content_length or 0
    if request.version >= (1, 1) and announced <= request.client_max_size:
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        # Interim bytes are no part of the response whose size aiohttp tracks.
        request.writer.output_size = 0
