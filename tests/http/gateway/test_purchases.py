"""/api/purchases: pages, filters, CSV, receipts, and unknown payments that the operator resolves."""

import asyncio
import csv
import io
import json

import pytest

from lcp_gateway.http.gateway.purchases import COST_FIELDS, CUSTOMER_FIELDS
from lcp_gateway.lightning.receipts import read_receipt
from lcp_gateway.store.database.engines import DatabaseUnavailable
from tests.http.front import ADMIN_KEY, front
from tests.http.gateway.bought import EVIL, make_history

PURCHASES = "/api/purchases"
ANN, BOB = "ann inference+wallet", "bob inference+wallet"


@pytest.fixture
async def gateway(bank):
    async with front(bank) as gateway:
        gateway.made = await make_history(gateway)
        yield gateway


async def all_of(gateway, key, query=""):
    found, after = [], ""
    while after is not None:
        page = await gateway.ask("GET", f"{PURCHASES}?limit=7&after={after}{query}", key)
        assert page.status == 200, page.document
        assert len(page.document["data"]) <= 7
        found += page.document["data"]
        after = page.document["after"]
    return found


async def test_pages_show_a_customer_its_purchases_once_the_newest_first(gateway):
    found = await all_of(gateway, gateway.made.keys[ANN])
    assert [one["job_id"] for one in found] == gateway.made.jobs["ann"]


async def test_a_customer_sees_charges_and_neither_price_nor_fee_nor_provider(gateway):
    for one in await all_of(gateway, gateway.made.keys[ANN]):
        assert tuple(one) == CUSTOMER_FIELDS
    delivered, _, undelivered, unknown, not_paid = (await all_of(gateway, gateway.made.keys[ANN]))[:5]
    assert (delivered["charge_msat"], delivered["charged_msat"], delivered["verdict"]) == (1_100, 1_100, "settled")
    assert (undelivered["refund"], undelivered["charged_msat"]) == ("given", 0)
    assert (unknown["verdict"], unknown["charged_msat"], unknown["charge_msat"]) == ("unknown", 0, 1_104)
    assert (not_paid["verdict"], not_paid["charged_msat"]) == ("none", 0)
    assert delivered["key_name"] == "k"


async def test_a_key_that_only_buys_sees_its_own_purchases(gateway):
    key = "ann inference"
    found = await all_of(gateway, gateway.made.keys[key])
    assert len(found) == 10 and {one["key_id"] for one in found} == {gateway.made.ids[key]}
    other = gateway.made.ids[ANN]
    assert await all_of(gateway, gateway.made.keys[key], f"&key={other}") == []


async def test_the_operator_sees_all_with_price_and_fee(gateway):
    found = await all_of(gateway, ADMIN_KEY)
    assert len(found) == 42
    assert tuple(found[-1]) == (*CUSTOMER_FIELDS, *COST_FIELDS)
    assert {one["account_id"] for one in found} == {*gateway.made.accounts.values(), None}
    of_bob = await all_of(gateway, ADMIN_KEY, f"&account={gateway.made.accounts['bob']}")
    assert sorted(one["job_id"] for one in of_bob) == sorted(gateway.made.jobs["bob"])
    (last,) = [one for one in found if one["job_id"] == gateway.made.jobs["ann"][2]]
    assert (last["price_msat"], last["cost_msat"], last["provider_blamed"]) == (1_002, 1_012, True)


async def test_filters_choose(gateway):
    for query, count in (
        ("model=m1", 7),
        ("state=unknown", 4),
        ("state=unknown,not_paid", 8),
        ("state=unknown&state=not_paid", 8),
        ("state=delivered&model=m1", 3),
        ("since=2020-01-01", 20),
        ("since=2099-01-01T00:00:00Z", 0),
        ("until=1500000000", 0),
        ("model=none", 0),
    ):
        found = await gateway.ask("GET", f"{PURCHASES}?{query}", gateway.made.keys[ANN])
        assert found.status == 200 and len(found.document["data"]) == count


