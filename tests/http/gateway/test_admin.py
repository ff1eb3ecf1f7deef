"""/api/admin: accounts, keys, adjustments and purchases, and the log of all changes."""

import csv
import io
from datetime import UTC, datetime, timedelta

import pytest

from tests.http.front import front

ACCOUNTS = "/api/admin/accounts"
KEYS = "/api/admin/keys"
CHAT = "/v1/chat/completions"
NO_ACCOUNT = "acct_" + "0" * 24


@pytest.fixture
async def gateway(bank):
    async with front(bank) as gateway:
        yield gateway


@pytest.fixture
async def account_id(gateway) -> str:
    return (await gateway.ask("POST", ACCOUNTS, json={"name": "Ann"})).document["id"]


async def adjust(gateway, account_id, amount_msat, **headers):
    return await gateway.ask(
        "POST",
        f"{ACCOUNTS}/{account_id}/adjustments",
        json={"amount_msat": amount_msat, "reason": "because"},
        headers={name.replace("_", "-"): value for name, value in headers.items()},
    )


# -- accounts -------------------------------------------------------------------------------------


async def test_an_account_is_made_with_nothing_on_it_and_can_be_seen(gateway):
    made = await gateway.ask("POST", ACCOUNTS, json={"name": "Ann"})
    assert made.status == 201
    assert made.document["id"].startswith("acct_")
    assert (made.document["name"], made.document["balance_msat"]) == ("Ann", 0)
    seen = await gateway.ask("GET", f"{ACCOUNTS}/{made.document['id']}")
    assert (seen.status, seen.document) == (200, made.document)


@pytest.mark.parametrize("asked", [{}, {"name": ""}, {"name": " "}, {"name": 3}, {"name": "n" * 129}, {"nmae": "Ann"}])
async def test_an_account_needs_a_name(gateway, asked):
    found = await gateway.ask("POST", ACCOUNTS, json=asked)
    assert found.status == 400
    assert (await gateway.ask("GET", ACCOUNTS)).document["data"] == []


async def test_accounts_are_listed_in_pages(gateway):
    for number in range(5):
        await gateway.ask("POST", ACCOUNTS, json={"name": f"c{number}"})
    names, after = [], ""
    while after is not None:
        page = (await gateway.ask("GET", f"{ACCOUNTS}?limit=2&after={after}")).document
        names += [one["name"] for one in page["data"]]
        after = page["after"]
    assert names == ["c4", "c3", "c2", "c1", "c0"]


async def test_an_account_gets_another_name(gateway, account_id):
    found = await gateway.ask("PATCH", f"{ACCOUNTS}/{account_id}", json={"name": "Eve"})
    assert (found.status, found.document["name"]) == (200, "Eve")


async def test_a_deleted_account_has_no_name_and_its_keys_open_nothing_at_once(gateway, account_id):
    key = await gateway.key(account_id)
    assert (await gateway.ask("POST", CHAT, key)).status == 200
    found = await gateway.ask("DELETE", f"{ACCOUNTS}/{account_id}")
    assert (found.status, found.document) == (200, {"id": account_id, "deleted": True})
    assert (await gateway.ask("POST", CHAT, key)).status == 401
    left = (await gateway.ask("GET", f"{ACCOUNTS}/{account_id}")).document
    assert (left["name"], left["deleted"]) == ("", True)
    assert (await gateway.ask("DELETE", f"{ACCOUNTS}/{account_id}")).status == 404


async def test_a_missing_account_is_not_found(gateway):
    wrong = []
    for account in (NO_ACCOUNT, "x", "%00", "a%20b", "%FF", "z" * 200):
        for method, path, asked in (
            ("GET", "", None),
            ("PATCH", "", {"name": "n"}),
            ("DELETE", "", None),
            ("POST", "/adjustments", {"amount_msat": 1, "reason": "r"}),
            ("POST", "/keys", {"name": "k"}),
            ("GET", "/statement", None),
            ("GET", "/statement?format=csv", None),
        ):
            found = await gateway.ask(method, f"{ACCOUNTS}/{account}{path}", json=asked)
            if found.status != 404 or found.code not in {"account_not_found", "not_found"}:
                wrong.append((method, account, path, found.status, found.code))
    assert wrong == []


# -- adjustments ----------------------------------------------------------------------------------


async def test_an_amount_is_given_and_taken(gateway, account_id):
    assert (await adjust(gateway, account_id, 5_000)).document["balance_msat"] == 5_000
    found = await adjust(gateway, account_id, -2_000)
    assert (found.status, found.document["balance_msat"]) == (201, 3_000)


async def test_no_more_is_taken_than_is_there(gateway, account_id):
    await adjust(gateway, account_id, 5_000)
    found = await adjust(gateway, account_id, -5_001)
    assert (found.status, found.code) == (409, "insufficient_balance")
    assert await gateway.bank.available(account_id) == 5_000


