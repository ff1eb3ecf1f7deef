"""Who is let in, to what, and what is said to everybody else."""

from datetime import UTC, datetime, timedelta

import pytest
from aiohttp.test_utils import make_mocked_request
from yarl import URL

from lcp_gateway.accounts.caller import Scope
from lcp_gateway.http.auth import BearerKeys
from lcp_gateway.http.door import EVERYONE, KeyDoor, OpenDoor, scope_of
from lcp_gateway.http.errors import ApiError
from tests.http.front import ADMIN_KEY, STATIC_KEY, front

CHAT = "/v1/chat/completions"
BAD_KEYS = ["", "x", "lcpg_", "lcpg_" + "A" * 43, "boss-of-it-al", "boss-of-it-all2", "\u00e9"]


def asked(authorization=None, path=CHAT):
    headers = {} if authorization is None else {"Authorization": authorization}
    return make_mocked_request("POST", path, headers=headers)


async def test_an_open_door_lets_everyone_in_as_nobody_who_is_charged():
    caller = await OpenDoor().admit(asked())
    assert (caller, caller.account_id, caller.key_id) == (EVERYONE, None, "")


async def test_the_static_keys_let_in_without_an_account():
    door = KeyDoor(BearerKeys(["one", "two"]))
    caller = await door.admit(asked("Bearer two"))
    assert caller.account_id is None and caller.key_id.startswith("key_")
    assert caller.rules.scopes == {Scope.INFERENCE}
    with pytest.raises(ApiError) as caught:
        await door.admit(asked("Bearer three"))
    assert caught.value.status == 401


@pytest.mark.parametrize(
    ("path", "scope"),
    [
        (CHAT, Scope.INFERENCE),
        ("/v1/models", Scope.INFERENCE),
        ("/api/models/route", Scope.INFERENCE),
        ("/api/wallet", Scope.WALLET),
        ("/api/wallet/topups/top_1", Scope.WALLET),
        ("/api/admin/accounts", Scope.ADMIN),
    ],
)
def test_a_path_asks_for_a_scope(path, scope):
    assert scope_of(path) is scope


async def test_the_administrators_key_looks_at_what_is_on_offer_and_buys_nothing(bank):
    """D4."""
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


async def test_a_customers_key_lets_in_for_its_account(bank):
    account_id = await bank.customer()
    async with front(bank) as gateway:
        key = await gateway.key(account_id)
        found = await gateway.ask("POST", CHAT, key)
        assert (found.status, found.document["account_id"]) == (200, account_id)
        assert key not in found.document["key_id"]
        assert (await gateway.ask("GET", "/api/wallet", key)).status == 200


@pytest.mark.parametrize("key", BAD_KEYS)
async def test_nobody_else_is_let_in_and_all_hear_the_same(bank, key):
    async with front(bank) as gateway:
        for method, path in (("POST", CHAT), ("GET", "/api/wallet"), ("GET", "/api/admin/log")):
            found = await gateway.ask(method, path, key)
            assert (found.status, found.code) == (401, "invalid_api_key")
            assert found.headers["WWW-Authenticate"] == "Bearer"
            assert found.headers["X-Lcp-Payment"] == "none"
        assert bank.till.asked == [], "no invoice for who came with a wrong key"


async def test_a_401_is_the_same_for_a_key_that_never_was_and_one_that_is_over(bank):
    account_id = await bank.customer()
    async with front(bank) as gateway:
        expired = await gateway.key(account_id, expires_at=datetime.now(UTC) - timedelta(1))
        revoked = await gateway.key(account_id)
        for record in (await bank.keys.page(account_id)).items:
            await bank.keys.revoke(record.id, actor="test", at=datetime.now(UTC))
        await gateway.refresh()
        bodies = {
            (await gateway.ask("POST", CHAT, key)).body
            for key in (expired, revoked, "lcpg_" + "A" * 43)
        }
        assert len(bodies) == 1


@pytest.mark.parametrize(
    ("scopes", "chat", "wallet", "admin"),
    [
        ({Scope.INFERENCE}, 200, 403, 403),
        ({Scope.WALLET}, 403, 200, 403),
        ({Scope.ADMIN}, 403, 403, 200),
        ({Scope.INFERENCE, Scope.WALLET}, 200, 200, 403),
        (set(), 403, 403, 403),
    ],
)
async def test_a_key_is_good_for_its_scopes_only(bank, scopes, chat, wallet, admin):
    account_id = await bank.customer()
    async with front(bank) as gateway:
        key = await gateway.key(account_id, scopes=frozenset(scopes))
        found = [
            (await gateway.ask(method, path, key))
            for method, path in (
                ("POST", CHAT),
                ("GET", "/api/wallet"),
                ("GET", "/api/admin/accounts"),
            )
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
            found = await gateway.ask("POST", "/api/agent/nobody/v1/chat/completions", header)
            assert (found.status, found.code) == (401, "invalid_api_key")
            assert "invoice" not in found.headers["WWW-Authenticate"]
            assert found.headers["Referrer-Policy"] == "no-referrer"


async def test_an_agents_address_leads_to_no_wallet_and_no_administration(bank):
    account_id = await bank.customer()
    async with front(bank) as gateway:
        key = await gateway.key(account_id, scopes=frozenset(Scope))
        for path in ("api/wallet", "api/admin/accounts", "v1/api/wallet"):
            assert (await gateway.ask("GET", f"/api/agent/{key}/{path}", key)).status == 404


async def test_a_spelling_of_a_path_does_not_change_what_it_asks_for(bank):
    account_id = await bank.customer()
    async with front(bank) as gateway:
        key = await gateway.key(account_id)
        for path in ("/api/%61dmin/accounts", "/api/wallet/../admin/log", "/api//admin/log"):
            address = URL(path, encoded=True)
            assert (await gateway.ask("GET", address, key)).status in {403, 404}, path


async def test_open_paths_ask_for_nothing(bank):
    async with front(bank) as gateway:
        assert (await gateway.ask("GET", "/healthz", None)).status == 200
