"""A gateway with accounts: real authentication, routes and database, and a handler that buys nothing."""

import time
from collections.abc import Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from types import MappingProxyType, SimpleNamespace

from aiohttp import DummyCookieJar, web
from aiohttp.test_utils import TestClient, TestServer

from lcp_gateway.accounts.callers import KeyRules
from lcp_gateway.accounts.key_sync import KeySync
from lcp_gateway.accounts.keys import KeyCache
from lcp_gateway.accounts.l402 import Issuer
from lcp_gateway.accounts.limits.addresses import AddressLimits
from lcp_gateway.accounts.nodes import NodeTermsCache
from lcp_gateway.app.gateway import OPEN_PATHS
from lcp_gateway.app.wiring.console import Console
from lcp_gateway.app.wiring.journal import write_receipt
from lcp_gateway.config import Settings
from lcp_gateway.http.application import Routes, build_application
from lcp_gateway.http.authentication import ANONYMOUS, AccountAuthenticator
from lcp_gateway.http.browser_guard import BrowserGuard
from lcp_gateway.http.context import CONTEXT
from lcp_gateway.http.cors import Cors
from lcp_gateway.http.gateway.admin import AdminRoutes
from lcp_gateway.http.gateway.api_limits import ApiLimits
from lcp_gateway.http.gateway.events import EventHub, EventRoutes, Surroundings
from lcp_gateway.http.gateway.keys import KeyRoutes
from lcp_gateway.http.gateway.l402 import L402Routes
from lcp_gateway.http.gateway.nodes import NodeRoutes
from lcp_gateway.http.gateway.overview import OverviewRoutes, OverviewSources
from lcp_gateway.http.gateway.providers import ProviderRoutes, ProviderSources
from lcp_gateway.http.gateway.purchases import PurchaseRoutes
from lcp_gateway.http.gateway.refunds import RefundRoutes
from lcp_gateway.http.gateway.usage import BudgetRoutes, UsageRoutes
from lcp_gateway.http.gateway.wallet import WalletRoutes
from lcp_gateway.http.middleware import RequestMiddleware
from lcp_gateway.http.openapi.document import PATH as API_DESCRIPTION
from lcp_gateway.purchase.limits import SpendingLimits
from lcp_gateway.purchase.money import RefundLimits
from lcp_gateway.purchase.order import TaskKind
from lcp_gateway.purchase.quote import ProviderSource
from lcp_gateway.routing.catalog import Catalog, Provider
from lcp_gateway.routing.measurements import Measurements
from lcp_gateway.routing.peer_trust import PeerTrust, TrustRules
from lcp_gateway.store.accounts.nodes import Nodes
from lcp_gateway.store.accounts.refunds import Refunds
from lcp_gateway.store.database.engines import DatabaseUnavailable
from lcp_gateway.store.journal.changes import ChangedRows
from lcp_gateway.store.journal.queries import Books
from lcp_gateway.store.journal.resolutions import ManualResolutions
from lcp_gateway.telemetry.logs import get_logger
from lcp_gateway.telemetry.metrics import Metrics
from tests.http.described import DescribedApi
from tests.store.journals import PEER

ADMIN_KEY = "boss-of-it-all"
STATIC_KEY = "the-operators-own"
SECRET = b"s" * 32
CLAW = "node:pet"
CATALOG = Catalog(
    (
        Provider(PEER, "", 2, {TaskKind.CHAT_COMPLETIONS: ("m", "n")}),
        Provider(CLAW, "", 2, {TaskKind.CHAT_COMPLETIONS: ("claw",)}, source=ProviderSource.NODE, list_price_msat=0),
    ),
    0.0,
)
NODES = {"pet": SimpleNamespace(up=True, problem=""), "away": SimpleNamespace(up=False, problem="connection refused")}
PAGE = "https://page.example"


SHOWN = b'{"key_id": '
"""Begins what ``show_caller`` returns."""


