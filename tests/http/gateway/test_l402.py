"""L402: which requests get an invoice, which routes a proof of payment admits to, and which proofs are refused."""

import base64
import hashlib
import re
from datetime import UTC, datetime, timedelta

import pytest
from aiohttp.test_utils import make_mocked_request
from yarl import URL

from lcp_gateway.accounts.l402 import Issuer, parse
from lcp_gateway.accounts.models import TopupPurpose, TopupState
from lcp_gateway.http.gateway import l402
from tests.http.front import PAGE, SECRET, front

CHAT = "/v1/chat/completions"
CHALLENGE = re.compile(r'L402 macaroon="([A-Za-z0-9+/=]+)", invoice="([a-z0-9]+)"')


async def challenged(gateway):
    """Send a request without credentials; return the macaroon and its top-up."""
    found = await gateway.ask("POST", CHAT, None)
    assert (found.status, found.code) == (402, "payment_required")
    macaroon, invoice = CHALLENGE.fullmatch(found.headers["WWW-Authenticate"]).groups()
    assert found.headers["Cache-Control"] == "no-store"
    made = [i for i in gateway.bank.invoices.made.values() if i.payment_request == invoice]
    return macaroon, made[0]


async def come(gateway, macaroon: str, preimage: bytes, *, scheme="L402", path=CHAT, method="POST"):
    header = f"{scheme} {macaroon}:{preimage.hex()}"
    return await gateway.ask(method, path, None, headers={"Authorization": header})


@pytest.fixture
async def gateway(bank):
    async with front(bank) as gateway:
        yield gateway


async def test_a_client_that_pays_the_invoice_has_that_balance(gateway):
    macaroon, invoice = await challenged(gateway)
    gateway.bank.invoices.pay(invoice.payment_hash)
    found = await come(gateway, macaroon, invoice.preimage)
    assert found.status == 200
    account_id = found.document["account_id"]
    assert await gateway.bank.available(account_id) == invoice.amount_msat == 50_000
    again = await come(gateway, macaroon, invoice.preimage, scheme="LSAT")
    assert again.document["account_id"] == account_id
    assert await gateway.bank.available(account_id) == 50_000, "credited once"
    wallet = await come(gateway, macaroon, invoice.preimage, path="/api/wallet", method="GET")
    assert wallet.document["available_msat"] == 50_000


async def test_two_payers_have_two_accounts(gateway):
    found = []
    for _ in range(2):
        macaroon, invoice = await challenged(gateway)
        gateway.bank.invoices.pay(invoice.payment_hash)
        found.append((await come(gateway, macaroon, invoice.preimage)).document)
    assert found[0]["account_id"] != found[1]["account_id"]
    assert found[0]["key_id"] != found[1]["key_id"]


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/v1/models"), ("GET", "/api/wallet"), ("POST", "/api/wallet/topups")]
)
async def test_only_a_request_that_buys_gets_an_invoice(gateway, method, path):
    found = await gateway.ask(method, path, None)
    assert (found.status, found.headers["WWW-Authenticate"]) == (401, "Bearer")
    assert gateway.bank.invoices.made == {}


async def test_without_l402_no_client_gets_an_invoice(bank):
    async with front(bank, with_l402=False) as gateway:
        assert (await gateway.ask("POST", CHAT, None)).status == 401
        macaroon = Issuer(SECRET).issue(b"h" * 32, "acct_x", datetime.now(UTC) + timedelta(1))
        assert (await come(gateway, macaroon.to_text(), b"p" * 32)).status == 401


async def test_a_macaroon_without_its_payment_opens_nothing(gateway):
    macaroon, invoice = await challenged(gateway)
    # The preimage is right, as an operator with the node's secrets might have it, but the invoice was not paid.
    assert (await come(gateway, macaroon, invoice.preimage)).status == 401
    assert (await come(gateway, macaroon, b"\0" * 32)).status == 401


async def test_anothers_preimage_opens_nothing(gateway):
    mine, my_invoice = await challenged(gateway)
    theirs, their_invoice = await challenged(gateway)
    for invoice in (my_invoice, their_invoice):
        gateway.bank.invoices.pay(invoice.payment_hash)
    assert (await come(gateway, mine, their_invoice.preimage)).status == 401
    assert (await come(gateway, theirs, my_invoice.preimage)).status == 401
    assert (await come(gateway, mine, my_invoice.preimage)).status == 200


