"""A node that buys: what its callers are told, and what is paid."""

import asyncio
from dataclasses import replace
from hashlib import sha256

import pytest

from lcp_gateway.lightning import bolt11
from lcp_gateway.lightning.error_codes import ErrorCode
from lcp_gateway.node.lcp.manifests import Limits
from lcp_gateway.node.lcp.messages import Protocol
from lcp_gateway.node.lcp.selling_events import SaleTerms
from lcp_gateway.node.memory.hooks import Hooks
from lcp_gateway.node.ports import ComputeError
from lcp_gateway.node.runtime.bounds import Bounds, PaymentLimits
from lcp_gateway.node.runtime.calls import CallFailed, PaymentState
from lcp_gateway.node.runtime.observer import Role
from lcp_gateway.upstream_status import UpstreamStatus
from tests.support import virtual_time
from tests.support.lcp_nodes import RESULT, HeldPayments, Pair, ScriptedCompute, bought, order, settle

V02, V03 = Protocol


async def _failure(awaitable):
    with pytest.raises(CallFailed) as failed:
        await awaitable
    return failed.value


def _is(failure, status, details, state=PaymentState.NONE):
    return (failure.status, failure.details, failure.payment.state) == (status, details, state)


def test_a_peer_that_is_unknown_or_away_or_not_ready_gives_no_quote():
    async def scenario():
        async with Pair() as pair:
            ask = pair.buyer.node.request_quote
            failure = await _failure(ask(V02, "02" + "ab" * 32, order()))
            assert _is(failure, UpstreamStatus.NOT_FOUND, "peer not found")

            await pair.seller.stop()
            pair.disconnect()
            await settle()
            failure = await _failure(ask(V02, pair.seller.node_id, order()))
            away = "peer is not connected with custom messages enabled"
            assert _is(failure, UpstreamStatus.FAILED_PRECONDITION, away)
            with pytest.raises(CallFailed) as failed:
                pair.buyer.node.cancel(pair.seller.node_id, b"j" * 32, "")
            assert _is(failed.value, UpstreamStatus.FAILED_PRECONDITION, away)

            pair.connect()
            await settle()
            failure = await _failure(ask(V02, pair.seller.node_id, order()))
            assert _is(failure, UpstreamStatus.FAILED_PRECONDITION, "peer is not ready for lcp")

    virtual_time.run(scenario())


@pytest.mark.parametrize(
    ("protocol", "details"),
    [
        (V02, "input stream exceeds peer max_stream_bytes/max_job_bytes"),
        (V03, "request stream exceeds peer max_stream_bytes/max_call_bytes"),
    ],
)
def test_a_request_that_the_peer_does_not_take_is_not_sent(protocol, details):
    async def scenario():
        async with Pair(seller={"limits": Limits(max_stream_bytes=1_000)}) as pair:
            failure = await _failure(pair.quote(protocol, padding=1_000))
            assert _is(failure, UpstreamStatus.RESOURCE_EXHAUSTED, details)

    virtual_time.run(scenario())


def test_an_error_of_the_seller_is_the_callers():
    async def scenario():
        async with Pair() as pair:
            failure = await _failure(
                pair.buyer.node.request_quote(V02, pair.seller.node_id, replace(order(), request=b"{}"))
            )
            details = "lcp_error code=8: request_json.model is required"
            assert _is(failure, UpstreamStatus.FAILED_PRECONDITION, details)

    virtual_time.run(scenario())


def test_a_silent_seller_ends_in_a_deadline_and_its_link_is_renewed():
    class Deaf(Hooks):
        def deliveries(self, message):
            return (0.0,) if message.message_type in {42081, 42101} else ()

    async def scenario():
        async with Pair(hooks=Deaf()) as pair:
            before = pair.buyer.seen.sent
            failure = await _failure(pair.quote())
            assert _is(failure, UpstreamStatus.DEADLINE_EXCEEDED, "deadline exceeded waiting for peer response")
            await settle()
            # The request and its input (four messages), a cancel, and the manifest.
            assert pair.buyer.seen.sent == before + 6

    virtual_time.run(scenario())


