"""/api/usage and /api/budgets: sums that a caller may see, held for the whole gateway, and what is left of budgets."""

import csv
import io

import pytest

from lcp_gateway.http.gateway.usage import ALL_SUMS, CUSTOMER_SUMS
from lcp_gateway.purchase.money import Period
from tests.http.front import ADMIN_KEY, front
from tests.http.gateway.bought import EVIL, make_history

USAGE, BUDGETS = "/api/usage", "/api/budgets"
ANN = "ann inference+wallet"


@pytest.fixture
async def gateway(bank):
    spending = {"budgets": {Period.DAY: 100_000}, "key_budgets": {Period.HOUR: 50_000}}
    async with front(bank, spending=spending) as gateway:
        gateway.made = await make_history(gateway)
        yield gateway


async def test_a_customers_sums_are_those_of_its_statement(gateway):
    for by in ("model", "key"):
        for period in ("hour", "day", "month"):
            found = await gateway.ask("GET", f"{USAGE}?by={by}&period={period}", gateway.made.keys[ANN])
            assert found.status == 200
            totals = found.document["totals"]
            assert tuple(totals) == CUSTOMER_SUMS
            for name in CUSTOMER_SUMS:
                assert totals[name] == sum(one[name] for one in found.document["groups"])
                assert totals[name] == sum(one[name] for one in found.document["data"])
            lines = (await gateway.ask("GET", "/api/wallet/transactions?limit=500", gateway.made.keys[ANN])).document[
                "data"
            ]
            taken = -sum(line["amount_msat"] for line in lines if line["cause"] in {"purchase", "refund"})
            assert totals["charged_msat"] == taken > 0
            wallet = (await gateway.ask("GET", "/api/wallet", gateway.made.keys[ANN])).document
            assert totals["held_msat"] == wallet["held_msat"] > 0
            assert (totals["purchases"], totals["undelivered"]) == (16, 4)


async def test_keys_are_named_and_the_operator_sees_the_cost(gateway):
    found = await gateway.ask("GET", f"{USAGE}?by=key", ADMIN_KEY)
    names = {one["id"]: one["name"] for one in found.document["groups"]}
    assert names[gateway.made.ids[ANN]] == "k" and names["key_static"] == "key_static"
    assert tuple(found.document["totals"]) == ALL_SUMS
    assert found.document["totals"]["purchases"] == 34
    of_ann = await gateway.ask("GET", f"{USAGE}?account={gateway.made.accounts['ann']}", ADMIN_KEY)
    assert of_ann.document["totals"]["purchases"] == 16
    peers = await gateway.ask("GET", f"{USAGE}?by=peer&peer=node:pet", ADMIN_KEY)
    assert [one["id"] for one in peers.document["groups"]] == ["node:pet"]


async def test_the_sums_of_the_whole_gateway_are_read_once_in_a_while(gateway, monkeypatch):
    # They are held for seconds, and on a busy machine five requests may take longer.
    monkeypatch.setattr("lcp_gateway.http.gateway.usage._HELD_S", 600.0)
    reads = []
    routes_read = type(gateway.books).usage

    async def counted(self, *arguments, **options):
        reads.append(arguments)
        return await routes_read(self, *arguments, **options)

    monkeypatch.setattr(type(gateway.books), "usage", counted)
    for _ in range(5):
        assert (await gateway.ask("GET", USAGE, ADMIN_KEY)).status == 200
    assert len(reads) == 1
    for _ in range(2):
        await gateway.ask("GET", USAGE, gateway.made.keys[ANN])
    assert len(reads) == 3


async def test_as_csv_no_text_is_a_formula(gateway):
    found = await gateway.ask("GET", f"{USAGE}?format=csv&by=model", gateway.made.keys[ANN])
    lines = list(csv.reader(io.StringIO(found.body.decode())))
    assert lines[0] == ["starts_at", "model", "name", *CUSTOMER_SUMS]
    assert {line[1] for line in lines[1:]} == {"m0", "m1", "m2", f"'{EVIL}"}


async def test_a_wrong_parameter_is_named(gateway):
    for query, param in (
        ("by=peer", "by"),
        ("by=colour", "by"),
        ("period=week", "period"),
        ("since=2000-01-01", "since"),
        ("period=hour&since=2026-01-01", "since"),
        ("peer=02", "peer"),
        ("limit=5", "limit"),
    ):
        found = await gateway.ask("GET", f"{USAGE}?{query}", gateway.made.keys[ANN])
        assert (found.status, found.document["error"]["param"]) == (400, param), query


async def test_budgets_of_a_customer_are_those_of_its_keys_and_not_the_gateways(gateway):
    made = gateway.made
    keyed = f"/api/account/keys/{made.ids[ANN]}"
    changed = await gateway.ask(
        "PATCH", keyed, made.keys["ann account"], json={"budget_day_msat": 12_000, "budget_hour_msat": 90_000}
    )
    assert changed.status == 200
    found = (await gateway.ask("GET", BUDGETS, made.keys[ANN])).document["data"]
    assert {one["key_id"] for one in found} == {
        made.ids[f"ann {rest}"] for rest in ("inference+wallet", "inference", "account")
    }
    assert {one["scope"] for one in found} == {"key"}
    (day,) = [one for one in found if one["period"] == "day"]
    assert (day["key_id"], day["limit_msat"], day["key_name"]) == (made.ids[ANN], 12_000, "k")
    assert day["spent_msat"] + day["left_msat"] == 12_000 or day["left_msat"] == 0
    assert day["starts_at"] < day["resets_at"]
    hours = {one["limit_msat"] for one in found if one["period"] == "hour"}
    assert hours == {50_000}, "a key's own limit does not raise that of the settings"
    own = (await gateway.ask("GET", BUDGETS, made.keys["ann inference"])).document["data"]
    assert [one["key_id"] for one in own] == [made.ids["ann inference"]]


async def test_the_operator_sees_the_gateways_budgets_and_a_warning_at_eighty_per_cent(gateway):
    day = (await gateway.ask("GET", BUDGETS, ADMIN_KEY)).document["data"][0]
    assert (day["scope"], day["key_id"], day["period"], day["limit_msat"]) == ("gateway", None, "day", 100_000)
    spent_msat = day["spent_msat"]
    for limit_msat, is_warning in ((spent_msat * 5 // 4, True), (spent_msat * 5 // 4 + 2, False)):
        async with front(gateway.bank, spending={"budgets": {Period.DAY: limit_msat}}) as other:
            (day,) = (await other.ask("GET", BUDGETS, ADMIN_KEY)).document["data"]
            assert (day["spent_msat"], day["is_warning"]) == (spent_msat, is_warning)
