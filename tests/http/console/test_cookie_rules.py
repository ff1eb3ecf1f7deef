"""The cookie buys nothing, and no page of another origin can use it: the rules of the console's security, one by one."""

import re
from dataclasses import fields, replace
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest
from aiohttp import web

from lcp_gateway.accounts.callers import Scope
from lcp_gateway.http.application import ConsoleRoutes, Routes, build_application
from lcp_gateway.http.console.cookie_routes import CONFIRMED, COOKIE_ROUTES, OPEN_ROUTES, PASSIVE_ROUTES
from lcp_gateway.http.gateway.api_limits import ApiLimits
from tests.http.console.browsers import Browser, console
from tests.http.front import ADMIN_KEY

EVERY = frozenset(Scope)
# How a browser gets a cookie, and where a node dials in with its own token.
WITHOUT_COOKIE = {"/api/console", "/api/register", "/api/nodes/connect"}
SITES = ["cross-site", "same-site"]


@pytest.fixture
async def signed_in(bank):
    """A gateway with every origin allowed, and a browser that is signed in with a key of all scopes."""
    account_id = await bank.customer(10_000)
    async with console(bank, cors_origins=("*",), with_l402=False) as (gateway, browser):
        one = browser()
        one.account_id, one.key = account_id, await gateway.key(account_id, scopes=EVERY)
        assert (await one.sign_in(one.key)).status == 201
        yield gateway, one


def filled(path):
    return re.sub(r"\{form:?[^}]*\}", "svg", re.sub(r"\{(?!form)[^}]*\}", "x", path))


async def test_the_cookie_opens_the_named_routes_and_none_that_buys_or_belongs_to_an_agent(signed_in):
    gateway, one = signed_in
    routes = [(route.method, route.resource.canonical) for route in gateway.app.router.routes() if route.resource]
    assert all(path.startswith("/api/") and not path.startswith("/api/agent") for path in COOKIE_ROUTES)
    tried = 0
    for method, path in routes:
        if (
            method == "HEAD"
            or path in COOKIE_ROUTES
            or path in OPEN_ROUTES | WITHOUT_COOKIE
            or path.startswith("/console")
        ):
            continue
        if path in {"/healthz", "/readyz", "/openapi.json", "/", "/v1", "/v1/"}:
            continue
        found = await one.send(method, filled(path), json=None if method in {"GET", "HEAD"} else {})
        assert found.status == 401, (method, path)
        tried += 1
    assert tried > 20


class Handlers:
    """Has a handler of every name."""

    def __getattr__(self, name):
        async def handler(_request):
            raise NotImplementedError

        return (lambda _kind: handler) if name == "handler" else handler


def every_route():
    """Return the paths of a gateway that has every route there is."""
    every = {field.name: Handlers() for field in fields(Routes)}
    every["console"] = ConsoleRoutes(**{field.name: Handlers() for field in fields(ConsoleRoutes)})
    middleware = SimpleNamespace(
        handle=web.middleware(lambda request, handler: handler(request)), on_response_prepare=None
    )
    app = build_application(
        Routes(**every), middleware, max_body_bytes=1, with_metrics=True, api_limits=ApiLimits(1, 1)
    )
    return {resource.canonical for resource in app.router.resources()}


def test_every_route_of_the_api_is_named_for_the_cookie_or_known_to_go_without():
    of_api = {path for path in every_route() if path.startswith("/api/") and "{agent_token}" not in path}
    assert of_api - COOKIE_ROUTES == WITHOUT_COOKIE
    assert COOKIE_ROUTES - of_api == set(), "a name of a route that is gone"
    assert {path for _, path in CONFIRMED} <= COOKIE_ROUTES


async def test_a_cookie_on_a_buying_route_is_401_even_beside_a_wrong_key(signed_in):
    _gateway, one = signed_in
    for path in ("/v1/chat/completions", "/v1/responses", "/v1/embeddings", "/v1/completions"):
        assert (await one.send("POST", path, json={})).status == 401
    assert (await one.send("POST", "/api/agent/x/v1/chat/completions", json={})).status == 401
    wrong = await one.send("GET", "/api/wallet", headers={"Authorization": "Bearer wrong"})
    assert (wrong.status, wrong.code) == (401, "invalid_api_key"), "a header counts before the cookie"


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({"Origin": None}, 403, "origin_not_allowed"),
        ({"Origin": "null"}, 403, "origin_not_allowed"),
        ({"Origin": "https://evil.example"}, 403, "origin_not_allowed"),
        ({"Origin": "http://127.0.0.1:1"}, 403, "origin_not_allowed"),
        ({"Origin": "http://localhost:{port}"}, 403, "origin_not_allowed"),
        ({"Origin": "https://127.0.0.1:{port}"}, 403, "origin_not_allowed"),
        ({"Sec-Fetch-Site": "same-site"}, 403, "origin_not_allowed"),
        ({"Sec-Fetch-Site": "cross-site"}, 403, "origin_not_allowed"),
        ({"Content-Type": "text/plain"}, 415, "unsupported_media_type"),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415, "unsupported_media_type"),
        ({"Content-Type": "multipart/form-data; boundary=x"}, 415, "unsupported_media_type"),
        ({"Content-Type": None}, 415, "unsupported_media_type"),
        ({"Content-Type": "text/plain; application/json"}, 415, "unsupported_media_type"),
    ],
)
async def test_a_request_that_changes_something_needs_our_origin_and_json(signed_in, headers, status, code):
    gateway, one = signed_in
    headers = {name: value and value.format(port=gateway.client.port) for name, value in headers.items()}
    for method, path in (
        ("POST", "/api/wallet/topups"),
        ("PATCH", "/api/account"),
        ("DELETE", "/api/session"),
        ("DELETE", "/api/sessions"),
        ("POST", "/api/admin/accounts"),
        ("DELETE", "/api/admin/keys/key_x"),
    ):
        body = '{"amount_sat": 10, "name": "x"}'
        found = await one.send(method, path, data=body, headers={"Content-Type": "application/json", **headers})
        assert (found.status, found.code) == (status, code), (method, path)
        assert "Access-Control-Allow-Origin" not in found.headers
    assert (await one.send("GET", "/api/wallet")).document["balance_msat"] == 10_000
    assert gateway.bank.invoices.asked == []
    assert (await one.send("GET", "/api/session")).status == 200, "still signed in"