async def show_caller(request: web.Request) -> web.Response:
    """Return the authenticated caller."""
    caller = request[CONTEXT].caller
    return web.json_response({"key_id": caller.key_id, "account_id": caller.account_id})


async def report_health() -> dict[str, object]:
    """Return the report of a gateway that is ready."""
    return {"status": "ready", "reasons": [], "jobs_in_flight": 0}


def within_the_hour() -> Callable[[], datetime]:
    """Return a clock that stops at the end of the present hour: what a key shows of its budgets stays comparable."""
    last = datetime.now(UTC).replace(minute=59, second=59, microsecond=999_999)
    return lambda: min(datetime.now(UTC), last)


def path_is_odd(path) -> bool:
    """Return whether a path is written as no client that goes by the description would."""
    return not isinstance(path, str) or "%" in path


class Front:
    """A client of a gateway with accounts."""

    def __init__(self, bank, client: TestClient, l402: L402Routes) -> None:
        self.bank = bank
        self.client = client
        self.l402 = l402
        # Each response is held against the description of the routes, where the validator is installed.
        self.api = DescribedApi(client.server.app) if find_spec("jsonschema_rs") else None

    async def ask(self, method: str, path: str, key: str | None = ADMIN_KEY, **more):
        """Send a request; return the response with its status, its headers and its JSON document."""
        headers = dict(more.pop("headers", {}))
        if key is not None:
            headers.setdefault("Authorization", f"Bearer {key}")
        async with self.client.request(method, path, headers=headers, **more) as response:
            body = await response.read()
            if self.api is not None and not path_is_odd(path) and not body.startswith(SHOWN):
                self.api.check(method, str(path), response.status, response.content_type, body)
            is_json = response.content_type == "application/json"
            return SimpleNamespace(
                status=response.status,
                headers=response.headers,
                body=body,
                document=await response.json() if is_json else None,
                code=(await response.json()).get("error", {}).get("code") if is_json else None,
            )

    async def key(self, account_id: str, **rules) -> str:
        """Create a key; return its text."""
        made = await self.bank.keys.create(
            account_id, name="k", actor="test", at=datetime.now(UTC), rules=KeyRules(**rules)
        )
        await self.refresh()
        return made.text


