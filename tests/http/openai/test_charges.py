"""Charges in responses: charge, balance, refund."""

import asyncio

import pytest
import structlog

from lcp_gateway.accounts.callers import Caller, KeyRules
from lcp_gateway.http.context import RequestContext
from lcp_gateway.http.errors import ApiError
from lcp_gateway.http.openai import charges
from lcp_gateway.http.openai.charges import ChargeReport
from lcp_gateway.purchase.journal import EarlierPurchase
from lcp_gateway.purchase.money import Charge, Markup, Msat, Refund
from lcp_gateway.purchase.purchase import Purchase
from lcp_gateway.purchase.result_buffer import ResultBuffer
from lcp_gateway.purchase.states import PurchaseEvent, State
from tests.support.purchases import order, quote

LOG = structlog.get_logger()
TEN_PERCENT = Markup(100_000)
SETTLED = (PurchaseEvent.PAY, PurchaseEvent.SETTLE)


def context_of(account_id, *events: PurchaseEvent, refund=False, charged_msat=None) -> RequestContext:
    """Return the context of a customer's request; with events it has a purchase of 5,000 msat, charged at 5,500."""
    found = RequestContext("req_1", caller=Caller("key_1", account_id, KeyRules()))
    if events:
        purchase = Purchase(order(), quote(5_000))
        if account_id is not None:
            purchase.charge = Charge(account_id, Msat(5_500), TEN_PERCENT, refund)
        for event in events:
            purchase.apply(event)
        purchase.charged_msat = charged_msat
        found.answer = _Bought(purchase)
    return found


class _Bought(ResultBuffer):
    """A result buffer of which only the purchase is used."""

    def __init__(self, purchase: Purchase) -> None:
        self.purchase = purchase


async def headers_for(bank, found: RequestContext) -> dict[str, str]:
    await ChargeReport(bank.wallet(), LOG).add_headers(found)
    return found.headers


async def test_a_response_carries_the_charge_and_the_balance(bank):
    account_id = await bank.customer(9_000)
    assert await headers_for(bank, context_of(account_id, *SETTLED)) == {
        "X-Lcp-Charged-Msat": "5500",
        "X-Lcp-Balance-Msat": "9000",
    }


async def test_a_lower_final_price_is_charged(bank):
    account_id = await bank.customer(9_000)
    found = context_of(account_id, *SETTLED, PurchaseEvent.DELIVER, charged_msat=Msat(1_000))
    assert (await headers_for(bank, found))["X-Lcp-Charged-Msat"] == "1100"


@pytest.mark.parametrize(("refund", "charged"), [(True, "0"), (False, "5500")])
async def test_an_undelivered_result_is_charged_as_the_operator_says(bank, refund, charged):
    account_id = await bank.customer(9_000)
    found = context_of(account_id, *SETTLED, PurchaseEvent.FAIL_DELIVERY, refund=refund)
    assert (await headers_for(bank, found))["X-Lcp-Charged-Msat"] == charged


async def test_an_unpaid_purchase_is_not_charged(bank):
    account_id = await bank.customer(9_000)
    found = context_of(account_id, PurchaseEvent.PAY, PurchaseEvent.FAIL_PAYMENT)
    assert (await headers_for(bank, found))["X-Lcp-Charged-Msat"] == "0"


async def test_a_request_that_bought_nothing_carries_the_balance_alone(bank):
    account_id = await bank.customer(9_000)
    assert await headers_for(bank, context_of(account_id)) == {"X-Lcp-Balance-Msat": "9000"}


async def test_without_customers_no_charge_is_reported(bank):
    assert await headers_for(bank, context_of(None, *SETTLED)) == {}
    found = context_of(None, *SETTLED)
    await ChargeReport(None, LOG).add_headers(found)
    assert found.headers == {}


async def test_an_answer_that_is_paid_goes_out_though_no_balance_can_be_read(bank):
    account_id = await bank.customer(9_000)
    wallet = bank.wallet()

    async def unreachable(_account_id):
        raise OSError("the disk is gone")

    wallet.balance = unreachable
    found = context_of(account_id, *SETTLED)
    with structlog.testing.capture_logs() as logs:
        await ChargeReport(wallet, structlog.get_logger()).add_headers(found)
    assert found.headers == {"X-Lcp-Charged-Msat": "5500"}
    assert [(line["log_level"], line["error"]) for line in logs] == [("warning", "OSError")]


async def test_an_error_carries_the_charge_that_stands():
    failure = ApiError(502, "no", details={"a": 1})
    await ChargeReport.describe(context_of("acct_1", *SETTLED, PurchaseEvent.FAIL_DELIVERY), failure)
    assert failure.details == {"a": 1, "charged_msat": 5_500}


@pytest.mark.parametrize(("decided", "charged_msat"), [(Refund.GIVEN, 0), (Refund.WITHHELD, 5_500), (None, 0)])
async def test_an_error_waits_for_the_decision_about_its_refund(bank, monkeypatch, decided, charged_msat):
    """Regression: the error did not say that the refund was withheld."""
    monkeypatch.setattr(charges, "_REFUND_S", 10.0 if decided else 0.01)
    account_id = await bank.customer(9_000)
    found = context_of(account_id, *SETTLED, PurchaseEvent.FAIL_DELIVERY, refund=True)
    failure = ApiError(502, "no")
    saying = asyncio.ensure_future(ChargeReport.describe(found, failure))
    await asyncio.sleep(0)
    if decided is not None:
        found.purchase.record_refund(decided)
    await saying
    word = "pending" if decided is None else decided.value
    assert failure.details == {"charged_msat": charged_msat, "refund": word}
    assert ("operator decides" in failure.message) is (decided is Refund.WITHHELD)
    headers = await headers_for(bank, found)
    assert (headers["X-Lcp-Refund"], headers["X-Lcp-Charged-Msat"]) == (word, str(charged_msat))
    assert ("X-Lcp-Balance-Msat" in headers) is (decided is not None)


async def test_an_error_without_a_customer_carries_no_charge():
    failure = ApiError(502, "no")
    await ChargeReport.describe(context_of(None, *SETTLED), failure)
    assert failure.details == {}


@pytest.mark.parametrize(
    ("state", "refund", "charged_msat"),
    [
        (State.DELIVERED, None, 5_500),
        (State.UNKNOWN, None, 5_500),
        (State.UNDELIVERED, Refund.GIVEN, 0),
        (State.UNDELIVERED, Refund.WITHHELD, 5_500),
    ],
)
async def test_a_repeat_carries_the_charge_of_the_purchase_that_it_repeats(bank, state, refund, charged_msat):
    """Regression: the error carried the charge of its own, refused quote, which is nothing."""
    account_id = await bank.customer(9_000)
    charge = Charge(account_id, Msat(5_500), TEN_PERCENT, refund is not Refund.WITHHELD)
    found, failure = context_of(account_id, PurchaseEvent.REFUSE), ApiError(409, "bought before")
    found.earlier = EarlierPurchase(quote(5_000), state, "key_1", "req_0", None, charge, refund)
    await ChargeReport.describe(found, failure)
    headers = await headers_for(bank, found)
    assert headers["X-Lcp-Charged-Msat"] == str(charged_msat)
    assert headers["X-Lcp-Balance-Msat"] == "9000"
    assert headers.get("X-Lcp-Refund") == failure.details.get("refund") == refund
    assert failure.details["charged_msat"] == charged_msat
    assert ("operator decides" in failure.message) is (refund is Refund.WITHHELD)
