"""Sign-in with each kind of key, the same answer and the same work for every wrong one, limits, and sign-out."""

import hashlib
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest

from lcp_gateway.accounts import keys as accounts_keys
from lcp_gateway.accounts import sessions as accounts_sessions
from lcp_gateway.accounts.callers import Scope
from lcp_gateway.accounts.limits.addresses import AddressLimits
from lcp_gateway.accounts.limits.attempts import Attempts
from lcp_gateway.accounts.sessions import Role, SettingsKeys
from lcp_gateway.http.authentication import ADMINISTRATOR
from lcp_gateway.http.console.limits import SignInLimits
from lcp_gateway.http.errors import ApiError
from tests.http.console.browsers import console
from tests.http.front import ADMIN_KEY, STATIC_KEY

SIGN_IN = frozenset({Scope.ACCOUNT, Scope.WALLET})
WRONG = ["x", "lcpg_", "lcpg_" + "A" * 43, ADMIN_KEY[:-1], ADMIN_KEY + "2", "é", "a" * 4_000]


async def test_each_kind_of_key_signs_in_with_its_role_and_what_its_scopes_allow(bank):
    account_id = await bank.customer()
    async with console(bank) as (gateway, browser):
        sign_in_key = await gateway.key(account_id, scopes=SIGN_IN)
        ordinary = await gateway.key(account_id)
        customers_admin = await gateway.key(account_id, scopes=frozenset({Scope.ADMIN}))
        for key, role, wallet, admin in (
            (sign_in_key, "customer", 200, 403),
            (ordinary, "customer", 200, 403),
            (customers_admin, "operator", 403, 200),
            (STATIC_KEY, "key", 403, 403),
            (ADMIN_KEY, "operator", 403, 200),
        ):
            one = browser()
            made = await one.sign_in(f" {key} ")
            assert (made.status, made.document["role"]) == (201, role)
            assert key.strip() not in made.body.decode()
            seen = await one.send("GET", "/api/session")
            assert (seen.status, seen.document) == (200, made.document)
            assert (await one.send("GET", "/api/wallet")).status == wallet, role
            assert (await one.send("GET", "/api/admin/accounts")).status == admin, role
        lifetime_s = made.document["expires_at"] - made.document["created_at"]
        assert (lifetime_s, made.document["idle_expires_at"] - made.document["created_at"]) == (12 * 3600, 3600)


async def test_a_session_names_its_account_and_its_key(bank):
    account_id = await bank.customer(name="alice")
    async with console(bank) as (gateway, browser):
        one = browser()
        found = (await one.sign_in(await gateway.key(account_id, scopes=SIGN_IN))).document
        assert found["account"] == {"id": account_id, "name": "alice"}
        assert found["key"]["scopes"] == found["scopes"] == ["account", "wallet"]
        assert found["key"]["prefix"].startswith("lcpg_") and found["key"]["name"] == "k"
        by_key = await gateway.ask("GET", "/api/session", await gateway.key(account_id))
        assert (by_key.document["role"], by_key.document["expires_at"]) == ("customer", None)


async def test_the_cookie_holds_a_new_token_at_each_sign_in_and_the_earlier_session_ends(bank):
    account_id = await bank.customer()
    async with console(bank) as (gateway, browser):
        one, key = browser(), await gateway.key(account_id)
        made = await one.sign_in(key)
        cookie = made.headers["Set-Cookie"]
        assert cookie.startswith(f"lcpg_{gateway.client.port}=")
        assert "HttpOnly" in cookie and "SameSite=Strict" in cookie and "Path=/api" in cookie and "Secure" not in cookie
        first = dict(one.cookies)
        await one.sign_in(key)
        assert one.cookies != first
        another = browser()
        another.cookies = first
        assert (await another.send("GET", "/api/wallet")).code == "session_expired"
        assert (await one.send("GET", "/api/wallet")).status == 200


async def test_every_wrong_key_gets_the_same_answer(bank):
    account_id = await bank.customer()
    async with console(bank) as (gateway, browser):
        expired = await gateway.key(account_id, expires_at=datetime.now(UTC) - timedelta(1))
        revoked = await gateway.key(account_id)
        for record in (await bank.keys.page(account_id)).items:
            await bank.keys.revoke(record.id, actor="test", at=datetime.now(UTC))
        await gateway.refresh()
        answers, one = set(), browser()
        for key in [expired, revoked, *WRONG]:
            found = await one.sign_in(key)
            answers.add((found.status, found.body, frozenset(found.headers)))
            assert not one.signed_in
        ((status, _, _),) = answers
        assert status == 401
        nothing = await one.sign_in(" ")
        assert (nothing.status, nothing.document["error"]["param"]) == (400, "key") and not one.signed_in


