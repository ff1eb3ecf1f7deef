"""Without authentication on this machine there is no sign-in, and no page of another origin reads or changes anything."""

from contextlib import asynccontextmanager
from types import SimpleNamespace

from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from lcp_gateway.app.gateway import OPEN_PATHS
from lcp_gateway.app.wiring.console import Console
from lcp_gateway.config import Settings
from lcp_gateway.http.authentication import OpenAuthenticator
from lcp_gateway.http.browser_guard import BrowserGuard
from lcp_gateway.http.console.cookie_routes import COOKIE_ROUTES
from lcp_gateway.http.cors import Cors
from lcp_gateway.http.gateway.api_limits import ApiLimits
from lcp_gateway.http.middleware import RequestMiddleware
from lcp_gateway.telemetry.logs import get_logger
from lcp_gateway.telemetry.metrics import Metrics
from tests.support.cases import each_case


@asynccontextmanager
async def local(**settings):
    found = Settings(**settings)
    log, cors = get_logger("test"), Cors(found.cors_origins)
    console = Console(None, None, ApiLimits(8, 8), log)
    authenticator, routes = console.parts(found, OpenAuthenticator(is_local=True))
    middleware = RequestMiddleware(
        authenticator=authenticator,
        cors=cors,
        guard=BrowserGuard(cors),
        metrics=Metrics(),
        log=log,
        open_paths=OPEN_PATHS,
        max_header_bytes=16_384,
    )
    app = web.Application(middlewares=[middleware.handle])
    app.on_response_prepare.append(middleware.on_response_prepare)

    async def done(_request):
        return web.json_response({})

    for path in COOKIE_ROUTES - {"/api/session"}:
        app.router.add_route("*", path.replace("{form}", "{form:svg|png}"), done)
    if routes.sessions is not None:
        app.router.add_get("/api/session", routes.sessions.get)
        app.router.add_delete("/api/session", routes.sessions.sign_out)
        app.router.add_delete("/api/sessions/all", routes.sessions.sign_out_everywhere)
        app.router.add_post("/api/session", routes.sessions.sign_in)
        app.router.add_get("/api/console", routes.description.get)
    async with TestClient(TestServer(app)) as client:
        yield SimpleNamespace(client=client, origin=str(client.make_url("/")).rstrip("/"), routes=routes)


async def test_the_user_of_this_machine_needs_no_sign_in():
    async with local() as it:
        found = await it.client.get("/api/session")
        document = await found.json()
        assert (found.status, document["role"], document["account"], document["key"]) == (200, "local", None, None)
        assert (document["expires_at"], "Set-Cookie" in found.headers) == (None, False)
        described = await (await it.client.get("/api/console")).json()
        assert (described["auth"], described["signin"], described["journal"]) == ("none", "none", False)
        assert described["base_url"] == f"{it.origin}/v1"
        assert (await it.client.post("/api/session", json={"key": "x"})).status == 403
        assert (await (await it.client.delete("/api/session")).json())["deleted"] is False


@each_case("cors", [(), ("*",), ("https://page.example",)])
@each_case(
    "headers",
    [
        {"Origin": "https://page.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"},
        {"Host": "evil.example"},
        {"Host": "evil.example", "Origin": "http://evil.example"},
        {"Origin": "https://page.example", "Authorization": "Bearer any"},
    ],
)
async def test_a_page_elsewhere_reads_and_changes_nothing_whatever_cors_origins_says(cors, headers):
    async with local(cors_origins=cors) as it:
        for method, path in (
            ("GET", "/api/purchases"),
            ("GET", "/api/session"),
            ("GET", "/api/admin/overview"),
            ("POST", "/api/admin/purchases/x/resolution"),
        ):
            found = await it.client.request(method, path, headers=headers, json=None if method == "GET" else {})
            assert found.status in {403, 421}, (method, path)
            assert "Access-Control-Allow-Origin" not in found.headers


async def test_its_own_page_and_programs_are_served():
    async with local(cors_origins=("*",)) as it:
        for headers in ({}, {"Origin": it.origin}, {"Sec-Fetch-Site": "same-origin"}, {"Sec-Fetch-Site": "none"}):
            assert (await it.client.get("/api/purchases", headers=headers)).status == 200
            assert (await it.client.post("/api/admin/accounts", json={}, headers=headers)).status == 200


async def test_a_page_that_cors_origins_names_may_still_ask_for_a_route():
    async with local(cors_origins=("https://page.example",)) as it:
        found = await it.client.post("/api/models/route", json={}, headers={"Origin": "https://page.example"})
        assert (found.status, found.headers["Access-Control-Allow-Origin"]) == (200, "https://page.example")


async def test_bound_wider_there_is_no_console():
    async with local(http_addr=":8080", allow_open=True) as it:
        assert it.routes.pages is it.routes.sessions is it.routes.description is None