def test_a_caller_that_leaves_before_the_quote_cancels_the_job():
    class Held(HeldPayments):
        def deliveries(self, message):
            return () if message.message_type == 42085 else (0.0,)

    async def scenario():
        async with Pair(hooks=Held()) as pair:
            asking = asyncio.create_task(pair.quote())
            await settle()
            asking.cancel()
            await asyncio.wait([asking])
            await settle()
            assert pair.seller.seen.ended == [("seller", "cancelled")]

    virtual_time.run(scenario())


def test_a_price_above_the_cap_is_not_paid_and_the_seller_is_told():
    async def scenario():
        async with Pair(buyer={"payment_limits": PaymentLimits(max_price_msat=20_000)}) as pair:
            for limits, cap in (({"max_price_msat": 10}, 10), ({}, 20_000)):
                quote = await pair.quote(padding=0 if limits else 200_000)
                failure = await _failure(bought(pair.accept(quote, **limits)))
                details = f"price_msat exceeds the limit of {cap}"
                assert _is(failure, UpstreamStatus.FAILED_PRECONDITION, details)
            await settle()
            assert pair.buyer.lightning.payments.begun == 0
            assert pair.seller.seen.ended == [("seller", "cancelled")] * 2

    virtual_time.run(scenario())


@pytest.mark.parametrize(("limit", "paid"), [(None, True), (9, False), (10, True)])
def test_the_fee_limit_of_a_purchase_holds(limit, paid):
    async def scenario():
        hooks = HeldPayments()
        hooks.fee = 10
        async with Pair(hooks=hooks) as pair:
            items = pair.accept(await pair.quote(), fee_limit_msat=limit)
            if paid:
                assert (await bought(items))[2].payment.fee_msat == 10
            else:
                failure = await _failure(bought(items))
                details = "payment failed: FAILURE_REASON_NO_ROUTE"
                assert _is(failure, UpstreamStatus.FAILED_PRECONDITION, details)
            await settle()
            assert await pair.buyer.store.purchases() == []

    virtual_time.run(scenario())


def test_a_job_is_accepted_once():
    async def scenario():
        hooks = HeldPayments()
        hooks.arrive.clear()
        async with Pair(hooks=hooks) as pair:
            quote = await pair.quote()
            first = asyncio.create_task(bought(pair.accept(quote)))
            await settle()
            second = await _failure(bought(pair.accept(quote)))
            details = "the job is being executed"
            assert _is(second, UpstreamStatus.FAILED_PRECONDITION, details, PaymentState.UNKNOWN)
            hooks.arrive.set()
            assert (await first)[1] == RESULT
            third = await _failure(bought(pair.accept(quote)))
            details = "SendPaymentV2: invoice is already paid"
            assert _is(third, UpstreamStatus.UNAVAILABLE, details, PaymentState.SETTLED)
            assert third.payment.preimage is not None
            assert pair.buyer.lightning.payments.begun == 1

    virtual_time.run(scenario())


def test_a_job_that_is_unknown_or_whose_quote_expired_is_not_paid():
    async def scenario():
        async with Pair() as pair:
            quote = await pair.quote()
            failure = await _failure(bought(pair.buyer.node.accept(pair.seller.node_id, b"?" * 32)))
            assert _is(failure, UpstreamStatus.NOT_FOUND, "job not found")
            await settle(301)
            failure = await _failure(bought(pair.accept(quote)))
            assert _is(failure, UpstreamStatus.FAILED_PRECONDITION, "quote expired")
            await settle(120)
            failure = await _failure(bought(pair.accept(quote)))
            assert _is(failure, UpstreamStatus.NOT_FOUND, "job not found")

    virtual_time.run(scenario())


