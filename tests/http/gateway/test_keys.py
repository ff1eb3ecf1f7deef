"""Customers manage the keys of their own account; a key shows how it is used, and can be changed."""

from datetime import UTC, datetime, timedelta

import pytest

from lcp_gateway.accounts.callers import Scope
from lcp_gateway.store.database.engines import DatabaseUnavailable
from tests.http.front import ADMIN_KEY, front
from tests.http.gateway.bought import make_history

KEYS = "/api/account/keys"
CHAT = "/v1/chat/completions"


@pytest.fixture
async def gateway(bank):
    async with front(bank) as gateway:
        gateway.account_id = await bank.customer(5_000)
        gateway.manager = await gateway.key(gateway.account_id, scopes=frozenset({Scope.ACCOUNT}))
        yield gateway


async def test_a_customer_makes_lists_changes_and_revokes_its_keys(gateway):
    made = await gateway.ask("POST", KEYS, gateway.manager, json={"name": "laptop", "budget_day_msat": 5_000})
    assert made.status == 201
    key, key_id = made.document.pop("key"), made.document["id"]
    assert made.document["account_id"] == gateway.account_id
    assert made.document["scopes"] == ["inference", "wallet"]
    assert (made.document["last_used_at"], made.document["spent_msat"]) == (None, {"hour": 0, "day": 0, "month": 0})
    assert set(made.document["resets_at"]) == {"hour", "day", "month"}
    assert (await gateway.ask("POST", CHAT, key)).status == 200
    seen = await gateway.ask("GET", f"{KEYS}/{key_id}", gateway.manager)
    assert seen.document == made.document
    assert next(one["id"] for one in (await gateway.ask("GET", KEYS, key)).document["data"]) == key_id
    changed = await gateway.ask(
        "PATCH",
        f"{KEYS}/{key_id}",
        gateway.manager,
        json={
            "name": "phone",
            "models": ["m"],
            "requests_per_minute": 3,
            "scopes": ["inference"],
            "expires_at": 4_000_000_000,
        },
    )
    expected = {**made.document, "name": "phone", "models": ["m"], "requests_per_minute": 3}
    assert changed.document == {**expected, "scopes": ["inference"], "expires_at": 4_000_000_000}
    assert (await gateway.ask("GET", "/api/wallet", key)).status == 403, "it holds at once"
    back = await gateway.ask("PATCH", f"{KEYS}/{key_id}", gateway.manager, json={"expires_at": None, "models": []})
    assert (back.document["expires_at"], back.document["models"], back.document["requests_per_minute"]) == (None, [], 3)
    revoked = await gateway.ask("DELETE", f"{KEYS}/{key_id}", gateway.manager)
    assert revoked.status == 200 and revoked.document["revoked_at"] is not None
    assert (await gateway.ask("POST", CHAT, key)).status == 401
    again = await gateway.ask("PATCH", f"{KEYS}/{key_id}", gateway.manager, json={"name": "x"})
    assert (again.status, again.code) == (409, "key_revoked")


@pytest.mark.parametrize("by", ["a customer", "the operator"])
async def test_a_new_key_is_shown_even_if_the_database_goes_away_right_after(gateway, monkeypatch, by):
    """Its text is in one response only: an error in its place would leave a key that works and that its holder never saw."""
    bank, write = gateway.bank, gateway.bank.database.write

    async def away(*_arguments):
        raise DatabaseUnavailable("away")

    async def last_write(work):
        done = await write(work)
        for name in ("read", "read_reserved", "write"):
            monkeypatch.setattr(bank.database, name, away)
        return done

    monkeypatch.setattr(bank.database, "write", last_write)
    path, key = (
        (KEYS, gateway.manager) if by == "a customer" else (f"/api/admin/accounts/{gateway.account_id}/keys", ADMIN_KEY)
    )
    made = await gateway.ask("POST", path, key, json={"name": "laptop"})
    assert made.status == 201
    assert (made.document["last_used_at"], set(made.document["resets_at"])) == (None, {"hour", "day", "month"})
    monkeypatch.undo()
    await gateway.refresh()
    assert (await gateway.ask("POST", CHAT, made.document["key"])).status == 200


async def test_a_revocation_that_was_written_is_not_answered_as_a_failure(gateway, monkeypatch):
    made = (await gateway.ask("POST", KEYS, gateway.manager, json={})).document

    async def away(*_arguments):
        raise DatabaseUnavailable("away")

    monkeypatch.setattr(gateway.bank.database, "read_reserved", away)
    revoked = await gateway.ask("DELETE", f"{KEYS}/{made['id']}", gateway.manager)
    assert revoked.status == 200 and revoked.document["revoked_at"] is not None


async def test_a_key_that_ends_or_is_shortened_is_refused_at_once(gateway):
    made = (await gateway.ask("POST", KEYS, gateway.manager, json={})).document
    past = (datetime.now(UTC) - timedelta(seconds=1)).isoformat()
    await gateway.ask("PATCH", f"{KEYS}/{made['id']}", gateway.manager, json={"expires_at": past})
    assert (await gateway.ask("POST", CHAT, made["key"])).status == 401


