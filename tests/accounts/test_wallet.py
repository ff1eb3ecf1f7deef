"""A customer's wallet: the limits of top-ups, one credit for each, and no access to other customers' wallets."""

from datetime import timedelta

import pytest

from lcp_gateway.accounts.models import EMPTY_BALANCE, AccountNotFound, TooManyOpenTopups, TopupPurpose, TopupState
from lcp_gateway.accounts.repositories import InvoiceServiceUnavailable
from lcp_gateway.accounts.wallet import AmountOutOfRange, TopupsDisabled


async def test_a_top_up_is_an_invoice_for_the_amount(bank):
    account_id = await bank.customer()
    made = await bank.wallet(expiry_s=600).top_up(account_id, 5_000, "rent")
    invoice = bank.invoices.made[made.payment_hash]
    assert (invoice.amount_msat, invoice.memo) == (5_000, "rent")
    assert (made.payment_request, made.memo) == (invoice.payment_request, "rent")
    assert (made.state, made.purpose) == (TopupState.OPEN, TopupPurpose.TOPUP)
    assert timedelta(seconds=590) < made.expires_at - made.created_at <= timedelta(seconds=601)


@pytest.mark.parametrize("amount_msat", [-1, 0, 999, 2_001, 10**30])
async def test_too_little_and_too_much_is_refused_before_lnd_is_asked(bank, amount_msat):
    account_id = await bank.customer()
    with pytest.raises(AmountOutOfRange, match="from 1000 to 2000 msat"):
        await bank.wallet(min_msat=1_000, max_msat=2_000).top_up(account_id, amount_msat)
    assert bank.invoices.asked == []


@pytest.mark.parametrize("amount_msat", [1_000, 2_000])
async def test_the_bounds_themselves_can_be_paid_in(bank, amount_msat):
    wallet = bank.wallet(min_msat=1_000, max_msat=2_000)
    assert (await wallet.top_up(await bank.customer(), amount_msat)).amount_msat == amount_msat


async def test_an_account_has_only_so_many_unpaid_ones_and_another_is_not_touched_by_it(bank):
    one, another = await bank.customer(), await bank.customer()
    wallet = bank.wallet(most_open=2)
    first = await wallet.top_up(one, 1_000)
    await wallet.top_up(one, 1_000)
    asked = len(bank.invoices.asked)
    with pytest.raises(TooManyOpenTopups):
        await wallet.top_up(one, 1_000)
    assert len(bank.invoices.asked) == asked, "lnd is not troubled"
    await wallet.top_up(another, 1_000)
    bank.invoices.pay(first.payment_hash)
    await wallet.topup(one, first.id)
    await wallet.top_up(one, 1_000)


async def test_without_lnd_top_ups_are_disabled_and_the_wallet_can_be_read(bank):
    account_id = await bank.customer(7_000)
    open_one = await bank.wallet().top_up(account_id, 1_000)
    wallet = bank.wallet_without_invoices()
    with pytest.raises(TopupsDisabled):
        await wallet.top_up(account_id, 1_000)
    assert (await wallet.balance(account_id)).balance_msat == 7_000
    assert await wallet.topup(account_id, open_one.id) == open_one


async def test_an_unreachable_lnd_makes_no_top_up(bank):
    account_id = await bank.customer()
    bank.invoices.is_away = True
    with pytest.raises(InvoiceServiceUnavailable):
        await bank.wallet().top_up(account_id, 1_000)
    assert (await bank.topups.page(account_id)).items == []


async def test_an_unknown_account_has_no_top_ups(bank):
    with pytest.raises(AccountNotFound):
        await bank.wallet().top_up("acct_" + "0" * 24, 1_000)
    assert await bank.wallet().balance("acct_" + "0" * 24) == EMPTY_BALANCE


async def test_polling_credits_what_was_paid_once_and_says_so_once(bank):
    account_id = await bank.customer()
    wallet = bank.wallet()
    made = await wallet.top_up(account_id, 1_000)
    assert (await wallet.topup(account_id, made.id)).state is TopupState.OPEN
    bank.invoices.pay(made.payment_hash, 1_500)
    for _ in range(3):
        found = await wallet.topup(account_id, made.id)
        assert (found.state, found.received_msat) == (TopupState.SETTLED, 1_500)
    assert await bank.available(account_id) == 1_500, "what came counts, not what was asked"
    assert [credit.topup.id for credit in bank.credits] == [made.id]