def test_a_quote_that_has_expired_when_it_comes_is_returned_and_not_paid():
    class Slow(Hooks):
        def deliveries(self, message):
            return (4.0,) if message.message_type == 42085 else (0.0,)

    async def scenario():
        async with Pair(hooks=Slow(), seller={"terms": SaleTerms(ttl_s=3)}) as pair:
            quote = await pair.quote()
            assert quote.quote_expiry < virtual_time.unix_time()
            failure = await _failure(bought(pair.accept(quote)))
            assert _is(failure, UpstreamStatus.FAILED_PRECONDITION, "quote expired")
            assert pair.buyer.lightning.payments.begun == 0

    virtual_time.run(scenario())


def test_a_message_that_cannot_be_sent_at_all_does_not_stop_the_others():
    async def scenario():
        async with Pair() as pair:
            send, broken = pair.buyer.lightning.transport.send, [True]

            async def fail_once(peer_id, message_type, payload):
                if broken:
                    broken.clear()
                    raise ValueError("no such message")
                await send(peer_id, message_type, payload)

            pair.buyer.lightning.transport.send = fail_once
            await _failure(pair.quote())
            assert (await pair.buy())[1] == RESULT
            assert [type(error) for _, error in pair.buyer.seen.problems] == [ValueError]

    virtual_time.run(scenario())


def test_a_quote_that_the_seller_took_back_is_not_paid():
    async def scenario():
        async with Pair() as pair:
            quote = await pair.quote()
            pair.buyer.node.cancel(pair.seller.node_id, quote.job_id, " too dear ")
            await settle()
            failure = await _failure(bought(pair.accept(quote)))
            assert _is(failure, UpstreamStatus.CANCELLED, " too dear ")
            assert pair.buyer.lightning.payments.begun == 0
            assert pair.seller.seen.ended == [("seller", "cancelled")]

    virtual_time.run(scenario())


def test_an_error_after_the_payment_is_told_with_it():
    async def scenario():
        async with Pair() as pair:
            pair.compute.error = ComputeError(ErrorCode.RATE_LIMITED, "backend unavailable: http 500")
            failure = await _failure(pair.buy())
            details = "lcp_error code=7: backend unavailable: http 500"
            assert _is(failure, UpstreamStatus.RESOURCE_EXHAUSTED, details, PaymentState.SETTLED)
            failure = await _failure(pair.buy(V03))
            assert failure.details == "lcp_error code=8: backend unavailable: http 500"
            assert pair.seller.seen.ended == [("seller", "failed")] * 2

    virtual_time.run(scenario())


def test_a_caller_that_leaves_while_it_is_paid_ends_the_sellers_work_and_the_payment_is_recorded():
    async def scenario():
        hooks = HeldPayments()
        hooks.learn.clear()
        async with Pair(hooks=hooks) as pair:
            pair.compute.gate.clear()
            items = pair.accept(await pair.quote())
            taking = asyncio.create_task(anext(items))
            await settle()
            assert len(pair.compute.runs) == 1
            taking.cancel()
            await asyncio.wait([taking])
            await items.aclose()
            await settle()
            assert pair.compute.stopped == 1
            assert len(await pair.buyer.store.purchases()) == 1
            hooks.learn.set()
            await settle()
            assert pair.buyer.seen.ended == [("buyer", "cancelled")]
            assert pair.buyer.seen.spent_msat > 0
            assert await pair.buyer.store.purchases() == []

    virtual_time.run(scenario())


def test_a_caller_that_leaves_before_the_payment_has_begun_pays_nothing():
    async def scenario():
        async with Pair() as pair:
            stored, go_on = asyncio.Event(), asyncio.Event()
            keep = pair.buyer.store.keep_purchase

            async def slowly(purchase):
                stored.set()
                await go_on.wait()
                await keep(purchase)

            pair.buyer.store.keep_purchase = slowly
            items = pair.accept(await pair.quote())
            taking = asyncio.create_task(anext(items))
            await stored.wait()
            taking.cancel()
            await asyncio.wait([taking])
            await items.aclose()
            go_on.set()
            await settle()
            assert pair.buyer.lightning.payments.begun == 0
            assert await pair.buyer.store.purchases() == []
            assert pair.seller.seen.ended == [("seller", "cancelled")]

    virtual_time.run(scenario())