@pytest.mark.parametrize("site", SITES)
async def test_a_read_that_another_page_causes_is_refused(signed_in, site):
    _, one = signed_in
    for path in ("/api/wallet", "/api/account", "/api/admin/accounts", "/api/session"):
        for more in ({}, {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}, {"Sec-Fetch-Dest": "iframe"}):
            found = await one.send("GET", path, headers={"Sec-Fetch-Site": site, **more})
            assert (found.status, found.code) == (403, "cross_site_request"), (path, more)
    found = await one.send("GET", "/api/wallet", headers={"Sec-Fetch-Site": None, "Origin": "https://evil.example"})
    assert found.code == "origin_not_allowed"


async def test_a_person_who_opens_the_address_reads_it(signed_in):
    _, one = signed_in
    for site in ("none", "same-origin", None):
        assert (await one.send("GET", "/api/wallet", headers={"Sec-Fetch-Site": site})).status == 200


async def test_cors_origins_never_apply_to_the_cookie(signed_in):
    _, one = signed_in
    own = await one.send("GET", "/api/wallet", headers={"Origin": one.origin})
    assert own.status == 200
    assert not [name for name in own.headers if name.lower().startswith("access-control")]
    assert own.headers["Cross-Origin-Resource-Policy"] == "same-origin"
    by_key = await one.send(
        "GET", "/api/wallet", headers={"Authorization": f"Bearer {one.key}", "Origin": "https://page.example"}
    )
    assert (by_key.status, by_key.headers["Access-Control-Allow-Origin"]) == (200, "*")


async def test_a_page_elsewhere_cannot_sign_a_browser_in_or_register_it(bank):
    account_id = await bank.customer()
    async with console(bank, cors_origins=("*",), registration="open") as (gateway, browser):
        key = await gateway.key(account_id)
        for headers in (
            {"Origin": "https://evil.example"},
            {"Origin": None},
            {"Sec-Fetch-Site": "cross-site"},
            {"Sec-Fetch-Site": "same-site"},
            {"Content-Type": "text/plain"},
        ):
            one = browser()
            found = await one.send("POST", "/api/session", data=f'{{"key": "{key}"}}', headers=headers)
            assert found.status in {403, 415} and not one.signed_in, headers
            if headers != {"Origin": None}:
                found = await one.send("POST", "/api/register", data='{"name": "x"}', headers=headers)
                assert found.status in {403, 415} and not one.signed_in, headers
            assert "Access-Control-Allow-Origin" not in found.headers
        assert len((await bank.accounts.page()).items) == 1


async def test_a_rebound_name_has_no_cookie_and_gets_no_sign_in(signed_in):
    _gateway, one = signed_in
    evil = {"Host": "evil.example", "Origin": "http://evil.example"}
    assert (await one.send("GET", "/api/wallet", headers=evil)).status == 401
    found = await one.send("POST", "/api/session", json={"key": one.key}, headers=evil)
    assert (found.status, found.code) == (403, "signin_off")


async def test_a_cookie_that_another_port_planted_is_no_sign_in(signed_in, bank):
    """Login CSRF by cookie: another server on this host adds its own session under a longer path."""
    gateway, one = signed_in
    attacker_key = await gateway.key(await bank.customer())
    attacker = Browser(gateway)
    await attacker.sign_in(attacker_key)
    name = f"lcpg_{gateway.client.port}"
    both = f"{name}={attacker.cookies[name]}; {name}={one.cookies[name]}"
    found = await one.send("GET", "/api/wallet", headers={"Cookie": both})
    assert (found.status, found.code) == (401, "session_expired")


