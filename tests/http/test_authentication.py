"""Which callers are admitted to which routes, and the errors that all others get."""

from datetime import UTC, datetime, timedelta

import pytest
from aiohttp.test_utils import make_mocked_request
from yarl import URL

from lcp_gateway.accounts.callers import Scope
from lcp_gateway.http.authentication import ANONYMOUS, LOCAL, OpenAuthenticator, StaticKeyAuthenticator, StaticKeys
from lcp_gateway.http.errors import ApiError
from tests.http.front import ADMIN_KEY, STATIC_KEY, front

CHAT = "/v1/chat/completions"
BAD_KEYS = ["", "x", "lcpg_", "lcpg_" + "A" * 43, "boss-of-it-al", "boss-of-it-all2", "\u00e9"]


def asked(authorization=None, path=CHAT):
    headers = {} if authorization is None else {"Authorization": authorization}
    return make_mocked_request("POST", path, headers=headers)


async def test_without_authentication_every_caller_is_anonymous_and_not_charged():
    caller = await OpenAuthenticator().admit(asked())
    assert (caller, caller.account_id, caller.key_id) == (ANONYMOUS, None, "")


async def test_the_static_keys_let_in_without_an_account():
    authenticator = StaticKeyAuthenticator(StaticKeys(["one", "two"]))
    caller = await authenticator.admit(asked("Bearer two"))
    assert caller.account_id is None and caller.key_id.startswith("key_")
    assert caller.rules.scopes == {Scope.INFERENCE}, "its holder may be another than that of the first"
    only = await StaticKeyAuthenticator(StaticKeys(["one"])).admit(asked("Bearer one"))
    assert only.rules.scopes == {Scope.INFERENCE, Scope.ADMIN}, "its holder is the operator"
    with pytest.raises(ApiError) as caught:
        await authenticator.admit(asked("Bearer three"))
    assert caught.value.status == 401


async def test_without_authentication_the_user_of_this_machine_is_the_operator():
    caller = await OpenAuthenticator(is_local=True).admit(asked(path="/api/providers"))
    assert (caller, caller.account_id, caller.key_id) == (LOCAL, None, "")
    assert Scope.ADMIN in caller.rules.scopes


@pytest.mark.parametrize(
    "path", ["/api/purchases", "/api/usage", "/api/events", "/api/providers", "/api/admin/overview"]
)
async def test_without_authentication_other_machines_buy_and_read_no_books(path):
    with pytest.raises(ApiError) as caught:
        await OpenAuthenticator().admit(asked(path=path))
    assert (caught.value.status, caught.value.code) == (403, "missing_scope")
    assert "loopback" in caught.value.message


async def test_the_administrators_key_reads_the_offers_and_buys_nothing(bank):
    route_only = {"X-Lcp-Route-Only": "true"}
    async with front(bank) as gateway:
        for method, path, headers in (
            ("GET", "/v1/models", {}),
            ("GET", "/v1/models/m", {}),
            ("POST", "/api/models/route", {}),
            ("POST", CHAT, route_only),
            ("POST", "/v1/responses", {"x-lcp-route-only": " TRUE "}),
        ):
            found = await gateway.ask(method, path, ADMIN_KEY, headers=headers)
            assert found.status == 200, (method, path)
        for method, path, headers in (
            ("POST", CHAT, {}),
            ("POST", CHAT, {"X-Lcp-Route-Only": "false"}),
            ("POST", CHAT, {"X-Lcp-Quote-Only": "true"}),
            ("POST", "/v1/responses/resp_1/cancel", route_only),
            ("POST", "/v1/chat/completions/chatcmpl_1", route_only),
            ("GET", "/v1/responses/resp_1", route_only),
            ("GET", "/v1/chat/completions", {}),
            ("GET", "/api/wallet", {}),
        ):
            found = await gateway.ask(method, path, ADMIN_KEY, headers=headers)
            assert (found.status, found.code) == (403, "missing_scope"), (method, path)


async def test_the_error_of_a_wrong_token_in_an_address_names_the_token(bank):
    """Regression: the error named a header."""
    async with front(bank) as gateway:
        found = await gateway.ask("POST", f"/api/agent/lcpa_wrong{CHAT}", None)
        assert (found.status, found.code) == (401, "invalid_api_key")
        assert "the token in the URL" in found.document["error"]["message"]
        assert "Authorization" not in found.document["error"]["message"]


async def test_a_customers_key_lets_in_for_its_account(bank):
    account_id = await bank.customer()
    async with front(bank) as gateway:
        key = await gateway.key(account_id)
        found = await gateway.ask("POST", CHAT, key)
        assert (found.status, found.document["account_id"]) == (200, account_id)
        assert key not in found.document["key_id"]
        assert (await gateway.ask("GET", "/api/wallet", key)).status == 200


