"""The node's simulated payments: invoices of the demo's customer, each paid once, with lnd's words."""

import time

import pytest

from lcp_gateway.lightning.lnd.channel import LndAddress
from lcp_gateway.lightning.lnd.demo import make_invoice
from lcp_gateway.lightning.lnd.payer import LndPayer
from lcp_gateway.lightning.lnd.payouts import LndPayouts
from lcp_gateway.lightning.lnd.records import LndError, PaymentState
from lcp_gateway.node.config import NodeConfig, WalletConfig
from lcp_gateway.node.server import Node
from tests.support.lnd_standin import LndStandin

PAY = {"amount_msat": None, "fee_limit_msat": 2_000, "timeout_s": 5}


@pytest.fixture
async def served():
    node = Node(NodeConfig(listen="127.0.0.1:0", wallet=WalletConfig(balance_msat=1_000_000)))
    address = await node.start()
    async with LndPayer(LndAddress(address), timeout_s=60) as payer:
        yield node, address, payer
    await node.stop()


async def test_the_customers_invoice_is_paid_once_with_a_fee_out_of_the_nodes_wallet(served):
    node, address, payer = served
    text = await make_invoice(address, 100_000, timeout_s=60)
    paid = await payer.send(text, **PAY)
    assert (paid.state, paid.amount_msat, paid.fee_msat) == (PaymentState.SETTLED, 100_000, 1_010)
    assert node.wallet.balance_msat == 1_000_000 - 101_010
    assert (await payer.payment(paid.payment_hash)).preimage == paid.preimage
    with pytest.raises(LndError, match="already paid") as refused:
        await payer.send(text, **PAY)
    assert refused.value.status == "ALREADY_EXISTS"
    assert node.wallet.balance_msat == 1_000_000 - 101_010


@pytest.mark.parametrize(
    ("amount_msat", "limit_msat", "failure"),
    [(500, 2_000, "no_route"), (100_000, 1_009, "no_route"), (999_500, 2_000, "insufficient_balance")],
)
async def test_failures_are_lnds(served, amount_msat, limit_msat, failure):
    _, address, payer = served
    text = await make_invoice(address, amount_msat, timeout_s=60)
    failed = await payer.send(text, **{**PAY, "fee_limit_msat": limit_msat})
    assert (failed.state, failed.failure) == (PaymentState.FAILED, failure)


async def test_no_other_payee_has_a_route_and_the_node_pays_not_itself(served, tmp_path):
    node, _, payer = served
    others = LndStandin(tmp_path)
    assert (await payer.send(others.elsewhere(20_000), **PAY)).failure == "no_route"
    with pytest.raises(LndError, match="self-payments"):
        await payer.send(node.invoices.add(20_000).payment_request, **PAY)
    for text, words in (
        ("lnbcrt1nothing", "invoice"),
        (node.customer.invoices.add(0).payment_request, "amount"),
        (others.elsewhere(20_000, timestamp=int(time.time()) - 7_200), "expired"),
    ):
        with pytest.raises(LndError, match=words):
            await payer.send(text, **PAY)


async def test_an_unknown_payment_is_absent(served):
    _, _, payer = served
    payouts = LndPayouts(payer)
    assert (await payouts.track(b"\x01" * 32)).state == "absent"
    assert await payouts.spendable_msat() == 1_000_000
    assert (await payouts.node()).network == "bcrt"