async def test_a_wrong_parameter_is_named(gateway):
    for query, param in (
        ("limit=0", "limit"),
        ("limit=501", "limit"),
        ("limit=x", "limit"),
        ("after=x", "after"),
        ("after=1_zz", "after"),
        (f"after={'9' * 30}_{'ab' * 32}", "after"),
        ("state=quoted", "state"),
        ("state=gone", "state"),
        ("since=soon", "since"),
        ("until=99999-01-01", "until"),
        ("format=xml", "format"),
        ("model=%00", "model"),
        (f"model={'m' * 257}", "model"),
        ("peer=02ab", "peer"),
        ("account=acct_1", "account"),
        ("modle=m1", "modle"),
    ):
        found = await gateway.ask("GET", f"{PURCHASES}?{query}", gateway.made.keys[ANN])
        assert (found.status, found.document["error"]["param"]) == (400, param), query


async def test_all_of_it_as_csv_in_which_no_text_is_a_formula(gateway):
    for key, fields, count in (
        (gateway.made.keys[ANN], CUSTOMER_FIELDS, 20),
        (ADMIN_KEY, (*CUSTOMER_FIELDS, *COST_FIELDS), 42),
    ):
        found = await gateway.ask("GET", f"{PURCHASES}?format=csv", key)
        assert found.headers["Content-Type"].startswith("text/csv")
        assert "attachment" in found.headers["Content-Disposition"]
        lines = list(csv.reader(io.StringIO(found.body.decode())))
        assert tuple(lines[0]) == fields and len(lines) == count + 1
        models = {line[fields.index("model")] for line in lines[1:]}
        assert f"'{EVIL}" in models
        assert not any(cell.startswith(("=", "+", "@")) for line in lines for cell in line)
    nothing = await gateway.ask("GET", f"{PURCHASES}?format=csv&model=none", ADMIN_KEY)
    assert len(nothing.body.splitlines()) == 1


# -- one, and its receipt -------------------------------------------------------------------------


async def test_the_receipt_is_for_the_account_whichever_of_its_keys_bought_it(gateway):
    """Regression: a sibling of the key got 404, and the operator 403."""
    made = gateway.made
    job_id = made.jobs["ann"][0]
    for label in ("ann inference", ANN, "ann account"):
        found = await gateway.ask("GET", f"{PURCHASES}/{job_id}", made.keys[label])
        assert found.status == 200, label
        assert set(found.document["times"]) == {"paying", "settled", "delivered"}
        assert found.document["receipt"]["fee_msat"] is None
        receipt = await gateway.ask("GET", f"/v1/receipts/{job_id}", made.keys[label])
        assert receipt.document == found.document["receipt"]
    for path in (f"{PURCHASES}/{job_id}", f"/v1/receipts/{job_id.upper()}"):
        assert (await gateway.ask("GET", path, ADMIN_KEY)).status == 200
        assert (await gateway.ask("GET", path, made.keys[BOB])).status == 404
    sibling = made.jobs["ann"][1]
    assert (await gateway.ask("GET", f"{PURCHASES}/{sibling}", made.keys["ann inference"])).status == 404


async def test_the_receipt_is_a_file_that_can_be_verified(gateway):
    job_id = gateway.made.jobs["ann"][0]
    found = await gateway.ask("GET", f"{PURCHASES}/{job_id}?format=receipt", gateway.made.keys[ANN])
    assert found.headers["Content-Disposition"] == f'attachment; filename="receipt-{job_id[:16]}.json"'
    assert read_receipt(json.loads(found.body)).quote.job_id.hex() == job_id
    of_node = gateway.made.jobs["operator"][1]
    found = await gateway.ask("GET", f"{PURCHASES}/{of_node}", ADMIN_KEY)
    assert (found.status, found.document["receipt"], found.document["has_receipt"]) == (200, None, False)
    found = await gateway.ask("GET", f"{PURCHASES}/{of_node}?format=receipt", ADMIN_KEY)
    assert (found.status, found.code) == (404, "receipt_not_found")


async def test_what_was_not_bought_is_not_found(gateway):
    for job_id in ("00" * 32, "x", "%00", "ab" * 31, "AB" * 33):
        found = await gateway.ask("GET", f"{PURCHASES}/{job_id}", ADMIN_KEY)
        assert (found.status, found.code) == (404, "purchase_not_found")


