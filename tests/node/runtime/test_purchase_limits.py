"""What a purchase may cost: the operator's limits, which a caller can lower and not raise."""

import pytest

from lcp_gateway.node.memory.hooks import Hooks
from lcp_gateway.node.runtime.bounds import PaymentLimits
from lcp_gateway.node.runtime.calls import CallFailed, PaymentState
from tests.support import virtual_time
from tests.support.lcp_nodes import Pair, bought


class Fees(Hooks):
    def fee_msat(self, payer, invoice):
        return 7


@pytest.mark.parametrize(
    ("operators", "callers", "paid"),
    [(7, None, True), (6, None, False), (7, 6, False), (6, 100, False), (100, 7, True)],
)
def test_the_lower_limit_of_the_fee_holds(operators, callers, paid):
    async def scenario():
        limits = {"payment_limits": PaymentLimits(max_fee_msat=operators)}
        async with Pair(hooks=Fees(), buyer=limits) as pair:
            buying = bought(pair.accept(await pair.quote(), fee_limit_msat=callers))
            if paid:
                _, _, delivered = await buying
                assert delivered.payment.fee_msat == 7
                return
            with pytest.raises(CallFailed, match="payment failed: FAILURE_REASON_NO_ROUTE") as caught:
                await buying
            assert caught.value.payment.state is PaymentState.NONE

    virtual_time.run(scenario())


@pytest.mark.parametrize(("operators", "callers"), [(1, None), (None, 1), (1, 10**9), (10**9, 1)])
def test_the_lower_limit_of_the_price_holds(operators, callers):
    async def scenario():
        limits = {"payment_limits": PaymentLimits(max_price_msat=operators)}
        async with Pair(buyer=limits) as pair:
            with pytest.raises(CallFailed, match="exceeds the limit of 1") as caught:
                await bought(pair.accept(await pair.quote(), max_price_msat=callers))
            assert caught.value.payment.state is PaymentState.NONE
            assert pair.buyer.lightning.payments.begun == 0

    virtual_time.run(scenario())