async def test_with_an_idempotency_key_it_happens_once(gateway, account_id):
    for _ in range(3):
        found = await adjust(gateway, account_id, 5_000, Idempotency_Key="gift-1")
        assert (found.status, found.document["balance_msat"]) == (201, 5_000)
    other = await adjust(gateway, account_id, 6_000, Idempotency_Key="gift-1")
    assert (other.status, other.code) == (409, "id_reused")
    assert await gateway.bank.available(account_id) == 5_000


@pytest.mark.parametrize("key", ["", "x" * 129, "a b", "\u00e9"])
async def test_an_idempotency_key_that_can_be_none_is_refused(gateway, account_id, key):
    found = await adjust(gateway, account_id, 5_000, Idempotency_Key=key)
    assert (found.status, found.code) == (400, "invalid_header")
    assert await gateway.bank.available(account_id) == 0


async def test_an_adjustment_that_makes_no_sense_is_refused(gateway, account_id):
    accepted = []
    for asked in (
        {"reason": "r"},
        {"amount_msat": 1},
        {"amount_msat": 0, "reason": "r"},
        {"amount_msat": "1", "reason": "r"},
        {"amount_msat": 1.5, "reason": "r"},
        {"amount_msat": 2_100_000_000_000_000_001, "reason": "r"},
        {"amount_msat": 1, "reason": " "},
        {"amount_msat": 1, "reason": "r", "currency": "sat"},
    ):
        found = await gateway.ask("POST", f"{ACCOUNTS}/{account_id}/adjustments", json=asked)
        if found.status != 400:
            accepted.append((asked, found.status))
    assert accepted == []
    assert await gateway.bank.available(account_id) == 0


# -- keys -----------------------------------------------------------------------------------------


async def test_a_key_is_shown_once_and_opens_at_once(gateway, account_id):
    made = await gateway.ask("POST", f"{ACCOUNTS}/{account_id}/keys", json={"name": "laptop"})
    assert made.status == 201
    document = made.document
    key = document.pop("key")
    assert key.startswith(document["prefix"]) and len(key) == 48
    assert (await gateway.ask("POST", CHAT, key)).status == 200
    seen = await gateway.ask("GET", f"{KEYS}/{document['id']}")
    assert seen.document == document
    for path in (KEYS, f"{ACCOUNTS}/{account_id}/keys", f"{KEYS}/{document['id']}"):
        assert key not in (await gateway.ask("GET", path)).body.decode()


async def test_a_key_has_the_rules_that_were_asked_for(gateway, account_id):
    rules = {
        "scopes": ["inference"],
        "models": ["m1", "m2"],
        "max_price_msat": 9,
        "requests_per_minute": 8,
        "tokens_per_minute": 7,
        "budget_hour_msat": 6,
        "budget_day_msat": 5,
        "budget_month_msat": 4,
        "concurrent_jobs": 3,
        "expires_at": 1_900_000_000,
    }
    made = await gateway.ask("POST", f"{ACCOUNTS}/{account_id}/keys", json={"name": "laptop", **rules})
    assert made.status == 201
    found = {name: made.document[name] for name in rules}
    assert found == rules
    record = await gateway.bank.keys.get(made.document["id"])
    assert record.rules.models == {"m1", "m2"}
    assert record.rules.expires_at == datetime.fromtimestamp(1_900_000_000, UTC)


async def test_a_key_for_agents_says_where_it_is_used(gateway, account_id):
    made = await gateway.ask("POST", f"{ACCOUNTS}/{account_id}/keys", json={"name": "a", "kind": "agent"})
    assert made.document["agent_path"] == f"/api/agent/{made.document['key']}/v1"
    used = await gateway.ask("POST", made.document["agent_path"] + "/chat/completions", None)
    assert used.document["account_id"] == account_id


async def test_a_rule_that_makes_no_sense_makes_no_key(gateway, account_id):
    wrong = []
    for rules, param in (
        ({"scopes": ["everything"]}, "scopes"),
        ({"scopes": "inference"}, "scopes"),
        ({"models": [1]}, "models"),
        ({"max_price_msat": -1}, "max_price_msat"),
        ({"requests_per_minute": "60"}, "requests_per_minute"),
        ({"concurrent_jobs": 1.5}, "concurrent_jobs"),
        ({"expires_at": "tomorrow"}, "expires_at"),
        ({"expires_at": 10**18}, "expires_at"),
        ({"kind": "master"}, "kind"),
        ({"name": "n" * 129}, "name"),
        ({"budget": 5}, "budget"),
    ):
        asked = {"name": "k", **rules}
        found = await gateway.ask("POST", f"{ACCOUNTS}/{account_id}/keys", json=asked)
        if found.status != 400 or found.document["error"]["param"] != param:
            wrong.append((rules, found.status, found.document))
    assert wrong == []
    assert (await gateway.ask("GET", KEYS)).document["data"] == []