def test_a_purchase_that_cannot_be_recorded_is_not_paid():
    async def scenario():
        async with Pair() as pair:

            async def fail(purchase):
                raise OSError("disk full")

            pair.buyer.store.keep_purchase = fail
            failure = await _failure(pair.buy())
            details = "SendPaymentV2: the purchase could not be recorded"
            assert _is(failure, UpstreamStatus.UNAVAILABLE, details)
            assert pair.buyer.lightning.payments.begun == 0

    virtual_time.run(scenario())


def test_a_restart_while_paying_pays_once_and_fetches_the_result():
    async def scenario():
        hooks = HeldPayments()
        hooks.arrive.clear()
        async with Pair(hooks=hooks) as pair:
            quote = await pair.quote()
            buying = asyncio.create_task(bought(pair.accept(quote)))
            await settle()
            await pair.buyer.stop()
            failure = await _failure(buying)
            assert _is(failure, UpstreamStatus.UNAVAILABLE, "the node stops", PaymentState.UNKNOWN)
            hooks.arrive.set()
            await settle()
            await pair.buyer.start()
            _, data, delivered = await bought(pair.accept(quote))
            assert data == RESULT and delivered.payment.state is PaymentState.SETTLED
            assert pair.buyer.lightning.payments.begun == 1 and len(pair.compute.runs) == 1
            await settle()
            assert await pair.buyer.store.purchases() == []

    virtual_time.run(scenario())


def test_a_restart_of_a_payment_that_fails_is_told_to_the_next_caller():
    async def scenario():
        hooks = HeldPayments()
        hooks.arrive.clear()
        hooks.reason = "FAILURE_REASON_TIMEOUT"
        async with Pair(hooks=hooks) as pair:
            quote = await pair.quote()
            buying = asyncio.create_task(bought(pair.accept(quote)))
            await settle()
            await pair.buyer.restart()
            await _failure(buying)
            hooks.arrive.set()
            failure = await _failure(bought(pair.accept(quote)))
            details = "payment failed: FAILURE_REASON_TIMEOUT"
            assert _is(failure, UpstreamStatus.FAILED_PRECONDITION, details)
            await settle()
            assert await pair.buyer.store.purchases() == []

    virtual_time.run(scenario())


def test_an_error_of_the_payments_port_is_not_taken_for_unpaid():
    async def scenario():
        async with Pair() as pair:
            pay = pair.buyer.lightning.payments.pay

            async def pay_and_break(*arguments, **named):
                await pay(*arguments, **named)
                raise RuntimeError("no part should raise this")

            pair.buyer.lightning.payments.pay = pay_and_break
            _, data, delivered = await pair.buy()
            assert data == RESULT and delivered.payment.state is PaymentState.SETTLED
            assert pair.buyer.lightning.payments.begun == 1
            assert [part for part, _ in pair.buyer.seen.problems] == ["pay"]

    virtual_time.run(scenario())


def test_a_link_that_is_lost_in_mid_result_loses_nothing():
    async def scenario():
        async with Pair() as pair:
            pair.compute.gate.clear()
            quote = await pair.quote(stream=True)
            buying = asyncio.create_task(bought(pair.accept(quote)))
            await settle()
            pair.disconnect()
            await settle(1)
            pair.compute.gate.set()
            await settle(1)
            assert not buying.done()
            pair.connect()
            assert (await buying)[1] == RESULT
            assert len(pair.compute.runs) == 1

    virtual_time.run(scenario())


