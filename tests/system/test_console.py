"""The console of real gateways: first run, sessions that several of them share, and that a cookie never buys."""

import http.client
import itertools
import json
import time
from http.cookies import SimpleCookie

import pytest

from tests.support.gateway import gateway, run_command
from tests.support.node_thread import eventually
from tests.support.workers import at_once

ADMIN = "boss-of-it-all"
HTTPS = {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "gw.example"}
ACCOUNTS = {
    "LCP_GATEWAY_AUTH": "accounts",
    "LCP_GATEWAY_ADMIN_KEY": ADMIN,
    "LCP_GATEWAY_REGISTRATION": "open",
    "LCP_GATEWAY_TRUSTED_PROXIES": "127.0.0.1",
}


class Browser:
    """A browser behind a proxy that speaks https, with a jar for one host and an address of its own."""

    addresses = itertools.count(1)

    def __init__(self):
        self.cookie = ""
        self.address = f"192.0.2.{next(self.addresses)}"

    def send(self, port, method, path, body=None, **headers):
        own = {
            **HTTPS,
            "X-Forwarded-For": self.address,
            "Sec-Fetch-Site": "same-origin",
            "Content-Type": "application/json",
        }
        if method != "GET":
            own["Origin"] = "https://gw.example"
        if self.cookie:
            own["Cookie"] = f"__Host-lcpg={self.cookie}"
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request(method, path, None if body is None else json.dumps(body), {**own, **headers})
        response = connection.getresponse()
        content = response.read()
        for header in response.headers.get_all("Set-Cookie", []):
            self.cookie = SimpleCookie(header)["__Host-lcpg"].value
            assert {"Secure", "HttpOnly", "SameSite=Strict", "Path=/"} <= {part.strip() for part in header.split(";")}
        connection.close()
        response.document = json.loads(content) if content[:1] in {b"{", b"["} else content
        return response


@pytest.fixture(scope="module")
def journal(tmp_path_factory):
    return str(tmp_path_factory.mktemp("console") / "journal.db")


@pytest.fixture(scope="module")
def two(journal):
    """Two gateways on one journal."""
    env = {**ACCOUNTS, "LCP_GATEWAY_JOURNAL_URL": journal}
    with gateway(env=env) as one, gateway(env=env) as other:
        yield one, other


@pytest.fixture
def registered(two):
    browser = Browser()
    made = browser.send(two[0].port, "POST", "/api/register", {"name": "alice"})
    assert made.status == 201 and browser.cookie
    browser.account, browser.key = made.document["account"]["id"], made.document["key"]
    return browser


def by_admin(port, method, path, body=None):
    return Browser().send(port, method, path, body, Authorization=f"Bearer {ADMIN}")


def test_a_session_is_known_to_every_gateway_on_the_database(two, registered):
    for one in two:
        found = registered.send(one.port, "GET", "/api/session")
        assert (found.status, found.document["account"]["id"]) == (200, registered.account)


def test_a_key_that_one_gateway_revokes_ends_its_session_at_the_other_at_once(two, registered):
    revoked = by_admin(two[1].port, "DELETE", f"/api/admin/keys/{registered.key['id']}")
    assert revoked.status == 200
    assert registered.send(two[0].port, "GET", "/api/wallet").status == 401


def test_a_sign_out_at_one_gateway_is_one_everywhere(two, registered):
    kept = registered.cookie
    assert registered.send(two[1].port, "DELETE", "/api/session").document["deleted"] is True
    assert registered.cookie == ""
    registered.cookie = kept
    assert registered.send(two[0].port, "GET", "/api/wallet").status == 401


def test_a_key_of_the_command_line_signs_in_at_a_running_gateway(two, journal):
    made = run_command("accounts", "create", "Ada", "--sign-in-key", "--json", env={"LCP_GATEWAY_JOURNAL_URL": journal})
    account = json.loads(made.stdout)

    by_key = {"Authorization": f"Bearer {account['key']}"}
    # The gateway reads new keys every second.
    eventually(lambda: Browser().send(two[0].port, "GET", "/api/session", **by_key).status == 200)
    found = Browser().send(two[0].port, "POST", "/api/session", {"key": account["key"]})
    assert (found.status, found.document["account"]["name"]) == (201, "Ada")


def test_the_cookie_buys_nothing(two, registered):
    one = two[0]
    chat = {"model": "echo-1", "messages": [{"role": "user", "content": "hi"}]}
    for path, body in (
        ("/v1/chat/completions", chat),
        ("/v1/responses", {"model": "echo-1", "input": "hi"}),
        ("/v1/completions", {"model": "echo-1", "prompt": "hi"}),
        ("/v1/embeddings", {"model": "echo-1", "input": "hi"}),
        (f"/api/agent/{registered.cookie}/v1/chat/completions", chat),
    ):
        found = registered.send(one.port, "POST", path, body)
        assert (found.status, found.headers["X-Lcp-Payment"]) == (401, "none"), path
    assert registered.send(one.port, "GET", "/v1/models").status == 401
    assert one.events("accept") == [] and one.events("quote") == []