async def test_a_macaroon_that_names_anothers_account_opens_nothing(gateway):
    macaroon, invoice = await challenged(gateway)
    gateway.bank.invoices.pay(invoice.payment_hash)
    victim = await gateway.bank.customer(9_000)
    stretched = parse(macaroon).with_caveat("account", victim).to_text()
    assert (await come(gateway, stretched, invoice.preimage)).status == 401
    # Even a macaroon with a valid signature: the payment belongs to another account.
    forged = Issuer(SECRET).issue(invoice.payment_hash, victim, datetime.now(UTC) + timedelta(days=1))
    assert (await come(gateway, forged.to_text(), invoice.preimage)).status == 401


async def test_a_macaroon_of_another_secret_or_changed_opens_nothing(gateway):
    macaroon, invoice = await challenged(gateway)
    gateway.bank.invoices.pay(invoice.payment_hash)
    account_id = (await come(gateway, macaroon, invoice.preimage)).document["account_id"]
    later = datetime.now(UTC) + timedelta(days=99)
    foreign = Issuer(b"t" * 32).issue(invoice.payment_hash, account_id, later).to_text()
    raw = base64.b64decode(macaroon)
    broken = [
        base64.b64encode(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]).decode() for at in (20, 90, len(raw) - 2)
    ]
    for bad in (foreign, *broken, macaroon[:-8], "AAAA", ""):
        assert (await come(gateway, bad, invoice.preimage)).status == 401, bad


async def test_an_expired_macaroon_is_refused_and_the_balance_stays(gateway):
    macaroon, invoice = await challenged(gateway)
    gateway.bank.invoices.pay(invoice.payment_hash)
    account_id = (await come(gateway, macaroon, invoice.preimage)).document["account_id"]
    gateway.l402.now = lambda: datetime.now(UTC) + timedelta(days=1, seconds=1)
    assert (await come(gateway, macaroon, invoice.preimage)).status == 401
    assert await gateway.bank.available(account_id) == 50_000


async def test_a_holder_can_narrow_its_time_and_not_widen_it(gateway):
    macaroon, invoice = await challenged(gateway)
    gateway.bank.invoices.pay(invoice.payment_hash)
    for seconds, status in ((-1, 401), (60, 200), (10**9, 200)):
        ends = int(datetime.now(UTC).timestamp()) + seconds
        narrowed = parse(macaroon).with_caveat("expires_at", str(ends)).to_text()
        assert (await come(gateway, narrowed, invoice.preimage)).status == status
    gateway.l402.now = lambda: datetime.now(UTC) + timedelta(days=2)
    assert (await come(gateway, narrowed, invoice.preimage)).status == 401


async def test_a_credential_for_an_invoice_that_was_forgotten_opens_nothing(gateway):
    unknown = hashlib.sha256(b"p" * 32).digest()
    good = Issuer(SECRET).issue(unknown, "acct_1", datetime.now(UTC) + timedelta(days=1))
    assert (await come(gateway, good.to_text(), b"p" * 32)).status == 401


async def test_a_wrong_credential_gets_no_invoice(gateway):
    await come(gateway, "AAAA", b"p" * 32)
    assert gateway.bank.invoices.made == {}


async def test_where_no_invoice_can_be_made_another_try_is_worth_it(gateway):
    gateway.bank.invoices.is_away = True
    found = await gateway.ask("POST", CHAT, None)
    assert (found.status, found.code) == (503, "topups_unavailable")
    assert "retry-after" in found.headers


async def test_while_lnd_cannot_be_reached_no_new_client_is_admitted_and_earlier_ones_stay(gateway):
    paid, unpaid = await challenged(gateway), await challenged(gateway)
    for _, invoice in (paid, unpaid):
        gateway.bank.invoices.pay(invoice.payment_hash)
    await come(gateway, paid[0], paid[1].preimage)
    gateway.bank.invoices.is_away = True
    assert (await come(gateway, paid[0], paid[1].preimage)).status == 200
    assert (await come(gateway, unpaid[0], unpaid[1].preimage)).status == 401
    gateway.bank.invoices.is_away = False
    assert (await come(gateway, unpaid[0], unpaid[1].preimage)).status == 200


