"""Two nodes that buy and sell over a simulated network, with their stores on a disk."""

import asyncio
import time

import pytest

from lcp_gateway.node.lcp.messages import Protocol, Status
from lcp_gateway.node.lcp.selling_events import SaleTerms
from lcp_gateway.node.memory.hooks import Hooks
from lcp_gateway.node.ports import InvoiceState
from lcp_gateway.node.runtime.calls import CallFailed, PaymentState
from lcp_gateway.node.storage.history import open_history
from lcp_gateway.node.storage.store import SqliteStore
from tests.support.lcp_nodes import RESULT, Pair, bought

BOTH = pytest.mark.parametrize("at_rest", ["encrypted", "memory"])
WITHIN_S = 60


class HeldPayments(Hooks):
    """Payments whose payer learns of their end once ``known`` is set."""

    def __init__(self):
        self.known = asyncio.Event()
        self.known.set()

    async def after_payment(self, payer, invoice):
        await self.known.wait()


class OnDisk:
    """A pair whose stores are files; a side that restarts opens its own anew."""

    def __init__(self, folder, at_rest, **settings):
        asyncio.get_running_loop().unix_time = time.time
        self.folder, self.at_rest = folder, at_rest
        self.hooks = HeldPayments()
        self.pair = Pair(hooks=self.hooks, **settings)
        self.sides = {"buyer": self.pair.buyer, "seller": self.pair.seller}

    def path(self, name):
        return self.folder / f"{name}.db"

    async def open(self, name):
        self.sides[name].store = await SqliteStore.open(self.path(name), at_rest=self.at_rest)

    async def __aenter__(self):
        for name, side in self.sides.items():
            await self.open(name)
            await side.start()
        self.pair.connect()
        await until(self.ready)
        return self

    async def __aexit__(self, *_):
        for side in self.sides.values():
            await side.stop()
            await side.store.close()

    def ready(self):
        return all(side.node.ready_peers(Protocol.V02) for side in self.sides.values())

    async def until_cancelled(self, sale):
        invoices = self.pair.seller.lightning.invoices
        async with asyncio.timeout(WITHIN_S):
            while await invoices.state(sale.kept.payment_hash) is not InvoiceState.CANCELLED:
                await asyncio.sleep(0.01)

    async def restart(self, name):
        """End a node as a crash does, with whatever it was about to do, and start another on what it left."""
        side = self.sides[name]
        await side.stop()
        await side.store.close()
        await self.open(name)
        await side.start()

    def lines(self, name):
        with open_history(self.path(name)) as history:
            return history.lines()


async def until(condition):
    async with asyncio.timeout(WITHIN_S):
        while not (found := condition()):
            await asyncio.sleep(0.01)
        return found


@BOTH
@pytest.mark.parametrize("stream", [False, True])
async def test_a_job_that_was_bought_and_sold_is_a_line_of_both_nodes(tmp_path, at_rest, stream):
    async with OnDisk(tmp_path, at_rest) as nodes:
        _, data, delivered = await nodes.pair.buy(stream=stream)

        assert data == RESULT
        (bought_line,) = await until(lambda: nodes.lines("buyer"))
        assert (bought_line.kind, bought_line.outcome, bought_line.paid) == ("purchase", "delivered", True)
        assert bought_line.preimage == delivered.payment.preimage
        assert await nodes.pair.buyer.store.purchases() == []


async def test_a_seller_that_restarts_between_quote_and_payment_runs_the_job(tmp_path):
    async with OnDisk(tmp_path, "encrypted") as nodes:
        quote = await nodes.pair.quote()
        await nodes.restart("seller")

        _, data, _ = await bought(nodes.pair.accept(quote))

        assert data == RESULT


async def test_without_requests_on_the_disk_the_quotes_of_a_seller_that_restarts_are_withdrawn(tmp_path):
    async with OnDisk(tmp_path, "memory") as nodes:
        quote = await nodes.pair.quote()
        (sale,) = await nodes.pair.seller.store.sales()
        await nodes.restart("seller")
        await nodes.until_cancelled(sale)

        with pytest.raises(CallFailed) as caught:
            await bought(nodes.pair.accept(quote))

        assert caught.value.payment.state is PaymentState.NONE
        assert nodes.lines("seller") == []


async def test_without_requests_on_the_disk_a_paid_sale_that_a_restart_interrupts_is_answered_with_an_error(tmp_path):
    async with OnDisk(tmp_path, "memory") as nodes:
        nodes.pair.compute.gate.clear()
        quote = await nodes.pair.quote()
        buying = asyncio.create_task(bought(nodes.pair.accept(quote)))
        await until(lambda: nodes.pair.compute.runs)
        await nodes.restart("seller")

        with pytest.raises(CallFailed) as caught:
            await asyncio.wait_for(buying, WITHIN_S)

        assert caught.value.payment.state is PaymentState.SETTLED
        assert nodes.pair.compute.runs == [quote.job_id]


async def test_without_requests_on_the_disk_a_held_payment_goes_back(tmp_path):
    async with OnDisk(tmp_path, "memory", seller={"terms": SaleTerms(hold=True)}) as nodes:
        nodes.pair.compute.gate.clear()
        buying = asyncio.create_task(bought(nodes.pair.accept(await nodes.pair.quote())))
        await until(lambda: nodes.pair.compute.runs)
        (sale,) = await nodes.pair.seller.store.sales()
        await nodes.restart("seller")

        with pytest.raises(CallFailed) as caught:
            await asyncio.wait_for(buying, WITHIN_S)

        assert caught.value.payment.state is PaymentState.NONE
        await nodes.until_cancelled(sale)
        assert nodes.lines("seller") == []


async def test_a_held_payment_is_taken_by_a_seller_that_restarted_with_what_it_kept(tmp_path):
    async with OnDisk(tmp_path, "encrypted", seller={"terms": SaleTerms(hold=True)}) as nodes:
        nodes.pair.compute.gate.clear()
        buying = asyncio.create_task(bought(nodes.pair.accept(await nodes.pair.quote())))
        await until(lambda: nodes.pair.compute.runs)
        await nodes.restart("seller")
        nodes.pair.compute.gate.set()

        _, data, delivered = await asyncio.wait_for(buying, WITHIN_S)

        assert data == RESULT
        assert delivered.payment.state is PaymentState.SETTLED
        assert delivered.result.status is Status.OK


@BOTH
async def test_a_buyer_that_restarts_while_it_pays_knows_of_the_payment_and_pays_once(tmp_path, at_rest):
    async with OnDisk(tmp_path, at_rest) as nodes:
        nodes.hooks.known.clear()
        buying = asyncio.create_task(bought(nodes.pair.accept(await nodes.pair.quote())))
        await until(lambda: nodes.pair.seller.seen.earned_msat)
        await nodes.restart("buyer")
        with pytest.raises(CallFailed):
            await buying
        nodes.hooks.known.set()

        (line,) = await until(lambda: nodes.lines("buyer"))

        assert (line.paid, line.fee_msat) == (True, 0)
        assert line.preimage is not None
        assert nodes.pair.buyer.lightning.payments.begun == 1