@pytest.mark.parametrize("key", BAD_KEYS)
async def test_any_other_key_is_refused_with_the_same_error(bank, key):
    async with front(bank) as gateway:
        for method, path in (("POST", CHAT), ("GET", "/api/wallet"), ("GET", "/api/admin/log")):
            found = await gateway.ask(method, path, key)
            assert (found.status, found.code) == (401, "invalid_api_key")
            assert found.headers["WWW-Authenticate"] == "Bearer"
            assert found.headers["X-Lcp-Payment"] == "none"
        assert bank.invoices.asked == [], "no invoice for a request with a wrong key"


async def test_a_401_is_the_same_for_a_key_that_never_was_and_one_that_is_over(bank):
    account_id = await bank.customer()
    async with front(bank) as gateway:
        expired = await gateway.key(account_id, expires_at=datetime.now(UTC) - timedelta(1))
        revoked = await gateway.key(account_id)
        for record in (await bank.keys.page(account_id)).items:
            await bank.keys.revoke(record.id, actor="test", at=datetime.now(UTC))
        await gateway.refresh()
        bodies = {(await gateway.ask("POST", CHAT, key)).body for key in (expired, revoked, "lcpg_" + "A" * 43)}
        assert len(bodies) == 1


@pytest.mark.parametrize(
    ("scopes", "chat", "wallet", "admin"),
    [
        ({Scope.INFERENCE}, 200, 403, 403),
        ({Scope.WALLET}, 403, 200, 403),
        ({Scope.ADMIN}, 403, 403, 200),
        ({Scope.ACCOUNT}, 403, 200, 403),
        ({Scope.INFERENCE, Scope.WALLET}, 200, 200, 403),
        (set(), 403, 403, 403),
    ],
)
async def test_a_key_is_valid_for_its_scopes_only(bank, scopes, chat, wallet, admin):
    account_id = await bank.customer()
    async with front(bank) as gateway:
        key = await gateway.key(account_id, scopes=frozenset(scopes))
        found = [
            (await gateway.ask(method, path, key))
            for method, path in (("POST", CHAT), ("GET", "/api/wallet"), ("GET", "/api/admin/accounts"))
        ]
        assert [one.status for one in found] == [chat, wallet, admin]
        assert {one.code for one in found if one.status == 403} <= {"missing_scope"}


async def test_the_administrator_administers_and_nothing_else(bank):
    async with front(bank) as gateway:
        assert (await gateway.ask("GET", "/api/admin/accounts", ADMIN_KEY)).status == 200
        assert (await gateway.ask("POST", CHAT, ADMIN_KEY)).status == 403
        assert (await gateway.ask("GET", "/api/wallet", ADMIN_KEY)).status == 403


async def test_the_operators_own_key_buys_without_an_account_and_administers_nothing(bank):
    async with front(bank) as gateway:
        found = await gateway.ask("POST", CHAT, STATIC_KEY)
        assert (found.status, found.document["account_id"]) == (200, None)
        assert (await gateway.ask("GET", "/api/admin/accounts", STATIC_KEY)).status == 403


async def test_metrics_are_for_the_operator_and_not_for_customers(bank):
    account_id = await bank.customer()
    async with front(bank) as gateway:
        every = frozenset(Scope)
        key = await gateway.key(account_id, scopes=every)
        assert (await gateway.ask("GET", "/metrics", key)).code == "missing_scope"
        assert (await gateway.ask("GET", "/metrics", STATIC_KEY)).status == 200
        assert (await gateway.ask("GET", "/metrics", ADMIN_KEY)).status == 200
        assert (await gateway.ask("GET", "/metrics", None)).status == 401


@pytest.mark.parametrize("rest", ["/v1/chat/completions", "/chat/completions"])
async def test_an_agents_address_holds_its_key(bank, rest):
    account_id = await bank.customer()
    async with front(bank) as gateway:
        key = await gateway.key(account_id)
        found = await gateway.ask("POST", f"/api/agent/{key}{rest}", None)
        assert (found.status, found.document["account_id"]) == (200, account_id)
        assert found.headers["Referrer-Policy"] == "no-referrer"


async def test_an_agents_address_without_a_good_key_is_refused_whatever_the_header_says(bank):
    account_id = await bank.customer()
    async with front(bank) as gateway:
        key = await gateway.key(account_id)
        for header in (None, key, ADMIN_KEY):
            found = await gateway.ask("POST", "/api/agent/unknown/v1/chat/completions", header)
            assert (found.status, found.code) == (401, "invalid_api_key")
            assert "invoice" not in found.headers["WWW-Authenticate"]
            assert found.headers["Referrer-Policy"] == "no-referrer"


async def test_an_agents_address_leads_to_no_wallet_and_no_administration(bank):
    account_id = await bank.customer()
    async with front(bank) as gateway:
        key = await gateway.key(account_id, scopes=frozenset(Scope))
        for path in ("api/wallet", "api/admin/accounts", "v1/api/wallet"):
            assert (await gateway.ask("GET", f"/api/agent/{key}/{path}", key)).status == 404