async def test_an_agents_token_has_its_path(gateway):
    made = (await gateway.ask("POST", KEYS, gateway.manager, json={"kind": "agent"})).document
    assert made["agent_path"] == f"/api/agent/{made['key']}/v1"
    assert (await gateway.ask("POST", f"{made['agent_path']}/chat/completions", None)).status == 200


async def test_a_wrong_field_is_named(gateway):
    made = (await gateway.ask("POST", KEYS, gateway.manager, json={})).document
    for asked, param in (
        ({"scopes": ["admin"]}, "scopes"),
        ({"scopes": ["everything"]}, "scopes"),
        ({"budget_day_msat": -1}, "budget_day_msat"),
        ({"budget_day_msat": "1"}, "budget_day_msat"),
        ({"kind": "robot"}, "kind"),
        ({"nmae": "x"}, "nmae"),
        ({"expires_at": "never"}, "expires_at"),
        ({"name": "n" * 129}, "name"),
        ({"models": "m"}, "models"),
        ({"models": ["m"] * 3 + [""]}, None),
    ):
        found = await gateway.ask("POST", KEYS, gateway.manager, json=asked)
        assert (found.status, found.document["error"]["param"]) == (400, param)
        if "kind" not in asked:
            found = await gateway.ask("PATCH", f"{KEYS}/{made['id']}", gateway.manager, json=asked)
            assert (found.status, found.document["error"]["param"]) == (400, param)
    assert len((await gateway.ask("GET", KEYS, gateway.manager)).document["data"]) == 2


async def test_a_key_that_may_not_manage_the_account_changes_no_key(gateway):
    buyer = await gateway.key(gateway.account_id)
    for method, path in (("POST", KEYS), ("PATCH", f"{KEYS}/key_1"), ("DELETE", f"{KEYS}/key_1")):
        assert (await gateway.ask(method, path, buyer, json={})).code == "missing_scope"
        assert (await gateway.ask(method, path, ADMIN_KEY, json={})).code == "missing_scope"
    assert (await gateway.ask("GET", KEYS, buyer)).status == 200


async def test_a_key_that_may_not_withdraw_makes_no_key_that_may(gateway):
    """A manager's key must not come to empty the wallet by a key that it makes or changes."""
    for method, path in (("POST", KEYS), ("PATCH", None)):
        made = (await gateway.ask("POST", KEYS, gateway.manager, json={})).document
        found = await gateway.ask(
            method, path or f"{KEYS}/{made['id']}", gateway.manager, json={"scopes": ["inference", "withdraw"]}
        )
        assert (found.status, found.document["error"]["param"]) == (400, "scopes")
    able = await gateway.key(gateway.account_id, scopes=frozenset({Scope.ACCOUNT, Scope.WITHDRAW}))
    made = await gateway.ask("POST", KEYS, able, json={"scopes": ["withdraw"]})
    assert (made.status, made.document["scopes"]) == (201, ["withdraw"])


async def test_the_keys_of_another_account_are_not_there(gateway):
    other = await gateway.bank.customer()
    await gateway.key(other)
    (record,) = (await gateway.bank.keys.page(other)).items
    for method in ("GET", "PATCH", "DELETE"):
        found = await gateway.ask(method, f"{KEYS}/{record.id}", gateway.manager, json={})
        assert (found.status, found.code) == (404, "key_not_found")
    assert (await gateway.bank.keys.get(record.id)).revoked_at is None


async def test_the_operator_changes_any_key_and_may_give_any_scope(gateway):
    made = (await gateway.ask("POST", KEYS, gateway.manager, json={})).document
    path = f"/api/admin/keys/{made['id']}"
    found = await gateway.ask("PATCH", path, ADMIN_KEY, json={"scopes": ["admin", "account"], "concurrent_jobs": 2})
    assert (found.status, found.document["scopes"], found.document["concurrent_jobs"]) == (200, ["account", "admin"], 2)
    kept = await gateway.ask("PATCH", f"{KEYS}/{made['id']}", gateway.manager, json={"scopes": ["admin"]})
    assert kept.document["scopes"] == ["admin"], "what the operator gave may stay"
    assert (await gateway.ask("PATCH", "/api/admin/keys/key_none", ADMIN_KEY, json={})).code == "key_not_found"
    log = (await gateway.ask("GET", "/api/admin/log")).document["data"]
    assert [one["action"] for one in log[:2]] == ["key.change", "key.change"]


async def test_a_key_shows_when_it_was_used_and_what_its_budgets_count(bank):
    async with front(bank) as gateway:
        made = await make_history(gateway)
        key_id = made.ids["ann inference"]
        found = (await gateway.ask("GET", f"{KEYS}/{key_id}", made.keys["ann account"])).document
        assert abs(found["last_used_at"] - datetime.now(UTC).timestamp()) < 600
        assert found["spent_msat"]["month"] >= found["spent_msat"]["day"] >= found["spent_msat"]["hour"]
        assert found["spent_msat"]["month"] > 0
        listed = (await gateway.ask("GET", "/api/admin/keys", ADMIN_KEY)).document["data"]
        assert found in listed