@pytest.mark.parametrize("token", ["", "x", "A" * 43, "a" * 8_000, '"quoted"', "é"])
async def test_a_wrong_cookie_is_the_same_401_whatever_it_is(signed_in, token):
    gateway, one = signed_in
    name = f"lcpg_{gateway.client.port}"
    found = await one.send("GET", "/api/wallet", headers={"Cookie": f"{name}={token}"})
    assert (found.status, found.code) == (401, "session_expired")
    assert found.document["error"]["message"] == "the session is over: sign in again"


async def test_what_cannot_be_undone_needs_a_typed_confirmation_with_the_cookie_and_not_with_a_key(signed_in, bank):
    gateway, one = signed_in
    other = await bank.customer(5_000)
    key = await bank.keys.create(other, name="k", actor="test", at=datetime.now(UTC))
    cases = (
        ("POST", f"/api/admin/accounts/{other}/adjustments", other, {"amount_msat": 1, "reason": "r"}, 201),
        ("DELETE", f"/api/admin/keys/{key.record.id}", key.record.id, None, 200),
        ("DELETE", f"/api/admin/accounts/{other}", other, None, 200),
    )
    for method, path, target, body, status in cases:
        for typed in (None, "", "x", target, target[-5:], other[:6]):
            found = await one.send(method, path, json=body, confirm=typed)
            assert (found.status, found.code) == (428, "confirmation_required"), (path, typed)
            assert "last 6 characters" in found.document["error"]["message"]
        assert (await one.send(method, path, json=body, confirm=f" {target[-6:].upper()} ")).status == status
    again = await bank.customer()
    assert (await gateway.ask("DELETE", f"/api/admin/accounts/{again}", ADMIN_KEY)).status == 200


async def test_an_answer_to_the_cookie_is_neither_stored_nor_framed_nor_sent_as_a_referrer(signed_in):
    _, one = signed_in
    headers = (await one.send("GET", "/api/wallet")).headers
    assert headers["Cache-Control"] == "no-store"
    assert headers["X-Frame-Options"] == "DENY"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    assert "Strict-Transport-Security" not in headers, "not over http"


async def test_what_a_page_does_by_itself_does_not_keep_its_session(signed_in, monkeypatch):
    _gateway, one = signed_in
    used = []

    async def find(_self, _token, *, extend):
        used.append(extend)

    monkeypatch.setattr("lcp_gateway.accounts.sessions.ConsoleSessions.find", find)
    for path, headers in (("/api/wallet", {}), ("/api/wallet", {"X-Lcp-Background": "1"}), ("/api/events", {})):
        await one.send("GET", path, headers=headers)
    assert {"/api/events"} == PASSIVE_ROUTES and used == [True, False, False]


@pytest.mark.parametrize("how", ["revoked", "may see less"])
async def test_a_request_that_lasts_learns_that_its_session_or_key_is_over(signed_in, bank, how):
    from lcp_gateway.http.context import CONTEXT

    gateway, one = signed_in
    # The handler below is no route that is described.
    gateway.api = None
    asked = []

    async def look_twice(request: web.Request) -> web.Response:
        context = request[CONTEXT]
        asked.append(await context.still_admitted())
        for record in (await bank.keys.page(one.account_id)).items:
            by = {"actor": "test", "at": datetime.now(UTC)}
            if how == "revoked":
                await bank.keys.revoke(record.id, **by)
            else:
                # What is told goes by the scopes of its beginning.
                rules = replace(record.rules, scopes=EVERY - {Scope.WALLET})
                await bank.keys.change(record.id, name=record.name, rules=rules, **by)
        await gateway.refresh()
        asked.append(await context.still_admitted())
        return web.Response()

    for resource in gateway.app.router.resources():
        if resource.canonical == "/api/admin/audit":
            for route in resource:
                route._handler = look_twice
    await one.send("GET", "/api/admin/audit")
    assert asked == [True, False]
    asked.clear()
    one.key = await gateway.key(one.account_id, scopes=EVERY)
    await gateway.ask("GET", "/api/admin/audit", one.key)
    assert asked == [True, False]


async def test_with_the_console_off_its_routes_are_404_and_the_cookie_is_not_read(bank):
    account_id = await bank.customer()
    async with console(bank) as (gateway, browser):
        one, key = browser(), await gateway.key(account_id, scopes=EVERY)
        await one.sign_in(key)
        cookie = next(iter(one.cookies.values()))
    async with console(bank, console="off") as (gateway, browser):
        one = browser()
        one.cookies = {f"lcpg_{gateway.client.port}": cookie}
        assert (await one.send("GET", "/api/wallet")).code == "invalid_api_key"
        for method, path in (
            ("GET", "/console"),
            ("GET", "/console/"),
            ("GET", "/console/assets/x/app.js"),
            ("GET", "/api/console"),
            ("POST", "/api/session"),
            ("POST", "/api/register"),
        ):
            assert (await one.send(method, path, json=None if method == "GET" else {})).status == 404, path
        for method, path in (("GET", "/api/session"), ("DELETE", "/api/session"), ("DELETE", "/api/sessions")):
            assert (await gateway.ask(method, path, key)).status in {404, 405}, path
        assert (await gateway.ask("GET", "/api/account", key)).status == 200, "with a key the API goes on"