# -- resolutions ----------------------------------------------------------------------------------


async def resolve(gateway, job_id, key=ADMIN_KEY, **asked):
    return await gateway.ask(
        "POST", f"/api/admin/purchases/{job_id}/resolution", key, json={"reason": "lnd says so", **asked}
    )


@pytest.mark.parametrize(
    ("state", "becomes", "charged"),
    [("not_paid", "not_paid", 0), ("settled", "undelivered", 0), ("undelivered", "undelivered", 0)],
)
async def test_the_operator_resolves_an_unknown_payment_once_and_it_is_logged(gateway, state, becomes, charged):
    job_id = gateway.made.jobs["ann"][3]
    held = (await gateway.bank.ledger.balance(gateway.made.accounts["ann"])).held_msat
    found = await resolve(gateway, job_id, state=state)
    assert (found.status, found.document["state"], found.document["charged_msat"]) == (200, becomes, charged)
    assert (await gateway.bank.ledger.balance(gateway.made.accounts["ann"])).held_msat == held - 1_104
    assert gateway.resolved == [(bytes.fromhex(job_id), found.document["state"])]
    again = await resolve(gateway, job_id, state=state)
    assert (again.status, again.code) == (409, "not_unknown") and becomes in again.document["error"]["message"]
    log = (await gateway.ask("GET", "/api/admin/log")).document["data"]
    (entry,) = [one for one in log if one["action"] == "purchase.resolve"]
    assert (entry["target"], entry["actor"]) == (job_id, "api:admin")
    assert entry["detail"] == {"reason": "lnd says so", "state": state}
    assert (await gateway.ask("GET", "/api/admin/audit")).document["ok"]


async def test_a_resolution_needs_the_operator_a_state_and_a_reason(gateway):
    job_id = gateway.made.jobs["ann"][3]
    assert (await resolve(gateway, job_id, gateway.made.keys[ANN], state="not_paid")).status == 403
    for asked, param in (
        ({"state": "delivered"}, "state"),
        ({}, "state"),
        ({"state": "not_paid", "reason": " "}, "reason"),
        ({"state": "not_paid", "reason": "r" * 501}, "reason"),
        ({"state": "not_paid", "resaon": "x"}, "resaon"),
    ):
        found = await resolve(gateway, job_id, **asked)
        assert (found.status, found.document["error"]["param"]) == (400, param)
    assert (await resolve(gateway, "00" * 32, state="not_paid")).code == "purchase_not_found"
    assert (await resolve(gateway, "zz", state="not_paid")).code == "purchase_not_found"
    delivered = await resolve(gateway, gateway.made.jobs["ann"][0], state="not_paid")
    assert (delivered.status, delivered.code) == (409, "not_unknown")
    assert gateway.resolved == []


async def test_a_file_that_breaks_off_is_never_taken_for_whole(gateway, monkeypatch):
    """Regression: an error behind the first page was written as another response into the body of the file."""
    page, pages = type(gateway.books).page, []

    async def first_page_only(self, which, *, limit, after):
        pages.append(after)
        if after is not None:
            raise DatabaseUnavailable("away")
        return await page(self, which, limit=2, after=after)

    monkeypatch.setattr(type(gateway.books), "page", first_page_only)
    for version in ("1.1", "1.0"):
        reader, writer = await asyncio.open_connection(gateway.client.host, gateway.client.port)
        head = f"GET {PURCHASES}?format=csv HTTP/{version}\r\nHost: x\r\nAuthorization: Bearer {ADMIN_KEY}\r\n\r\n"
        writer.write(head.encode())
        received = b""
        try:
            async with asyncio.timeout(60):
                while block := await reader.read(65_536):
                    received += block
            ended = "closed"
        except ConnectionResetError:
            ended = "reset"
        writer.close()
        assert received.count(b"HTTP/1.") == 1 and b"journal_unavailable" not in received
        assert not received.endswith(b"0\r\n\r\n") and (version == "1.1" or ended == "reset")
    assert len(pages) == 4