def test_a_repeated_request_that_is_lost_with_its_link_is_sent_again():
    class Faults(HeldPayments):
        lost = ()

        def deliveries(self, message):
            return () if message.message_type in self.lost else (0.0,)

    async def scenario():
        faults = Faults()
        faults.learn.clear()
        async with Pair(hooks=faults) as pair:
            quote = await pair.quote()
            pair.compute.gate.clear()
            buying = asyncio.create_task(bought(pair.accept(quote)))
            await settle()
            await pair.buyer.stop()
            await _failure(buying)
            pair.compute.gate.set()
            # The result goes out while no node of the buyer listens, so long ago that its seller takes it for received.
            await settle(60)
            faults.learn.set()
            faults.lost = {42083}
            await pair.buyer.start()
            await settle(10)
            pair.disconnect()
            await settle(10)
            faults.lost = ()
            pair.connect()
            assert (await bought(pair.accept(quote)))[1] == RESULT
            assert len(pair.compute.runs) == 1

    virtual_time.run(scenario())


def test_a_link_that_is_lost_before_the_quote_fails_at_once():
    class Held(Hooks):
        def deliveries(self, message):
            return () if message.message_type == 42085 else (0.0,)

    async def scenario():
        async with Pair(hooks=Held()) as pair:
            asking = asyncio.create_task(pair.quote())
            await settle()
            pair.disconnect()
            failure = await _failure(asking)
            assert _is(failure, UpstreamStatus.UNAVAILABLE, "SendCustomMessage: the peer did not get the request")

    virtual_time.run(scenario())


def test_jobs_that_are_bought_are_bounded():
    async def scenario():
        hooks = HeldPayments()
        hooks.learn.clear()
        async with Pair(buyer={"bounds": Bounds(purchases=2)}, hooks=hooks) as pair:
            buying = [asyncio.create_task(bought(pair.accept(await pair.quote()))) for _ in range(2)]
            await settle()
            failure = await _failure(pair.quote())
            assert failure.status is UpstreamStatus.RESOURCE_EXHAUSTED
            hooks.learn.set()
            assert [(await one)[1] for one in buying] == [RESULT, RESULT]
            await pair.quote()

    virtual_time.run(scenario())


def test_quotes_that_no_caller_takes_keep_no_other_from_being_asked_for():
    """A seller chooses how long its quotes live: they could fill the bound for years."""

    async def scenario():
        long_lived = {"terms": SaleTerms(ttl_s=10_000_000)}
        async with Pair(buyer={"bounds": Bounds(purchases=3)}, seller=long_lived) as pair:
            quotes = [await pair.quote() for _ in range(20)]
            assert (await bought(pair.accept(quotes[-1])))[1] == RESULT
            failure = await _failure(bought(pair.accept(quotes[0])))
            assert failure.payment.state is PaymentState.NONE
            node = pair.buyer.node._purchases
            assert len(node._live) <= 3 and len(node._over) <= 3
            await settle()
            # The seller need not wait for a payment either.
            assert pair.seller.node.figures().quoted[Role.SELLER] <= 2

    virtual_time.run(scenario())


def test_bytes_that_come_one_by_one_are_held_as_few_pieces():
    """A seller whose payment is held may send its result in the smallest pieces there are."""

    async def scenario():
        hooks = HeldPayments()
        hooks.learn.clear()
        compute = ScriptedCompute([bytes([at % 256]) for at in range(3_000)])
        async with Pair(hooks=hooks, compute=compute) as pair:
            quote = await pair.quote(stream=True)
            buying = asyncio.create_task(bought(pair.accept(quote)))
            await settle(100)
            (purchase,) = pair.buyer.node._purchases._live.values()
            assert len(purchase._items) < 10
            hooks.learn.set()
            assert (await buying)[1] == b"".join(compute.pieces)

    virtual_time.run(scenario())