async def test_one_that_is_settled_is_not_asked_for_again(bank):
    account_id = await bank.customer()
    wallet = bank.wallet()
    made = await wallet.top_up(account_id, 1_000)
    bank.invoices.pay(made.payment_hash)
    await wallet.topup(account_id, made.id)
    bank.invoices.is_away = True
    assert (await wallet.topup(account_id, made.id)).state is TopupState.SETTLED


async def test_a_top_up_of_another_account_is_not_found_and_not_looked_up(bank):
    one, another = await bank.customer(), await bank.customer()
    wallet = bank.wallet()
    made = await wallet.top_up(one, 1_000)
    bank.invoices.pay(made.payment_hash)
    asked = len(bank.invoices.asked)
    assert await wallet.topup(another, made.id) is None
    assert await wallet.topup(one, "top_none") is None
    assert len(bank.invoices.asked) == asked
    assert (await wallet.topups(another, limit=10, after=None)).items == []


# -- the invoice of a 402 -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("missing_msat", "amount_msat"), [(1, 5_000), (5_000, 5_000), (5_001, 6_000), (123_456, 124_000)]
)
async def test_the_missing_amount_is_asked_for_in_whole_satoshis_and_at_least_the_minimum(
    bank, missing_msat, amount_msat
):
    wallet = bank.wallet(min_msat=5_000)
    made = await wallet.fill_for(await bank.customer(), missing_msat)
    assert made.amount_msat == amount_msat


async def test_a_client_that_tries_again_gets_the_same_invoice(bank):
    account_id = await bank.customer()
    wallet = bank.wallet(most_open=2)
    made = [await wallet.fill_for(account_id, 7_000) for _ in range(5)]
    assert len({topup.id for topup in made}) == 1
    assert (await wallet.fill_for(account_id, 8_000)).id != made[0].id


async def test_where_too_many_are_open_the_oldest_is_dropped_and_still_credited_if_paid(bank):
    account_id = await bank.customer()
    wallet = bank.wallet(most_open=2)
    first, second, third = [await wallet.fill_for(account_id, missing) for missing in (7_000, 8_000, 9_000)]
    found = [(await bank.topups.get(topup.id)).state for topup in (first, second, third)]
    assert found == [TopupState.CANCELED, TopupState.OPEN, TopupState.OPEN]
    bank.invoices.pay(first.payment_hash)
    await wallet.topup(account_id, first.id)
    assert await bank.available(account_id) == 7_000


async def test_an_expired_invoice_is_not_the_one_that_is_dropped(bank):
    account_id = await bank.customer()
    wallet = bank.wallet(most_open=2)
    gone = await wallet.fill_for(account_id, 6_000)
    await bank.aged(gone, timedelta(minutes=65))
    for missing_msat in (7_000, 8_000, 9_000):
        made = await wallet.fill_for(account_id, missing_msat)
        assert made.amount_msat == missing_msat


async def test_an_invoice_that_ends_soon_is_not_given_again(bank):
    account_id = await bank.customer()
    wallet = bank.wallet(expiry_s=3_600)
    first = await wallet.fill_for(account_id, 7_000)
    await bank.aged(first, timedelta(minutes=31))
    assert (await wallet.fill_for(account_id, 7_000)).id != first.id


async def test_one_that_was_paid_is_not_given_again(bank):
    account_id = await bank.customer()
    wallet = bank.wallet()
    first = await wallet.fill_for(account_id, 7_000)
    bank.invoices.pay(first.payment_hash)
    await wallet.topup(account_id, first.id)
    assert (await wallet.fill_for(account_id, 7_000)).id != first.id


async def test_an_invoice_of_another_customer_is_never_given(bank):
    wallet = bank.wallet()
    one = await wallet.fill_for(await bank.customer(), 7_000)
    another = await wallet.fill_for(await bank.customer(), 7_000)
    assert one.id != another.id