def test_over_https_browsers_come_back_over_https_but_not_at_loopback_names(two):
    port, browser = two[0].port, Browser()
    for path in ("/console/", "/api/console", "/"):
        assert browser.send(port, "GET", path).headers["Strict-Transport-Security"] == "max-age=31536000"
    for more in ({"X-Forwarded-Host": "localhost"}, {"X-Forwarded-Proto": "http"}):
        assert browser.send(port, "GET", "/console/", **more).headers["Strict-Transport-Security"] is None


def test_no_key_or_token_is_in_a_log(two, registered):
    registered.send(two[0].port, "POST", "/api/session", {"key": "lcpg_not-a-key-at-all"})
    two[0].wait_for_log("sign-in refused")
    for one in two:
        for secret in (registered.cookie, registered.key["key"], ADMIN, "lcpg_not-a-key-at-all"):
            assert secret not in one.logs


def test_a_session_outlives_the_gateway_and_ends_with_a_changed_admin_key(journal):
    env = {**ACCOUNTS, "LCP_GATEWAY_JOURNAL_URL": f"{journal}.2"}
    browser, admin = Browser(), Browser()
    with gateway(env=env) as one:
        assert browser.send(one.port, "POST", "/api/register", {"name": "alice"}).status == 201
        assert admin.send(one.port, "POST", "/api/session", {"key": ADMIN}).document["role"] == "operator"
    with gateway(env={**env, "LCP_GATEWAY_ADMIN_KEY": "another"}) as one:
        assert browser.send(one.port, "GET", "/api/wallet").status == 200
        assert admin.send(one.port, "GET", "/api/admin/accounts").status == 401


@pytest.mark.parametrize(("keys", "role"), [("two", "local"), ("one,two", "key")])
def test_with_static_keys_a_person_pastes_one_and_sees_the_gateway_or_with_several_keys_its_own(keys, role):
    with gateway(env={"LCP_GATEWAY_API_KEYS": keys, "LCP_GATEWAY_TRUSTED_PROXIES": "127.0.0.1"}) as it:
        browser = Browser()
        assert browser.send(it.port, "GET", "/api/console").document["signin"] == "key"
        assert browser.send(it.port, "POST", "/api/session", {"key": "three"}).status == 401
        found = browser.send(it.port, "POST", "/api/session", {"key": "two"})
        assert (found.status, found.document["role"], found.document["account"]) == (201, role, None)
        assert browser.send(it.port, "GET", "/api/session").status == 200
        assert browser.send(it.port, "GET", "/api/admin/overview").status == (200 if role == "local" else 403)
        assert browser.send(it.port, "POST", "/api/register", {"name": "x"}).status == 404
        assert browser.send(it.port, "POST", "/v1/chat/completions", {}).status == 401


def test_without_authentication_a_client_of_another_machine_gets_no_console_through_a_proxy():
    with gateway(env={"LCP_GATEWAY_TRUSTED_PROXIES": "127.0.0.1"}) as it:
        near, far = {"X-Forwarded-Host": "localhost", "X-Forwarded-For": "127.0.0.1"}, {"X-Forwarded-Host": "localhost"}
        for path in ("/console/", "/api/session", "/api/purchases"):
            own = {"Origin": "https://localhost"}
            assert Browser().send(it.port, "GET", path, **near, **own).status == 200, path
            assert Browser().send(it.port, "GET", path, **far, **own).status == 403, path


def test_workers_share_sessions_and_count_sign_ins_together():
    env = {**ACCOUNTS, "LCP_GATEWAY_REDIS_URL": ""}
    with gateway(args=["--workers", "2"], env=env) as it:
        browser = Browser()
        assert browser.send(it.port, "POST", "/api/register", {"name": "alice"}).status == 201
        cookie = browser.cookie

        def look(_number):
            one = Browser()
            one.cookie = cookie
            return one.send(it.port, "GET", "/api/session")

        answers = at_once(16, look)
        assert {answer.status for answer in answers} == {200}

        def guess(_number):
            one = Browser()
            one.address = "198.51.100.7"
            return one.send(it.port, "POST", "/api/session", {"key": "wrong"})

        began_at = time.monotonic()
        statuses = [answer.status for answer in at_once(30, guess, threads=8)]
        # Each of two processes alone would let ten through; one more is let through every six seconds.
        more = (time.monotonic() - began_at) / 6
        assert 10 <= statuses.count(401) <= 11 + more and statuses.count(401) + statuses.count(429) == 30
