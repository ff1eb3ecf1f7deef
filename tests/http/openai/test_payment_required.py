"""The 402 that can be paid."""

import structlog

from lcp_gateway.accounts.callers import Caller, KeyRules
from lcp_gateway.http.context import RequestContext
from lcp_gateway.http.errors import ApiError
from lcp_gateway.http.openai.payment_required import PaymentRequired
from lcp_gateway.purchase.journal import InsufficientBalance
from lcp_gateway.purchase.money import Msat
from tests.support.purchases import quote

LOG = structlog.get_logger()


def too_low(required_msat: int = 5_500, available_msat: int = 1_200) -> InsufficientBalance:
    return InsufficientBalance(quote(5_000), Msat(required_msat), Msat(available_msat))


async def refused(bank, account_id, wallet=None, error=None) -> ApiError:
    context = RequestContext("req_1", caller=Caller("key_1", account_id, KeyRules()))
    payment_required = PaymentRequired(wallet or bank.wallet(), LOG)
    return await payment_required.error_for(context, error or too_low())


async def test_a_402_carries_the_required_amount_the_balance_and_an_invoice_for_the_rest(bank):
    account_id = await bank.customer(1_200)
    error = await refused(bank, account_id)
    assert (error.status, error.code, error.retry) == (402, "insufficient_balance", False)
    (topup,) = (await bank.topups.page(account_id)).items
    said = error.as_object()["lcp"]
    assert (said["required_msat"], said["balance_msat"], said["payment"]) == (5_500, 1_200, "none")
    assert said["topup"] == {
        "id": topup.id,
        "amount_msat": 5_000,
        "payment_request": topup.payment_request,
        "expires_at": int(topup.expires_at.timestamp()),
    }
    assert said["quote_id"], "the quote can still be taken once it is paid"


async def test_a_customer_who_pays_that_invoice_has_enough(bank):
    account_id = await bank.customer(1_200)
    await refused(bank, account_id)
    (topup,) = (await bank.topups.page(account_id)).items
    bank.invoices.pay(topup.payment_hash)
    await bank.wallet().topup(account_id, topup.id)
    assert await bank.available(account_id) >= 5_500


async def test_a_402_comes_without_an_invoice_where_none_can_be_made(bank):
    account_id = await bank.customer()
    wallets = [bank.wallet_without_invoices(), bank.wallet(max_msat=2_000), bank.wallet(most_open=0)]
    for wallet in wallets:
        error = await refused(bank, account_id, wallet)
        assert (error.status, error.code) == (402, "insufficient_balance")
        assert "topup" not in error.details
    bank.invoices.is_away = True
    assert "topup" not in (await refused(bank, account_id)).details


async def test_a_402_stays_one_while_the_books_cannot_be_read(bank, monkeypatch):
    account_id = await bank.customer()
    wallet = bank.wallet()

    async def unreachable(*_):
        raise OSError("the disk is gone")

    monkeypatch.setattr(wallet, "fill_for", unreachable)
    error = await refused(bank, account_id, wallet)
    assert (error.status, error.code) == (402, "insufficient_balance")


async def test_many_refusals_make_one_invoice(bank):
    account_id = await bank.customer(1_200)
    for _ in range(5):
        await refused(bank, account_id)
    assert len(bank.invoices.made) == 1