@asynccontextmanager
async def front(
    bank,
    *,
    with_l402: bool = True,
    l402_msat: int = 50_000,
    l402_per_minute: int = 100,
    api_per_caller: int = 8,
    api_in_all: int = 32,
    pay_for_demo=None,
    ping_s: float = 15.0,
    settings: Settings | None = None,
    spending=MappingProxyType({}),
    **rules,
):
    """``settings`` are those of the console; without them it is not served."""
    log, metrics = get_logger("test"), Metrics()
    books, resolved = Books(bank.database), []
    around = Surroundings([], 2, 1)
    hub = EventHub(
        ChangedRows(bank.database),
        key_names=bank.keys.names,
        surroundings=lambda: found.around,
        is_ending=lambda: False,
        unavailable=(DatabaseUnavailable,),
    )
    key_sync = KeySync(
        bank.keys, KeyCache([STATIC_KEY], ANONYMOUS.rules), log, unavailable=(DatabaseUnavailable,), stale_s=3_600.0
    )
    await key_sync.load()
    wallet = bank.wallet(**rules)
    api_limits = ApiLimits(api_per_caller, api_in_all, wait_s=0.1)
    l402 = L402Routes(
        wallet,
        bank.topups,
        Issuer(SECRET),
        amount_msat=l402_msat,
        lasts=timedelta(days=1),
        guard=BrowserGuard(Cors([PAGE])),
        limits=AddressLimits(clock=lambda: 0.0),
        api_limits=api_limits,
        per_minute=l402_per_minute,
    )
    nodes = Nodes(bank.database)
    reading = SimpleNamespace(
        list=show_caller,
        list_with_badges=show_caller,
        get=show_caller,
        rank=show_caller,
        healthz=show_caller,
        readyz=show_caller,
        expose_metrics=show_caller,
    )
    of_stored = ("get", "delete", "cancel", "input_items", "list", "update", "messages", "count")
    stored = SimpleNamespace(**dict.fromkeys(of_stored, show_caller))
    routes = Routes(
        create=SimpleNamespace(handler=lambda _kind: show_caller),
        models=reading,
        ranking=reading,
        health=reading,
        purchases=PurchaseRoutes(
            books,
            key_names=bank.keys.names,
            write_receipt=write_receipt,
            resolutions=ManualResolutions(
                bank.database,
                books,
                refund_limits=RefundLimits,
                on_refund=lambda _decision: None,
                on_resolved=lambda record, state: resolved.append((record.job_id, state)),
            ),
            api_limits=api_limits,
            read_timeout_s=5,
        ),
        usage=UsageRoutes(books, key_names=bank.keys.names, api_limits=api_limits),
        budgets=BudgetRoutes(books, budgets_for=SpendingLimits(**spending).budgets_for, keys=bank.keys),
        providers=ProviderRoutes(
            ProviderSources(
                catalog=lambda: CATALOG,
                nodes=lambda: NODES,
                daemon_problem=lambda: None,
                measurements=Measurements(half_life_s=600, clock=time.monotonic),
                trust=PeerTrust(TrustRules()),
                books=books,
                openclaw_id=CLAW,
            )
        ),
        events=EventRoutes(hub, api_limits=api_limits, ping_s=ping_s),
        overview=OverviewRoutes(
            OverviewSources(auth="accounts", health=report_health, books=books, ledger=bank.ledger, lnd=None)
        ),
        responses=stored,
        chats=stored,
        input_tokens=stored,
        wallet=WalletRoutes(wallet, read_timeout_s=5, api_limits=api_limits, pay_for_demo=pay_for_demo),
        admin=AdminRoutes(
            accounts=bank.accounts,
            ledger=bank.ledger,
            actions=bank.acts,
            on_key_change=key_sync.changed,
            read_timeout_s=5,
        ),
        refunds=RefundRoutes(Refunds(bank.database), on_decision=lambda _decision: None, read_timeout_s=5),
        keys=KeyRoutes(bank.keys, books=books, on_change=key_sync.changed, read_timeout_s=5, now=within_the_hour()),
        nodes=NodeRoutes(nodes, terms=NodeTermsCache(nodes, 100_000), connections=dict, read_timeout_s=5),
    )
    authenticator = AccountAuthenticator(
        find=key_sync.find, check_fresh=key_sync.check, admin_key=ADMIN_KEY, l402=l402 if with_l402 else None
    )
    console = None
    if settings is not None:
        customers = SimpleNamespace(accounts=bank.accounts, keys=bank.keys, key_sync=key_sync, invoices=bank.invoices)
        console = Console(bank.database, customers, api_limits, log)
        authenticator, console_routes = console.parts(settings, authenticator)
        routes = replace(routes, console=console_routes)
    cors = Cors([] if settings is None else settings.cors_origins)
    middleware = RequestMiddleware(
        authenticator=authenticator,
        cors=cors,
        guard=BrowserGuard(cors),
        metrics=metrics,
        log=log,
        open_paths=frozenset({"/healthz", API_DESCRIPTION}) if settings is None else OPEN_PATHS,
        max_header_bytes=16_384,
        unavailable=(DatabaseUnavailable,),
    )
    app = build_application(routes, middleware, max_body_bytes=65_536, with_metrics=True, api_limits=api_limits)
    async with TestClient(TestServer(app), cookie_jar=DummyCookieJar()) as client:
        found = Front(bank, client, l402)
        found.refresh = key_sync.refresh
        found.key_sync = key_sync
        found.metrics = metrics
        found.app = app
        found.resolved = resolved
        found.books, found.hub, found.around = books, hub, around
        yield found
