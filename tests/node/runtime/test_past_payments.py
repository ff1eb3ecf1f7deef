"""What a node says of the payment of a purchase to a caller that did not see its end."""

import asyncio
from contextlib import aclosing, suppress
from hashlib import sha256

import pytest

from lcp_gateway.lightning import bolt11
from lcp_gateway.node.memory.store import MemoryStore
from lcp_gateway.node.runtime.calls import CallFailed, PaymentState
from lcp_gateway.upstream_status import UpstreamStatus
from tests.support import virtual_time
from tests.support.lcp_nodes import RESULT, HeldPayments, Pair, bought, settle


def hash_of(quote):
    return bolt11.decode(quote.payment_request).payment_hash


async def asked(pair, quote):
    return await pair.buyer.node.payment(quote.job_id, hash_of(quote))


def is_settled(report, quote, fee_msat):
    return (report.state, report.payment_hash, report.fee_msat) == (
        PaymentState.SETTLED,
        hash_of(quote),
        fee_msat,
    ) and sha256(report.preimage).digest() == report.payment_hash


def test_a_payment_whose_caller_is_gone_is_told_while_it_runs_and_after_its_end():
    async def scenario():
        hooks = HeldPayments()
        hooks.fee = 3
        hooks.learn.clear()
        async with Pair(hooks=hooks) as pair:
            quote = await pair.quote()
            caller = asyncio.create_task(bought(pair.accept(quote)))
            await settle()
            caller.cancel()
            await settle()
            assert (await asked(pair, quote)).state is PaymentState.UNKNOWN
            hooks.learn.set()
            await settle()
            assert is_settled(await asked(pair, quote), quote, 3)
            # The job is remembered until its quote has expired; from then on the store has it.
            await asyncio.sleep(1_000)
            assert is_settled(await asked(pair, quote), quote, 3)
            assert pair.buyer.lightning.payments.begun == 1

    virtual_time.run(scenario())


@pytest.mark.parametrize("restart_after_s", [0, 1_000])
def test_a_delivered_purchase_is_told_in_a_later_run(restart_after_s):
    async def scenario():
        hooks = HeldPayments()
        hooks.fee = 3
        async with Pair(hooks=hooks) as pair:
            quote = await pair.quote()
            assert (await bought(pair.accept(quote)))[1] == RESULT
            assert is_settled(await asked(pair, quote), quote, 3)
            await asyncio.sleep(restart_after_s)
            await settle()
            await pair.buyer.restart()
            assert is_settled(await asked(pair, quote), quote, 3)

    virtual_time.run(scenario())


def test_a_payment_that_failed_is_told_as_unpaid_in_this_run_and_the_next():
    async def scenario():
        hooks = HeldPayments()
        hooks.reason = "FAILURE_REASON_NO_ROUTE"
        async with Pair(hooks=hooks) as pair:
            quote = await pair.quote()
            with pytest.raises(CallFailed):
                await bought(pair.accept(quote))
            assert (await asked(pair, quote)).state is PaymentState.NONE
            await settle()
            await pair.buyer.restart()
            assert (await asked(pair, quote)).state is PaymentState.NONE

    virtual_time.run(scenario())


def test_a_quote_that_was_not_accepted_is_unpaid_and_cannot_be_paid_afterwards():
    async def scenario():
        async with Pair() as pair:
            quote = await pair.quote()
            report = await asked(pair, quote)
            assert (report.state, report.payment_hash) == (PaymentState.NONE, hash_of(quote))
            with pytest.raises(CallFailed) as failed:
                await bought(pair.accept(quote))
            assert failed.value.payment.state is PaymentState.NONE
            assert pair.buyer.lightning.payments.begun == 0
            assert (await asked(pair, quote)).state is PaymentState.NONE

    virtual_time.run(scenario())


def test_a_quote_that_expired_is_unpaid():
    async def scenario():
        async with Pair() as pair:
            quote = await pair.quote()
            await asyncio.sleep(301)
            assert (await asked(pair, quote)).state is PaymentState.NONE

    virtual_time.run(scenario())


def test_a_purchase_that_is_being_recorded_may_still_be_paid():
    async def scenario():
        async with Pair() as pair:
            recording = asyncio.Event()
            keep = pair.buyer.store.keep_purchase

            async def slow(purchase):
                await recording.wait()
                await keep(purchase)

            pair.buyer.store.keep_purchase = slow
            quote = await pair.quote()
            caller = asyncio.create_task(bought(pair.accept(quote)))
            await settle()
            assert (await asked(pair, quote)).state is PaymentState.UNKNOWN
            # A second call for it, of a proxy that repeats calls for instance, is told no more.
            with pytest.raises(CallFailed) as failed:
                await bought(pair.accept(quote))
            assert failed.value.payment.state is PaymentState.UNKNOWN
            recording.set()
            assert (await caller)[1] == RESULT

    virtual_time.run(scenario())


