"""/api/wallet: a customer sees and tops up its own wallet only."""

import pytest

from lcp_gateway.accounts.wallet import InvoiceNotPaid
from lcp_gateway.store.database.engines import DatabaseUnavailable
from tests.http.front import STATIC_KEY, front

WALLET = "/api/wallet"
TOPUPS = "/api/wallet/topups"


@pytest.fixture
async def gateway(bank):
    async with front(bank, min_msat=1_000, max_msat=9_000_000, most_open=3) as gateway:
        yield gateway


@pytest.fixture
async def customer(gateway):
    """Create a customer with 7,000 msat; return the account's id and a key."""
    account_id = await gateway.bank.customer(7_000)
    return account_id, await gateway.key(account_id)


async def test_a_wallet_shows_its_balance_and_the_held_part(gateway, customer):
    found = await gateway.ask("GET", WALLET, customer[1])
    assert found.document == {"object": "lcp.wallet", "balance_msat": 7_000, "held_msat": 0, "available_msat": 7_000}


@pytest.mark.parametrize(("asked", "amount_msat"), [({"amount_sat": 21}, 21_000), ({"amount_msat": 1_234}, 1_234)])
async def test_a_top_up_is_made_from_satoshi_or_from_millisatoshi(gateway, customer, asked, amount_msat):
    found = await gateway.ask("POST", TOPUPS, customer[1], json={**asked, "memo": "rent"})
    assert found.status == 201
    document = found.document
    assert document["amount_msat"] == amount_msat
    assert (document["status"], document["memo"]) == ("open", "rent")
    assert (document["received_msat"], document["settled_at"]) == (None, None)
    assert document["expires_at"] - document["created_at"] == pytest.approx(3_600, abs=2)
    (invoice,) = gateway.bank.invoices.made.values()
    assert document["payment_request"] == invoice.payment_request
    assert document["payment_hash"] == invoice.payment_hash.hex()
    assert invoice.preimage.hex() not in found.body.decode()
    seen = await gateway.ask("GET", f"{TOPUPS}/{document['id']}", customer[1])
    assert seen.document == document


async def test_an_invalid_top_up_is_refused_with_its_field(gateway, customer):
    wrong = []
    for asked, code, param in (
        ({}, "missing_required_parameter", "amount_sat"),
        ({"amount_sat": 1, "amount_msat": 1_000}, "missing_required_parameter", "amount_sat"),
        ({"amount_sat": "21"}, "invalid_type", "amount_sat"),
        ({"amount_sat": 2.5}, "invalid_type", "amount_sat"),
        ({"amount_sat": True}, "invalid_type", "amount_sat"),
        ({"amount_msat": -5_000}, "invalid_value", "amount_msat"),
        ({"amount_msat": 999}, "invalid_value", "amount_msat"),
        ({"amount_msat": 9_000_001}, "invalid_value", "amount_msat"),
        ({"amount_sat": 2_100_000_000_000_000_000}, "invalid_value", "amount_msat"),
        ({"amount_sat": 10**30}, "invalid_json", None),
        ({"amount_sat": 21, "memo": "m" * 129}, "invalid_value", "memo"),
        ({"amount_sat": 21, "memo": "a\nb"}, "invalid_value", "memo"),
        ({"amount_sat": 21, "amount": 3}, "unknown_parameter", "amount"),
    ):
        found = await gateway.ask("POST", TOPUPS, customer[1], json=asked)
        is_right = found.status == 400 and found.code in {code, "invalid_type"}
        if not is_right or (param and found.document["error"]["param"] != param):
            wrong.append((asked, found.status, found.document))
    assert wrong == []
    assert gateway.bank.invoices.asked == []


@pytest.mark.parametrize("body", [b"{", b"[]", b"3", b"\xff", b"null"])
async def test_a_body_that_is_no_object_is_refused(gateway, customer, body):
    found = await gateway.ask("POST", TOPUPS, customer[1], data=body)
    assert (found.status, found.code) == (400, "invalid_json")


async def test_polling_shows_the_payment_and_its_amount(gateway, customer):
    account_id, key = customer
    made = (await gateway.ask("POST", TOPUPS, key, json={"amount_msat": 2_000})).document
    gateway.bank.invoices.pay(bytes.fromhex(made["payment_hash"]), 2_500)
    found = (await gateway.ask("GET", f"{TOPUPS}/{made['id']}", key)).document
    assert (found["status"], found["received_msat"]) == ("settled", 2_500)
    assert found["settled_at"] is not None
    assert await gateway.bank.available(account_id) == 9_500
    lines = (await gateway.ask("GET", "/api/wallet/transactions", key)).document["data"]
    assert [(line["cause"], line["amount_msat"], line["balance_msat"]) for line in lines] == [
        ("topup", 2_500, 9_500),
        ("adjustment", 7_000, 7_000),
    ]
    assert lines[0]["cause_id"] == made["id"]


async def test_an_invoice_is_drawn_as_svg_and_png(gateway, customer):
    made = (await gateway.ask("POST", TOPUPS, customer[1], json={"amount_sat": 2})).document
    svg = await gateway.ask("GET", made["qr_svg"], customer[1])
    png = await gateway.ask("GET", made["qr_png"], customer[1])
    assert svg.headers["Content-Type"] == "image/svg+xml" and b"<svg" in svg.body
    assert png.headers["Content-Type"] == "image/png" and png.body.startswith(b"\x89PNG")
    assert "no-store" in svg.headers["Cache-Control"]
    gif = await gateway.ask("GET", made["qr_png"].replace("png", "gif"), customer[1])
    assert gif.status == 404