async def test_every_key_costs_the_same_work(bank, monkeypatch):
    """Counted, not timed: hashes, comparisons, look-ups and queries."""
    account_id = await bank.customer()
    async with console(bank) as (gateway, browser):
        expired = await gateway.key(account_id, expires_at=datetime.now(UTC) - timedelta(1))
        revoked = await gateway.key(account_id)
        for record in (await bank.keys.page(account_id)).items:
            await bank.keys.revoke(record.id, actor="test", at=datetime.now(UTC))
        await gateway.refresh()
        work = []

        def counted(name, call):
            def run(*arguments, **more):
                work.append(name)
                return call(*arguments, **more)

            return run

        for module in (accounts_keys, accounts_sessions):
            monkeypatch.setattr(module, "hash_key", counted("hash", module.hash_key))
        monkeypatch.setattr(
            accounts_sessions.hmac, "compare_digest", counted("compare", accounts_sessions.hmac.compare_digest)
        )
        for name in ("read", "write"):
            monkeypatch.setattr(bank.database, name, counted(name, getattr(bank.database, name)))
        done = set()
        for key in (expired, revoked, ADMIN_KEY[:-1], "lcpg_" + "A" * 43, "x"):
            work.clear()
            assert (await browser().sign_in(key)).status == 401
            done.add(tuple(work))
        assert done == {("hash", "compare", "compare", "hash")}


def test_a_key_of_the_settings_is_compared_with_all_of_them():
    keys = SettingsKeys([(text, Role.OPERATOR, ADMINISTRATOR) for text in ("one", "two", "three")])
    assert keys.find("one")[2] == hashlib.sha256(b"one").digest()
    assert keys.find("four") is None


async def test_ten_attempts_a_minute_from_one_address(bank, monkeypatch):
    # Every six seconds one more fits.
    monkeypatch.setattr("lcp_gateway.app.wiring.console.Attempts", partial(Attempts, clock=lambda: 0.0))
    account_id = await bank.customer()
    async with console(bank) as (gateway, browser):
        one, key = browser(), await gateway.key(account_id)
        statuses = [(await one.sign_in("wrong")).status for _ in range(10)]
        assert statuses == [401] * 10
        refused = await one.sign_in(key)
        assert (refused.status, refused.code) == (429, "rate_limit_exceeded")
        assert 1 <= int(refused.headers["retry-after"]) <= 6
        assert (await gateway.ask("GET", "/api/wallet", key)).status == 200, "requests with the key go on"


async def test_a_hundred_attempts_a_minute_in_all_and_five_accounts_an_hour():
    now = 0.0
    limits = SignInLimits(Attempts(clock=lambda: now))
    done = 0
    with pytest.raises(ApiError) as caught:
        for number in range(20):
            for _ in range(10):
                await limits.attempt(f"192.0.2.{number}")
                done += 1
    assert (done, caught.value.status) == (100, 429)
    now = 60.0
    await limits.attempt("192.0.2.1")
    for _ in range(5):
        await limits.open_account("192.0.2.1")
    with pytest.raises(ApiError) as caught:
        await limits.open_account("192.0.2.1")
    assert caught.value.retry_after_s == 720, "a fifth of an hour"
    await limits.open_account("192.0.2.2")
    now += 720
    await limits.open_account("192.0.2.1")


async def test_an_ipv6_network_counts_as_one_address():
    limits = SignInLimits(Attempts(clock=lambda: 0.0))
    for number in range(10):
        await limits.attempt(f"2001:db8::{number:x}")
    with pytest.raises(ApiError):
        await limits.attempt("2001:db8::ff")


def test_a_limit_of_an_hour_fills_within_an_hour():
    now = 0.0
    limits = AddressLimits(period_s=3_600.0, clock=lambda: now)
    assert [limits.take("a", 2) for _ in range(3)] == [0.0, 0.0, 1_800.0]
    now = 1_800.0
    assert limits.take("a", 2) == 0.0