async def test_another_spelling_of_a_path_needs_the_same_scope(bank):
    account_id = await bank.customer()
    async with front(bank) as gateway:
        key = await gateway.key(account_id)
        for path in ("/api/%61dmin/accounts", "/api/wallet/../admin/log", "/api//admin/log"):
            address = URL(path, encoded=True)
            assert (await gateway.ask("GET", address, key)).status in {403, 404}, path


async def test_open_paths_ask_for_nothing(bank):
    async with front(bank) as gateway:
        assert (await gateway.ask("GET", "/healthz", None)).status == 200


# -- an outdated list of keys ---------------------------------------------------------------


def grow_old(gateway) -> None:
    """Let the list of keys exceed its maximum age."""
    clock = gateway.key_sync._clock
    gateway.key_sync._clock = lambda: clock() + 3_601.0


async def test_while_the_list_of_keys_is_too_old_no_key_of_an_account_is_accepted(bank):
    """Regression: a key that was revoked during an outage of the database kept working."""
    account_id = await bank.customer()
    expected = (503, "keys_unavailable", "server_error", "true", "1", "none")
    names = ("x-should-retry", "retry-after", "X-Lcp-Payment")
    wrong = []
    async with front(bank) as gateway:
        key = await gateway.key(account_id)
        grow_old(gateway)
        for method, path in (
            ("POST", CHAT),
            ("POST", "/v1/responses"),
            ("POST", "/v1/completions"),
            ("POST", "/v1/embeddings"),
            ("GET", "/v1/models"),
            ("GET", "/v1/responses/resp_1"),
            ("GET", "/v1/chat/completions"),
            ("GET", "/v1/receipts/00"),
            ("POST", "/api/models/route"),
            ("GET", "/api/wallet"),
            ("POST", "/api/wallet/topups"),
        ):
            for text in (key, "lcpg_made-up"):
                got = await gateway.ask(method, path, text)
                kind = (got.document or {}).get("error", {}).get("type")
                found = (got.status, got.code, kind, *map(got.headers.get, names))
                if found != expected:
                    wrong.append((method, path, text, found))
    assert wrong == []


async def test_an_agents_address_and_an_l402_token_are_not_accepted_either(bank):
    account_id = await bank.customer()
    async with front(bank) as gateway:
        key = await gateway.key(account_id)
        challenge = await gateway.ask("POST", CHAT, None)
        assert challenge.status == 402
        macaroon = challenge.headers["WWW-Authenticate"].split('"')[1]
        grow_old(gateway)
        agent = await gateway.ask("POST", f"/api/agent/{key}/v1/chat/completions", None)
        token = {"Authorization": f"L402 {macaroon}:{'00' * 32}"}
        l402 = await gateway.ask("POST", CHAT, None, headers=token)
        assert [found.code for found in (agent, l402)] == ["keys_unavailable"] * 2


async def test_the_operators_own_keys_are_in_the_settings_and_go_on_being_accepted(bank):
    async with front(bank) as gateway:
        grow_old(gateway)
        assert (await gateway.ask("POST", CHAT, STATIC_KEY)).status == 200
        assert (await gateway.ask("GET", "/api/admin/accounts", ADMIN_KEY)).status == 200


async def test_without_a_key_it_is_401_whatever_the_list(bank):
    async with front(bank, with_l402=False) as gateway:
        grow_old(gateway)
        found = await gateway.ask("POST", CHAT, None)
        assert (found.status, found.code) == (401, "invalid_api_key")
        assert (await gateway.ask("GET", "/healthz", None)).status == 200


async def test_once_the_list_was_read_again_keys_are_accepted(bank):
    account_id = await bank.customer()
    async with front(bank) as gateway:
        key = await gateway.key(account_id)
        grow_old(gateway)
        assert (await gateway.ask("POST", CHAT, key)).status == 503
        await gateway.refresh()
        assert (await gateway.ask("POST", CHAT, key)).status == 200


# -- static keys ----------------------------------------------------------------------------------


def test_without_keys_every_request_is_admitted():
    StaticKeys([]).check(None)


@pytest.mark.parametrize("header", ["Bearer one", "bearer two", "Bearer  two "])
def test_any_of_the_keys_is_admitted(header):
    StaticKeys(["one", "two"]).check(header)


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", "Bearer on", "Basic one", "one", "Bearer one two"])
def test_any_other_header_is_refused(header):
    with pytest.raises(ApiError) as caught:
        StaticKeys(["one", "two"]).check(header)
    assert caught.value.status == 401
    assert caught.value.headers["WWW-Authenticate"] == "Bearer"
    assert caught.value.code == "invalid_api_key"
