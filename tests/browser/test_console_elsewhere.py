"""A page elsewhere, in a browser that is signed in at the console: it changes nothing, buys nothing and reads nothing."""

import pytest
from playwright.async_api import expect

from tests.browser.conftest import REBOUND, STRANGER
from tests.browser.test_pages_elsewhere import READING, SPENDING, is_at, read, spend
from tests.support.console import ADMIN_KEY, Api, make_customer

pytestmark = pytest.mark.xdist_group("browser")

FORMS = """(urls) => Promise.all(urls.flatMap((url) => ['text/plain', 'application/x-www-form-urlencoded', 'multipart/form-data']
  .map((kind) => new Promise((done) => {
    const form = document.createElement('form');
    form.method = 'POST'; form.action = url; form.enctype = kind; form.target = 'sink' + Math.random();
    const field = document.createElement('input');
    field.name = '{"name": "evil", "x": "'; field.value = '"}';
    const sink = document.createElement('iframe'); sink.name = form.target;
    document.body.append(sink, form); form.append(field);
    // A refused answer may load nothing into its frame.
    sink.onload = done; setTimeout(done, 2000); form.submit();
  }))))"""
SEND = """async ([url, method, options]) => {
  try { const answer = await fetch(url, {method, credentials: 'include', ...options}); return [answer.status, await answer.text()] }
  catch { return [0, ''] }
}"""
JSON = {"headers": {"Content-Type": "application/json"}, "body": '{"name": "evil"}'}
PLAIN = {"headers": {"Content-Type": "text/plain"}, "body": '{"name": "evil"}', "mode": "no-cors"}


def state_of(operator: Api, customer) -> list[object]:
    """What a page elsewhere must not change."""
    return [
        [(one["id"], one["name"]) for one in operator.get("/api/admin/accounts")["data"]],
        [(one["id"], one["name"], one["revoked_at"]) for one in operator.get("/api/admin/keys?limit=500")["data"]],
        operator.get(f"/api/admin/accounts/{customer.id}")["balance_msat"],
        operator.get("/api/admin/log?limit=1")["data"],
        len(customer.api.get("/api/purchases")["data"]),
        len(customer.api.get("/api/wallet/topups")["data"]),
    ]


@pytest.mark.parametrize("host", [STRANGER, "127.0.0.1", "localhost"])
async def test_a_page_elsewhere_uses_nothing_of_a_signed_in_browser(seller, people, operator, pages_port, host):
    """Another port of this machine gets the cookie, as browsers do not keep ports apart: it is refused all the same."""
    customer = make_customer(seller, "victim")
    key = operator.get(f"/api/admin/accounts/{customer.id}/keys")["data"][0]["id"]
    bought = len(seller.events("accept"))
    async with people.visit(ADMIN_KEY) as signed_in:
        await signed_in.open("overview")
        before = state_of(operator, customer)
        # A tab of its own: here requests to both hosts are tried.
        page = await signed_in.context.new_page()
        await is_at(page, host, pages_port)
        routes = (
            ("POST", "/api/admin/accounts"),
            ("PATCH", f"/api/admin/accounts/{customer.id}"),
            ("DELETE", f"/api/admin/accounts/{customer.id}"),
            ("DELETE", f"/api/admin/keys/{key}"),
            ("POST", "/api/admin/invites"),
            ("DELETE", "/api/session"),
            ("DELETE", "/api/sessions"),
        )
        for method, path in routes:
            for options in (JSON, PLAIN):
                assert await page.evaluate(SEND, [seller.base_url + path, method, options]) == [0, ""], (path, method)
        await page.evaluate(FORMS, [seller.base_url + path for _, path in routes])
        for how in SPENDING:
            assert await spend(page, seller.base_url, how) == "", how
        for path in ("/api/admin/accounts", "/api/session", "/api/purchases?format=csv", "/api/events", "/api/console"):
            for how in READING:
                assert await read(page, how, seller.base_url + path) == "", (how, path)
        for path in ("/console/", "/api/purchases"):
            assert await read(page, "a frame", seller.base_url + path) == ""
        await page.close()
        assert state_of(operator, customer) == before
        assert len(seller.events("accept")) == bought
        # The person is still signed in.
        await signed_in.page.reload()
        await expect(signed_in.heading("Overview")).to_be_visible()


async def test_a_rebound_name_has_no_session_of_the_browser(seller, people, operator):
    """The page itself is the same for every visitor; the cookie belongs to the gateway's own name."""
    base = f"http://{REBOUND}:{seller.port}"
    async with people.visit(ADMIN_KEY) as signed_in:
        await signed_in.open()
        page = await signed_in.context.new_page()
        await page.route(
            f"{base}/page", lambda route: route.fulfill(body="<!doctype html><body></body>", content_type="text/html")
        )
        await page.goto(f"{base}/page")
        before = operator.get("/api/admin/log?limit=1")["data"]
        for path in ("/api/session", "/api/purchases", "/api/admin/accounts", "/api/admin/overview", "/api/events"):
            status, text = await page.evaluate(SEND, [base + path, "GET", {}])
            assert status in {401, 403, 421} and "lcp." not in text, path
        status, _ = await page.evaluate(SEND, [f"{base}/api/admin/accounts", "POST", JSON])
        assert status in {401, 403, 421}
        assert operator.get("/api/admin/log?limit=1")["data"] == before
        await page.close()


async def test_the_cookie_buys_nothing(seller, people, alice):
    """It is read by routes of the console; those that buy, and an agent's, do not know it."""
    bought = len(seller.events("accept"))
    async with people.visit(alice.sign_in_key) as visiting:
        await visiting.open()
        (cookie,) = await visiting.context.cookies()
        body = {"model": "echo-1", "messages": [{"role": "user", "content": "spend"}]}
        for path in ("/v1/chat/completions", "/v1/responses", "/v1/embeddings", "/api/agent/x/v1/chat/completions"):
            # Sent by hand, since a browser keeps it from paths outside /api.
            answer = await visiting.context.request.post(
                seller.base_url + path,
                data=body,
                headers={"Cookie": f"{cookie['name']}={cookie['value']}", "Origin": seller.base_url},
            )
            assert answer.status == 401, path
        assert await visiting.page.evaluate("async (path) => (await fetch(path)).status", "/v1/models") == 401
    assert len(seller.events("accept")) == bought