async def test_a_revoked_key_opens_nothing_at_once_and_the_others_still_do(gateway, account_id):
    path = f"{ACCOUNTS}/{account_id}/keys"
    one, two = [(await gateway.ask("POST", path, json={"name": "k"})).document for _ in range(2)]
    found = await gateway.ask("DELETE", f"{KEYS}/{one['id']}")
    assert found.status == 200 and found.document["revoked_at"] is not None
    assert (await gateway.ask("POST", CHAT, one["key"])).status == 401
    assert (await gateway.ask("POST", CHAT, two["key"])).status == 200
    again = await gateway.ask("DELETE", f"{KEYS}/{one['id']}")
    assert again.document["revoked_at"] == found.document["revoked_at"]


@pytest.mark.parametrize("key", ["key_" + "0" * 16, "%00", "x"])
@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_a_missing_key_is_not_found(gateway, method, key):
    assert (await gateway.ask(method, f"{KEYS}/{key}")).status == 404


async def test_keys_are_listed_of_one_account_and_of_all(gateway, account_id):
    other = await gateway.bank.customer()
    for account in (account_id, account_id, other):
        await gateway.key(account)
    path = f"{ACCOUNTS}/{account_id}/keys"
    assert len((await gateway.ask("GET", path)).document["data"]) == 2
    first = (await gateway.ask("GET", f"{KEYS}?limit=2")).document
    rest = (await gateway.ask("GET", f"{KEYS}?limit=2&after={first['after']}")).document
    found = first["data"] + rest["data"]
    assert [one["account_id"] for one in found] == [other, account_id, account_id]
    assert rest["after"] is None


# -- purchases and ledger ------------------------------------------------------------------------------------


async def test_a_statement_is_given_as_json_in_pages_and_as_csv_whole(gateway, account_id, monkeypatch):
    monkeypatch.setattr("lcp_gateway.http.gateway.admin._PAGE", 2)
    for amount in (5_000, -1_000, 300, -7, 20):
        await adjust(gateway, account_id, amount)
    path = f"{ACCOUNTS}/{account_id}/statement"
    page = (await gateway.ask("GET", f"{path}?limit=3")).document
    rest = (await gateway.ask("GET", f"{path}?limit=3&after={page['after']}")).document
    lines = page["data"] + rest["data"]
    assert [line["amount_msat"] for line in lines] == [20, -7, 300, -1_000, 5_000]
    found = await gateway.ask("GET", f"{path}?format=csv")
    assert found.headers["Content-Type"].startswith("text/csv")
    assert f"{account_id}.csv" in found.headers["Content-Disposition"]
    rows = list(csv.DictReader(io.StringIO(found.body.decode())))
    assert [(row["id"], int(row["balance_msat"])) for row in rows] == [
        (line["id"], line["balance_msat"]) for line in lines
    ]


@pytest.mark.parametrize("after", ["x", "%C2%B2", "9" * 30])
async def test_a_place_that_no_page_gave_is_refused(gateway, account_id, after):
    for path in (f"{ACCOUNTS}/{account_id}/statement", "/api/admin/log"):
        assert (await gateway.ask("GET", f"{path}?after={after}")).status == 400


async def test_the_audit_finds_the_ledger_right_and_shows_its_totals(gateway, account_id):
    await adjust(gateway, account_id, 5_000)
    found = (await gateway.ask("GET", "/api/admin/audit")).document
    assert (found["ok"], found["problems"]) == (True, [])
    assert (found["accounts"], found["balance_msat"], found["held_msat"]) == (1, 5_000, 0)
    assert found["books"] == {"customers": 5_000, "adjustments": -5_000}


async def test_everything_that_an_administrator_does_is_written_down(gateway, account_id):
    made = await gateway.ask("POST", f"{ACCOUNTS}/{account_id}/keys", json={"name": "secret-name"})
    await adjust(gateway, account_id, 5_000)
    await gateway.ask("PATCH", f"{ACCOUNTS}/{account_id}", json={"name": "Eve"})
    await gateway.ask("DELETE", f"{KEYS}/{made.document['id']}")
    await gateway.ask("DELETE", f"{ACCOUNTS}/{account_id}")
    found = await gateway.ask("GET", "/api/admin/log")
    acts = found.document["data"]
    assert [act["action"] for act in acts][::-1] == [
        "account.create",
        "key.create",
        "account.adjust",
        "account.rename",
        "key.revoke",
        "account.delete",
    ]
    assert {act["actor"] for act in acts} == {"api:admin"}
    for secret in (made.document["key"], "Eve"):
        assert secret not in found.body.decode()
    first = (await gateway.ask("GET", "/api/admin/log?limit=4")).document
    rest = (await gateway.ask("GET", f"/api/admin/log?limit=4&after={first['after']}")).document
    assert first["data"] + rest["data"] == acts


async def test_an_administrators_key_of_an_account_is_named_in_the_log(gateway, account_id):
    from lcp_gateway.accounts.callers import Scope

    key = await gateway.key(
        account_id, scopes=frozenset({Scope.ADMIN}), expires_at=datetime.now(UTC) + timedelta(hours=1)
    )
    assert (await gateway.ask("POST", ACCOUNTS, key, json={"name": "Bob"})).status == 201
    (act, *_) = (await gateway.ask("GET", "/api/admin/log")).document["data"]
    assert act["actor"].startswith("api:key_") and key not in act["actor"]
