"""The table of plain routes finds what aiohttp's router finds."""

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from lcp_gateway.http.server.listener import RouteTable
from tests.support.cases import each_case

PATHS = (
    "/",
    "/v1",
    "/v1/",
    "/v1/models",
    "/v1/chat/completions",
    "/v1/models/m",
    "/v1/things/1",
    "/missing",
    "/v1/m%6fdels",
)


@web.middleware
async def tell(request, handler):
    response = await handler(request)
    response.headers["X-Route"] = (
        request.match_info.route.resource.canonical if request.match_info.route.resource else "none"
    )
    response.headers["X-App"] = str(request.match_info.current_app is request.app)
    return response


def answering(name):
    async def handler(_request):
        return web.Response(text=name)

    return handler


@pytest.fixture
async def served():
    app = web.Application(middlewares=[tell])
    for path in ("/", "/v1", "/v1/", "/v1/models"):
        app.router.add_get(path, answering(f"GET {path}"))
    app.router.add_get("/v1/models/{model:.+}", answering("a model"))
    app.router.add_get("/v1/things/{id}", answering("a thing"))
    app.router.add_post("/v1/chat/completions", answering("POST chat"))
    runner = web.AppRunner(app)
    await runner.setup()
    yield app, RouteTable(app, runner.server)
    await runner.cleanup()


async def outcome(handle, method, path, app):
    request = make_mocked_request(method, path, app=app)
    try:
        response = await handle(request)
    except web.HTTPException as error:
        return type(error).__name__, sorted(getattr(error, "allowed_methods", ()))
    return response.text, dict(response.headers)


@each_case("path", PATHS)
@each_case("method", ["GET", "HEAD", "POST", "DELETE"])
async def test_every_request_gets_what_aiohttps_router_gives(served, method, path):
    app, table = served
    assert await outcome(table.request_handler, method, path, app) == await outcome(app._handle, method, path, app)


async def test_a_plain_route_is_found_without_the_router(served, monkeypatch):
    app, table = served
    monkeypatch.setattr(app.router, "resolve", None)
    assert (await outcome(table.request_handler, "POST", "/v1/chat/completions?a=b", app))[0] == "POST chat"