async def test_no_sign_in_over_plain_http_from_another_machine(bank):
    account_id = await bank.customer()
    elsewhere = {"Host": "gateway.example", "Origin": "http://gateway.example"}
    async with console(bank) as (gateway, browser):
        key = await gateway.key(account_id)
        found = await browser().sign_in(key, headers=elsewhere)
        assert (found.status, found.code) == (403, "signin_off")
        assert "https" in found.document["error"]["message"]
        described = await browser().send("GET", "/api/console", headers={"Host": "gateway.example"})
        assert described.document["signin"] == "off"
    async with console(bank, console_insecure=True) as (gateway, browser):
        one = browser()
        assert (await one.sign_in(key, headers=elsewhere)).status == 201
        assert (await one.send("GET", "/api/wallet", headers={"Host": "gateway.example"})).status == 200


async def test_sign_out_ends_the_session_and_removes_the_cookie(bank):
    account_id = await bank.customer()
    async with console(bank) as (gateway, browser):
        one, other = browser(), browser()
        key = await gateway.key(account_id)
        await one.sign_in(key)
        await other.sign_in(key)
        kept = dict(one.cookies)
        found = await one.send("DELETE", "/api/session")
        assert (found.status, found.document) == (200, {"object": "lcp.session", "deleted": True})
        assert not one.signed_in
        one.cookies = kept
        assert (await one.send("GET", "/api/wallet")).status == 401
        assert (await other.send("GET", "/api/wallet")).status == 200


async def test_sign_out_everywhere_ends_all_sessions_of_the_account(bank):
    account_id = await bank.customer()
    async with console(bank) as (gateway, browser):
        one, other, third = browser(), browser(), browser()
        await one.sign_in(await gateway.key(account_id, scopes=SIGN_IN))
        await other.sign_in(await gateway.key(account_id))
        await third.sign_in(await gateway.key(await bank.customer()))
        found = await one.send("DELETE", "/api/sessions")
        assert (found.status, found.document) == (200, {"object": "list", "deleted": 2})
        assert (await other.send("GET", "/api/wallet")).code == "session_expired"
        assert (await third.send("GET", "/api/wallet")).status == 200


async def test_a_key_that_is_revoked_elsewhere_ends_its_session_at_the_next_request(bank):
    account_id = await bank.customer()
    async with console(bank) as (gateway, browser):
        one = browser()
        await one.sign_in(await gateway.key(account_id))
        for record in (await bank.keys.page(account_id)).items:
            await bank.keys.revoke(record.id, actor="another gateway", at=datetime.now(UTC))
        # Without a refresh of this gateway's keys.
        assert (await one.send("GET", "/api/wallet")).code == "session_expired"


async def test_what_a_session_does_is_in_the_log_as_the_consoles(bank):
    async with console(bank) as (_gateway, browser):
        one = browser()
        await one.sign_in(ADMIN_KEY)
        assert (await one.send("POST", "/api/admin/accounts", json={"name": "alice"})).status == 201
        acts = [(act.actor, act.action) for act in (await bank.acts.page()).items]
        assert acts == [("console:admin", "account.create"), ("console:admin", "session.create")]


async def test_a_stale_key_store_refuses_sign_in_of_customers_and_not_of_the_operator(bank):
    account_id = await bank.customer()
    async with console(bank) as (gateway, browser):
        key = await gateway.key(account_id)
        gateway.key_sync.use([STATIC_KEY], -1.0)
        for wrong in (key, "x"):
            found = await browser().sign_in(wrong)
            assert (found.status, found.code) == (503, "keys_unavailable")
        assert (await browser().sign_in(ADMIN_KEY)).status == 201


async def test_a_page_learns_before_sign_in_what_it_needs_and_nothing_confidential(bank):
    async with console(bank, registration="invite", network="bcrt") as (_gateway, browser):
        found = await browser().send("GET", "/api/console")
        assert found.status == 200
        document = found.document
        assert (document["auth"], document["signin"], document["registration"]) == ("accounts", "key", "invite")
        assert document["topups"] == {
            "enabled": True,
            "reason": None,
            "min_msat": 1_000,
            "max_msat": 1_000_000_000,
            "expiry_s": 3_600,
            "open_max": 20,
        }
        assert document["withdrawals"] == {
            "enabled": False,
            "min_msat": 100_000,
            "max_msat": 100_000_000,
            "approval_msat": 50_000_000,
            "freeze_s": 86_400,
        }
        assert document["nodes"] is False
        assert (document["network"], document["demo"]) == ("regtest", False)
        assert document["base_url"] == f"{browser().origin}/v1"
        for secret in (ADMIN_KEY, STATIC_KEY):
            assert secret not in found.body.decode()