async def test_anothers_top_up_is_not_found_in_any_form(gateway, customer):
    made = (await gateway.ask("POST", TOPUPS, customer[1], json={"amount_sat": 2})).document
    another = await gateway.key(await gateway.bank.customer())
    gone = await gateway.ask("GET", f"{TOPUPS}/top_{'0' * 24}", another)
    for path in (f"{TOPUPS}/{made['id']}", made["qr_svg"], made["qr_png"]):
        found = await gateway.ask("GET", path, another)
        assert (found.status, found.code) == (404, "topup_not_found")
        assert found.body == gone.body, "the two cannot be told apart"
    assert (await gateway.ask("GET", TOPUPS, another)).document["data"] == []
    assert (await gateway.ask("GET", "/api/wallet/transactions", another)).document["data"] == []


async def test_too_many_unpaid_ones_are_refused(gateway, customer):
    answers = [await gateway.ask("POST", TOPUPS, customer[1], json={"amount_sat": 2}) for _ in range(4)]
    assert [answer.status for answer in answers] == [201, 201, 201, 429]
    assert answers[3].code == "too_many_open_topups"


async def test_lists_come_in_pages_the_newest_first(gateway, customer):
    _, key = customer
    made = [(await gateway.ask("POST", TOPUPS, key, json={"amount_sat": 2})).document["id"] for _ in range(3)]
    first = (await gateway.ask("GET", f"{TOPUPS}?limit=2", key)).document
    rest = (await gateway.ask("GET", f"{TOPUPS}?limit=2&after={first['after']}", key)).document
    assert [one["id"] for one in first["data"] + rest["data"]] == made[::-1]
    assert rest["after"] is None


async def test_transactions_come_in_pages(gateway, customer):
    account_id, key = customer
    for _ in range(4):
        topup = await gateway.bank.wallet().top_up(account_id, 1_000)
        gateway.bank.invoices.pay(topup.payment_hash)
        await gateway.bank.wallet().topup(account_id, topup.id)
    path, balances = "/api/wallet/transactions?limit=2", []
    after = ""
    while after is not None:
        page = (await gateway.ask("GET", f"{path}&after={after}", key)).document
        balances += [line["balance_msat"] for line in page["data"]]
        after = page["after"]
    assert balances == [11_000, 10_000, 9_000, 8_000, 7_000]


@pytest.mark.parametrize("after", ["x", "-1", "%C2%B2", "1.5", "9" * 40, "%00"])
async def test_a_place_in_the_transactions_that_no_page_gave_is_refused(gateway, customer, after):
    found = await gateway.ask("GET", f"/api/wallet/transactions?after={after}", customer[1])
    assert (found.status, found.code) == (400, "invalid_value")


@pytest.mark.parametrize("limit", ["0", "501", "x", "-1", "1e2", "", "9" * 30])
async def test_a_page_of_an_impossible_size_is_refused(gateway, customer, limit):
    for path in (TOPUPS, "/api/wallet/transactions"):
        found = await gateway.ask("GET", f"{path}?limit={limit}", customer[1])
        assert (found.status, found.document["error"]["param"]) == (400, "limit")


async def test_an_unreachable_lnd_is_named_and_may_be_tried_again(gateway, customer):
    made = (await gateway.ask("POST", TOPUPS, customer[1], json={"amount_sat": 2})).document
    gateway.bank.invoices.is_away = True
    for found in (
        await gateway.ask("POST", TOPUPS, customer[1], json={"amount_sat": 2}),
        await gateway.ask("GET", f"{TOPUPS}/{made['id']}", customer[1]),
    ):
        assert (found.status, found.code) == (503, "topups_unavailable")
        assert "retry-after" in found.headers


async def test_a_key_of_no_account_has_no_wallet(gateway):
    found = await gateway.ask("GET", WALLET, STATIC_KEY)
    assert found.status == 403


async def test_books_that_cannot_be_read_are_said_to_be_away_and_worth_another_try(gateway, customer, monkeypatch):
    async def unreachable(_account_id):
        raise DatabaseUnavailable("gone")

    monkeypatch.setattr(gateway.bank.ledger, "balance", unreachable)
    found = await gateway.ask("GET", WALLET, customer[1])
    assert (found.status, found.code) == (503, "journal_unavailable")
    assert found.headers["x-should-retry"] == "true" and found.headers["retry-after"]
    assert found.headers["X-Lcp-Payment"] == "none"


@pytest.mark.parametrize(("is_final", "status", "retry"), [(True, 409, "false"), (False, 503, "true")])
async def test_a_demo_payment_that_the_node_refuses_is_an_error(bank, is_final, status, retry):
    """Regression: paying an invoice that had been paid otherwise returned 500."""

    async def pay(payment_request):
        raise InvoiceNotPaid("invoice is already paid", is_final=is_final)

    async with front(bank, min_msat=1_000, max_msat=9_000_000, pay_for_demo=pay) as gateway:
        key = await gateway.key(await gateway.bank.customer(7_000))
        made = await gateway.ask("POST", TOPUPS, key, json={"amount_sat": 21})
        found = await gateway.ask("POST", f"{TOPUPS}/{made.document['id']}/demo-payment", key)
    assert (found.status, found.headers["x-should-retry"]) == (status, retry)
    assert "already paid" in found.document["error"]["message"]