@pytest.mark.parametrize("first_has_ended", [True, False])
def test_an_invoice_with_the_payment_hash_of_another_purchase_is_not_paid_nor_taken_for_paid(first_has_ended):
    """A seller could sell once for little, and have a dear job counted as paid by the same payment."""

    async def scenario():
        hooks = HeldPayments()
        async with Pair(hooks=hooks) as pair:
            invoices = pair.seller.lightning.invoices
            make = invoices.make

            async def same_hash(**terms):
                first = invoices._invoices.pop(sha256(b"p" * 32).digest(), None)
                made = await make(**terms | {"hold_preimage": b"p" * 32})
                invoices._invoices[made.payment_hash].is_hold = False
                if first is not None:
                    invoices._invoices[made.payment_hash] = first
                return made

            invoices.make = same_hash
            if not first_has_ended:
                hooks.learn.clear()
            quotes = [await pair.quote()]
            first = asyncio.create_task(bought(pair.accept(quotes[0])))
            await settle()
            quotes.append(await pair.quote(padding=5_000))
            failure = await _failure(bought(pair.accept(quotes[1])))
            reason = "payment failed: the invoice has the payment hash of another purchase"
            assert _is(failure, UpstreamStatus.FAILED_PRECONDITION, reason)
            hooks.learn.set()
            assert (await first)[2].payment.state is PaymentState.SETTLED
            await settle()
            await pair.buyer.restart()
            payment_hash = bolt11.decode(quotes[1].payment_request).payment_hash
            states = [(await pair.buyer.node.payment(one.job_id, payment_hash)).state for one in quotes]
            assert states == [PaymentState.SETTLED, PaymentState.NONE]

    virtual_time.run(scenario())


def test_another_lightning_node_says_nothing_of_a_payment_that_it_did_not_begin():
    async def scenario():
        hooks = HeldPayments()
        hooks.learn.clear()
        async with Pair(hooks=hooks) as pair:
            quote = await pair.quote()
            buying = asyncio.create_task(bought(pair.accept(quote)))
            await settle()
            first = pair.buyer.lightning
            await pair.buyer.stop()
            assert (await _failure(buying)).payment.state is PaymentState.UNKNOWN

            # The operator names another one, which has no record of it.
            pair.buyer.lightning = pair.network.node("another", "10.0.0.3:9735")
            await pair.buyer.start()
            await settle(1_000)
            payment_hash = bolt11.decode(quote.payment_request).payment_hash
            report = await pair.buyer.node.payment(quote.job_id, payment_hash)
            assert report.state is PaymentState.UNKNOWN
            assert any("another Lightning node" in str(error) for _, error in pair.buyer.seen.problems)

            hooks.learn.set()
            await pair.buyer.stop()
            pair.buyer.lightning = first
            await pair.buyer.start()
            await settle()
            report = await pair.buyer.node.payment(quote.job_id, payment_hash)
            assert report.state is PaymentState.SETTLED and report.preimage

    virtual_time.run(scenario())


def test_long_requests_wait_their_turn_and_short_ones_do_not():
    async def scenario():
        async with Pair(buyer={"bounds": Bounds(cut_input_bytes=1_000_000)}) as pair:
            long = [asyncio.create_task(pair.quote(padding=900_000)) for _ in range(5)]
            await asyncio.sleep(0)
            short = asyncio.create_task(pair.quote())
            done, _ = await asyncio.wait([short, *long], return_when=asyncio.FIRST_COMPLETED)
            assert short in done
            assert {quote.price_msat for quote in await asyncio.gather(*long)} == {(await long[0]).price_msat}

    virtual_time.run(scenario())


def test_a_node_that_stops_ends_its_callers_and_tells_the_peer_nothing():
    async def scenario():
        async with Pair() as pair:
            pair.compute.gate.clear()
            buying = asyncio.create_task(bought(pair.accept(await pair.quote())))
            await settle()
            sent = pair.buyer.seen.sent
            await pair.buyer.stop()
            failure = await _failure(buying)
            assert failure.payment.state is PaymentState.SETTLED
            assert pair.buyer.seen.sent == sent

    virtual_time.run(scenario())