async def test_where_too_many_are_unpaid_the_oldest_is_dropped_and_can_still_be_paid(gateway, monkeypatch):
    """Regression: the pool was full for an hour, and every other client got 429."""
    monkeypatch.setattr(l402, "_MOST_OPEN", 3)
    bank = gateway.bank
    account_id = await bank.customer()
    topup = await bank.wallet().top_up(account_id, 1_000)
    open_ones = [await challenged(gateway) for _ in range(5)]
    assert await bank.topups.open_count(datetime.now(UTC), purpose=TopupPurpose.L402) == 3
    states = [(await bank.topups.by_payment_hash(i.payment_hash)).state for _, i in open_ones]
    assert states == [TopupState.CANCELED] * 2 + [TopupState.OPEN] * 3
    assert (await bank.topups.get(topup.id)).state is TopupState.OPEN, "top-ups are not touched"
    for macaroon, invoice in (open_ones[0], open_ones[4]):
        bank.invoices.pay(invoice.payment_hash)
        assert (await come(gateway, macaroon, invoice.preimage)).status == 200


async def test_the_invoice_of_a_challenge_can_be_paid_for_a_quarter_of_an_hour(gateway):
    _, invoice = await challenged(gateway)
    left = invoice.expires_at - datetime.now(UTC)
    assert timedelta(minutes=14) < left <= timedelta(minutes=15)


async def test_a_client_that_asks_too_often_waits_and_no_other_does(bank):
    """Regression: one client's thousand invoices locked every other client out."""
    async with front(bank, l402_per_minute=3) as gateway:
        answers = [await gateway.l402.challenge(from_address("203.0.113.5")) for _ in range(20)]
        assert [error.status for error in answers] == [402] * 3 + [429] * 17
        assert {error.code for error in answers[3:]} == {"rate_limit_exceeded"}
        assert all(error.retry and 1 <= error.retry_after_s <= 20 for error in answers[3:])
        assert len(bank.invoices.made) == 3, "lnd is not troubled"
        for address in ("203.0.113.6", "2001:db8::1", "::1", None):
            assert (await gateway.l402.challenge(from_address(address))).status == 402
        key = await gateway.key(await bank.customer(1_000))
        assert (await gateway.ask("POST", CHAT, key)).status == 200


async def test_only_the_routes_that_buy_make_an_invoice(gateway):
    """Regression: GET requests got a challenge too."""
    wrong = []
    for method, path in (
        ("POST", "/no/such/path/completions"),
        ("POST", "/v1/chat/completions/"),
        ("POST", "/v1/chat/completions/chatcmpl_1"),
        ("POST", "/v1/responses/resp_1/completions"),
        ("POST", "/v1/responses/resp_1/cancel"),
        ("POST", "/responses"),
        ("POST", "/api/agent/x/v1/responses"),
        ("GET", CHAT),
        ("PUT", CHAT),
        ("DELETE", "/v1/responses"),
        ("OPTIONS", CHAT),
    ):
        found = await gateway.ask(method, URL(path, encoded=True), None)
        if (found.status, found.headers.get("WWW-Authenticate")) != (401, "Bearer"):
            wrong.append((method, path, found.status))
    assert wrong == []
    assert gateway.bank.invoices.made == {}


@pytest.mark.parametrize(
    "headers", [{"Origin": "https://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}]
)
async def test_a_page_of_another_origin_makes_its_visitors_ask_for_no_invoice(gateway, headers):
    found = await gateway.ask("POST", CHAT, None, headers=headers)
    assert found.status == 403
    assert gateway.bank.invoices.made == {}
    allowed = await gateway.ask("POST", CHAT, None, headers={"Origin": PAGE})
    assert allowed.status == 402


async def test_a_token_ends_with_its_account_at_once_and_on_every_gateway(bank):
    """Regression: the token of a deleted account bought 41 more times."""
    async with front(bank) as one, front(bank) as other:
        macaroon, invoice = await challenged(one)
        bank.invoices.pay(invoice.payment_hash)
        for gateway in (one, other):
            found = await come(gateway, macaroon, invoice.preimage)
            assert found.status == 200
        account_id = found.document["account_id"]
        assert (await one.ask("DELETE", f"/api/admin/accounts/{account_id}")).status in {200, 204}
        narrowed = parse(macaroon).with_caveat("expires_at", "99999999999").to_text()
        for gateway in (one, other):
            for token in (macaroon, narrowed):
                for method, path in (("POST", CHAT), ("GET", "/api/wallet"), ("GET", "/v1/models")):
                    found = await come(gateway, token, invoice.preimage, method=method, path=path)
                    assert (found.status, found.code) == (401, "invalid_api_key")
        assert await bank.available(account_id) == 50_000, "what is left stays"


def from_address(address):
    request = make_mocked_request("POST", CHAT, headers={"Host": "localhost"})
    return request.clone(remote=address) if address else request