def test_a_purchase_that_is_accepted_while_the_lightning_node_is_asked_is_not_given_up():
    async def scenario():
        async with Pair() as pair:
            quote = await pair.quote()
            answered = asyncio.Event()
            peers = pair.buyer.node._peers
            identity = peers.identity

            async def slow():
                await answered.wait()
                return await identity()

            peers.identity, peers.network = slow, ""
            caller = asyncio.create_task(bought(pair.accept(quote)))
            await settle()
            assert (await asked(pair, quote)).state is PaymentState.UNKNOWN
            answered.set()
            assert (await caller)[1] == RESULT

    virtual_time.run(scenario())


def test_a_restart_while_paying_is_unknown_until_the_payment_ends():
    async def scenario():
        hooks = HeldPayments()
        hooks.learn.clear()
        async with Pair(hooks=hooks) as pair:
            quote = await pair.quote()
            caller = asyncio.create_task(bought(pair.accept(quote)))
            await settle()
            await pair.buyer.restart()
            with suppress(CallFailed):
                await caller
            assert (await asked(pair, quote)).state is PaymentState.UNKNOWN
            hooks.learn.set()
            await settle()
            assert is_settled(await asked(pair, quote), quote, 0)

    virtual_time.run(scenario())


def test_without_a_line_the_lightning_node_says_how_a_payment_ended():
    async def scenario():
        hooks = HeldPayments()
        hooks.fee = 3
        async with Pair(hooks=hooks) as pair:
            quotes = [await pair.quote() for _ in range(2)]
            await bought(pair.accept(quotes[0]))
            hooks.reason = "FAILURE_REASON_NO_ROUTE"
            with pytest.raises(CallFailed):
                await bought(pair.accept(quotes[1]))
            hooks.reason = None
            hooks.arrive.clear()
            quotes.append(await pair.quote())
            accepted = pair.accept(quotes[2])
            async with aclosing(accepted):
                caller = asyncio.ensure_future(anext(accepted))
                await settle()
                caller.cancel()
                await settle()
            quotes.append(await pair.quote())

            # Pruned, or of another node that was at the same Lightning node.
            pair.buyer.store = MemoryStore()
            await pair.buyer.restart()
            assert is_settled(await asked(pair, quotes[0]), quotes[0], 3)
            assert (await asked(pair, quotes[1])).state is PaymentState.NONE
            assert (await asked(pair, quotes[2])).state is PaymentState.UNKNOWN
            assert (await asked(pair, quotes[3])).state is PaymentState.NO_RECORD
            hooks.arrive.set()

    virtual_time.run(scenario())


def test_a_purchase_that_no_run_began_is_unpaid_in_a_later_run():
    async def scenario():
        async with Pair() as pair:
            quote = await pair.quote()
            await pair.buyer.restart()
            assert (await asked(pair, quote)).state is PaymentState.NONE

            other = await pair.buyer.node.payment(b"\x01" * 32, hash_of(quote))
            assert other.state is PaymentState.NO_RECORD

    virtual_time.run(scenario())


def test_where_lines_as_young_as_a_purchase_are_gone_it_is_not_said_to_be_unpaid():
    async def scenario():
        hooks = HeldPayments()
        pair = Pair(hooks=hooks)
        pair.buyer.store = MemoryStore(history_lines=1)
        async with pair:
            quotes = [await pair.quote()]
            for _ in range(2):
                quotes.append(await pair.quote())
                await bought(pair.accept(quotes[-1]))
                await settle()
            await asyncio.sleep(5)
            quotes.append(await pair.quote())
            await pair.buyer.restart()
            # As after `lncli deletepayments`.
            pair.buyer.lightning.payments._payments.clear()
            states = [(await asked(pair, quote)).state for quote in quotes]
        lost, kept, never_begun = PaymentState.NO_RECORD, PaymentState.SETTLED, PaymentState.NONE
        assert states == [lost, lost, kept, never_begun]

    virtual_time.run(scenario())


def test_where_neither_store_nor_lightning_node_answers_the_call_fails():
    async def scenario():
        async with Pair() as pair:
            quote = await pair.quote()
            await pair.buyer.restart()
            pair.buyer.lightning.payments.is_away = True
            with pytest.raises(CallFailed) as failed:
                await asked(pair, quote)
            assert (failed.value.status, failed.value.payment.state) == (
                UpstreamStatus.UNAVAILABLE,
                PaymentState.UNKNOWN,
            )

            async def broken(_):
                raise OSError("disk")

            pair.buyer.store.ended_purchase = broken
            with pytest.raises(CallFailed, match="store: disk"):
                await asked(pair, quote)

    virtual_time.run(scenario())
