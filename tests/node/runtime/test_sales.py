"""A node that sells: what it takes, what it finishes, what it forgets."""

import asyncio
import contextlib
from dataclasses import replace
from unittest.mock import AsyncMock

import pytest

from lcp_gateway.lightning.error_codes import ErrorCode
from lcp_gateway.node.lcp.manifests import Limits
from lcp_gateway.node.lcp.messages import CHAT, IDENTITY, JSON, Protocol, QuoteRequest, StreamBegin, StreamKind
from lcp_gateway.node.lcp.selling_events import SaleTerms
from lcp_gateway.node.lcp.table import write_message, write_params
from lcp_gateway.node.memory.hooks import Hooks
from lcp_gateway.node.ports import ComputeError, InvoiceState, LightningAway
from lcp_gateway.node.runtime.bounds import Bounds
from lcp_gateway.node.runtime.calls import CallFailed, PaymentState
from lcp_gateway.node.runtime.node import LcpNode
from tests.support import virtual_time
from tests.support.lcp_nodes import MODEL, RESULT, SOLD, Pair, ScriptedCompute, bought, settle

V02 = Protocol.V02
HOLD = {"terms": SaleTerms(hold=True)}


class Counted(Hooks):
    """Counts the ends of results."""

    results = 0

    def deliveries(self, message):
        self.results += message.message_type == 42087
        return (0.0,)


async def _code(awaitable):
    with pytest.raises(CallFailed) as failed:
        await awaitable
    return failed.value.details


def test_a_node_that_sells_nothing_refuses_once():
    async def scenario():
        async with Pair(seller={"models": None, "compute": None}) as pair:
            assert await _code(pair.quote()) == "lcp_error code=2: provider disabled"
            await settle()
            assert pair.seller.seen.refused == ["unsupported_task"]

    virtual_time.run(scenario())


def test_models_without_a_backend_are_a_mistake():
    with pytest.raises(ValueError, match="backend"):
        LcpNode(transport=None, payments=None, invoices=None, store=None, models=SOLD)


@pytest.mark.parametrize("settings", [{"denied": True}, {"allowed": False}])
def test_a_peer_that_may_not_buy_sees_no_models_and_gets_no_quote(settings):
    async def scenario():
        pair = Pair()
        peer = pair.buyer.node_id
        pair.seller.settings |= {"denied": [peer]} if "denied" in settings else {"allowed": ["02" + "ab" * 32]}
        async with pair:
            (listed,) = pair.buyer.node.ready_peers(V02)
            assert not listed.manifest.tasks
            assert await _code(pair.quote()) == "lcp_error code=2: provider disabled"

    virtual_time.run(scenario())


def test_a_job_whose_request_was_not_seen_is_refused_once():
    class Lost(Hooks):
        def deliveries(self, message):
            return () if message.message_type == 42083 else (0.0,)

    async def scenario():
        async with Pair(hooks=Lost()) as pair:
            assert await _code(pair.quote()) == "lcp_error code=10: no quote_request for job"
            await settle()
            assert pair.seller.seen.refused == ["invalid_state"]

    virtual_time.run(scenario())


@pytest.mark.parametrize("stream", [False, True])
def test_paid_work_is_finished_after_a_restart(stream):
    async def scenario():
        async with Pair() as pair:
            pair.compute.gate.clear()
            quote = await pair.quote(stream=stream)
            buying = asyncio.create_task(bought(pair.accept(quote)))
            await settle()
            await pair.seller.restart()
            pair.compute.gate.set()
            assert (await buying)[1] == RESULT
            assert pair.compute.stopped == 1 and len(pair.compute.runs) == 2

    virtual_time.run(scenario())


def test_what_was_paid_while_the_seller_was_away_is_finished():
    class Held(Hooks):
        def __init__(self):
            self.arrive = asyncio.Event()

        async def before_payment(self, payer, invoice):
            await self.arrive.wait()

    async def scenario():
        hooks = Held()
        async with Pair(hooks=hooks) as pair:
            quote = await pair.quote()
            buying = asyncio.create_task(bought(pair.accept(quote)))
            await settle()
            await pair.seller.stop()
            hooks.arrive.set()
            await settle(30)
            assert not pair.compute.runs
            await pair.seller.start()
            assert (await buying)[1] == RESULT

    virtual_time.run(scenario())


def test_a_result_that_was_cut_by_a_restart_ends_with_an_error():
    async def scenario():
        class Half(ScriptedCompute):
            async def run(self, **job):
                self.runs.append(job["job_id"])
                yield RESULT[:3_000]
                await asyncio.Event().wait()

        async with Pair(compute=Half()) as pair:
            buying = asyncio.create_task(bought(pair.accept(await pair.quote(stream=True))))
            await settle()
            await pair.seller.restart()
            details = "lcp_error code=7: backend unavailable: interrupted by a restart"
            assert await _code(buying) == details

    virtual_time.run(scenario())


def test_a_delivered_result_is_sent_again_after_a_restart_without_another_run():
    class Lost(Hooks):
        lose = True

        def deliveries(self, message):
            return () if self.lose and message.message_type in {42087, 42093} else (0.0,)

    async def scenario():
        hooks = Lost()
        hooks.lose = False
        async with Pair(hooks=hooks) as pair:
            quote = await pair.quote()
            hooks.lose = True
            buying = asyncio.create_task(bought(pair.accept(quote)))
            await settle()
            hooks.lose = False
            await pair.seller.restart()
            assert (await buying)[1] == RESULT
            assert len(pair.compute.runs) == 1

    virtual_time.run(scenario())


def test_the_invoice_of_a_cancelled_or_expired_job_cannot_be_paid():
    async def scenario():
        async with Pair() as pair:
            invoices = pair.seller.lightning.invoices
            cancelled, expired = await pair.quote(), await pair.quote()
            pair.buyer.node.cancel(pair.seller.node_id, cancelled.job_id, "")
            await settle()
            hashes = list(invoices._invoices)
            states = [await invoices.state(one) for one in hashes]
            assert sorted(states) == [InvoiceState.CANCELLED, InvoiceState.OPEN]
            await settle(320)
            assert {one.state for one in invoices._invoices.values()} == {InvoiceState.CANCELLED}
            assert sorted(pair.seller.seen.ended) == [("seller", "cancelled"), ("seller", "expired")]
            assert expired.job_id != cancelled.job_id
            await settle(300)
            assert await pair.seller.store.sales() == []
            assert pair.seller.node.figures().quoted["seller"] == 0

    virtual_time.run(scenario())


def test_a_payment_that_was_not_heard_of_is_found_before_its_quote_is_forgotten():
    async def scenario():
        async with Pair() as pair:
            quote = await pair.quote()
            # The stream of settled invoices hangs.
            pair.seller.lightning.invoices._streams.clear()
            buying = asyncio.create_task(bought(pair.accept(quote)))
            await settle(200)
            assert not pair.compute.runs
            await settle(150)
            # Its buyer may have given up meanwhile; the work is done all the same.
            assert len(pair.compute.runs) == 1
            buying.cancel()
            await asyncio.wait([buying])

    virtual_time.run(scenario())


def test_messages_that_come_twice_are_taken_once():
    class Twice(Hooks):
        def deliveries(self, message):
            return (0.0, 0.0)

    async def scenario():
        async with Pair(hooks=Twice()) as pair:
            _, data, _ = await pair.buy()
            assert data == RESULT and len(pair.compute.runs) == 1
            # The request, and the head and the end of its input.
            assert pair.seller.seen.dropped == ["repeated"] * 3

    virtual_time.run(scenario())


def test_settled_invoices_are_followed_from_the_last_one_that_was_taken_in():
    async def scenario():
        async with Pair() as pair:
            await pair.buy()
            await pair.buy()
            await settle()
            invoices, asked = pair.seller.lightning.invoices, []
            paid = invoices.paid

            def recorded(index):
                asked.append(index)
                return paid(index)

            invoices.paid = recorded
            await pair.seller.restart()
            await settle()
            assert asked == [2]

    virtual_time.run(scenario())


def test_bounds_refuse_with_rate_limited():
    async def scenario():
        bounds = Bounds(quotes_per_peer=2, input_bytes_per_peer=5_000)
        async with Pair(seller={"bounds": bounds}) as pair:
            assert await _code(pair.quote(padding=6_000)) == "lcp_error code=7: too many bytes of requests"
            await pair.quote()
            await pair.quote()
            assert await _code(pair.quote()) == "lcp_error code=7: too many unpaid quotes"
            assert await _code(pair.quote(Protocol.V03)) == "lcp_error code=8: too many unpaid quotes"
            await settle(320)
            await pair.quote()

    virtual_time.run(scenario())


def test_running_jobs_of_a_peer_are_bounded():
    async def scenario():
        async with Pair(seller={"bounds": Bounds(jobs_per_peer=2)}) as pair:
            pair.compute.gate.clear()
            buying = [asyncio.create_task(bought(pair.accept(await pair.quote()))) for _ in range(2)]
            await settle()
            assert await _code(pair.quote()) == "lcp_error code=7: too many jobs under way"
            pair.compute.gate.set()
            assert [data for _, data, _ in await asyncio.gather(*buying)] == [RESULT] * 2
            await pair.quote()

    virtual_time.run(scenario())


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("settings", "outcome"), [({}, "delivered"), ({"error": True}, "failed"), ({"error": True} | HOLD, "unpaid")]
)
def test_a_job_that_was_run_has_its_one_line_at_its_end(settings, outcome, stream):
    async def scenario():
        terms = {name: value for name, value in settings.items() if name == "terms"}
        async with Pair(seller=terms) as pair:
            if "error" in settings:
                pair.compute.error = ComputeError(ErrorCode.RATE_LIMITED, "backend unavailable")
            with contextlib.suppress(CallFailed):
                await pair.buy(stream=stream)
            await settle(1)
            assert pair.seller.store.ended == {outcome: 1}
            # What it sent can be asked for again.
            assert len(await pair.seller.store.sales()) == 1
            await pair.seller.restart()
            await settle(10_000)
            assert pair.seller.store.ended == {outcome: 1}
            assert await pair.seller.store.sales() == []

    virtual_time.run(scenario())


def test_a_job_that_is_cancelled_has_its_line_once_it_is_paid():
    class Late(Hooks):
        def __init__(self):
            self.arrive = asyncio.Event()

        async def before_payment(self, payer, invoice):
            await self.arrive.wait()

    async def scenario():
        hooks = Late()
        async with Pair(hooks=hooks) as pair:
            pair.seller.lightning.invoices.cancel = AsyncMock()
            quote = await pair.quote()
            buying = asyncio.create_task(bought(pair.accept(quote)))
            await settle()
            pair.buyer.node.cancel(pair.seller.node_id, quote.job_id, "")
            await settle()
            assert pair.seller.store.ended == {}
            hooks.arrive.set()
            await settle()
            assert pair.seller.store.ended == {"cancelled": 1}
            await asyncio.wait([buying])

    virtual_time.run(scenario())


def test_a_sale_that_cannot_be_forgotten_on_disk_does_not_keep_the_others():
    async def scenario():
        async with Pair() as pair:
            first, second = await pair.quote(), await pair.quote()
            forget, failing = pair.seller.store.forget_sale, [True]

            async def fail_for_the_first(peer_id, job_id):
                if failing and job_id == first.job_id:
                    raise OSError("disk full")
                await forget(peer_id, job_id)

            pair.seller.store.forget_sale = fail_for_the_first
            await settle(400)
            assert [one.kept.request.job_id for one in await pair.seller.store.sales()] == [first.job_id]
            assert second.job_id != first.job_id
            failing.clear()
            await settle(60)
            assert await pair.seller.store.sales() == [] and not pair.seller.node._sales._sales

    virtual_time.run(scenario())


def test_no_quotes_are_given_while_as_many_jobs_run_as_may():
    async def scenario():
        async with Pair(seller={"bounds": Bounds(running=1)}) as pair:
            pair.compute.gate.clear()
            quotes = [await pair.quote(), await pair.quote()]
            buying = [asyncio.create_task(bought(pair.accept(quote))) for quote in quotes]
            await settle()
            assert await _code(pair.quote()) == "lcp_error code=7: too many jobs run"
            pair.compute.gate.set()
            # Both were quoted before, and paid: both run.
            assert [data for _, data, _ in await asyncio.gather(*buying)] == [RESULT] * 2

    virtual_time.run(scenario())


def test_bytes_of_requests_count_until_their_jobs_have_ended():
    async def scenario():
        async with Pair(seller={"bounds": Bounds(input_bytes_per_peer=5_000)}) as pair:
            for _ in range(3):
                await pair.buy(padding=3_000)
            await pair.quote(padding=3_000)
            assert await _code(pair.quote(padding=3_000)) == "lcp_error code=7: too many bytes of requests"

    virtual_time.run(scenario())


def test_kept_results_are_bounded_and_the_oldest_are_forgotten():
    async def scenario():
        async with Pair(seller={"bounds": Bounds(result_bytes=25_000)}) as pair:
            for _ in range(5):
                assert (await pair.buy())[1] == RESULT
            await settle()
            assert len(await pair.seller.store.sales()) == 2
            assert 0 < pair.seller.node._sales._tally.result_bytes <= 25_000

    virtual_time.run(scenario())


def test_the_oldest_delivered_job_makes_room():
    async def scenario():
        async with Pair(seller={"bounds": Bounds(sales=2)}) as pair:
            for _ in range(5):
                await pair.buy()
            await pair.quote()
            await pair.quote()
            assert await _code(pair.quote()) == "lcp_error code=7: too many jobs"
            assert len(await pair.seller.store.sales()) == 2

    virtual_time.run(scenario())


def test_a_result_that_is_computed_while_its_peer_is_away_fits_the_manifest_that_was_kept():
    class Sizes(Hooks):
        longest = 0

        def deliveries(self, message):
            if message.message_type == 42091:
                self.longest = max(self.longest, len(message.payload))
            return (0.0,)

    async def scenario():
        sizes = Sizes()
        async with Pair(hooks=sizes, buyer={"limits": Limits(max_payload_bytes=900)}) as pair:
            pair.compute.gate.clear()
            buying = asyncio.create_task(bought(pair.accept(await pair.quote())))
            await settle()
            sizes.longest = 0
            await pair.seller.stop()
            pair.disconnect()
            await pair.seller.start()
            pair.compute.gate.set()
            await settle(1)
            pair.connect()
            assert (await buying)[1] == RESULT
            assert 0 < sizes.longest <= 900

    virtual_time.run(scenario())


def test_errors_for_a_peer_that_reads_none_are_bounded():
    async def scenario():
        async with Pair() as pair:

            async def hang(peer_id, message_type, payload):
                await asyncio.Event().wait()

            send, pair.seller.lightning.transport.send = pair.buyer.lightning.transport.send, hang
            for number in range(3_000):
                request = QuoteRequest(
                    protocol_version=2,
                    job_id=number.to_bytes(32, "big"),
                    msg_id=b"m" * 32,
                    expiry=virtual_time.START + 300,
                    task_kind="unknown",
                )
                await send(pair.seller.node_id, *write_message(V02, request))
            await settle()
            assert pair.seller.node.figures().queued_messages == 1_000

    virtual_time.run(scenario())


def test_errors_that_wait_behind_a_disk_that_is_full_are_bounded():
    async def scenario():
        async with Pair() as pair:
            pair.seller.store.keep_sale = AsyncMock(side_effect=OSError("disk full"))
            asking = asyncio.create_task(pair.quote())
            await settle()
            (sale,) = pair.seller.node._sales._sales.values()
            for number in range(3_000):
                begin = StreamBegin(
                    protocol_version=2,
                    job_id=sale.job_id,
                    msg_id=number.to_bytes(32, "big"),
                    expiry=virtual_time.START + 300,
                    stream_id=number.to_bytes(32, "big"),
                    stream_kind=StreamKind.INPUT,
                    content_type=JSON,
                    content_encoding=IDENTITY,
                    total_len=1,
                    sha256=b"s" * 32,
                )
                await pair.buyer.lightning.transport.send(pair.seller.node_id, *write_message(V02, begin))
            await settle()
            assert len(sale._effects) < 100
            asking.cancel()
            await asyncio.wait([asking])

    virtual_time.run(scenario())


def test_a_result_is_not_sent_again_without_end():
    async def scenario():
        wire = Counted()
        async with Pair(hooks=wire) as pair:
            quote = await pair.quote()
            await bought(pair.accept(quote))
            send = pair.buyer.lightning.transport.send
            for number in range(50):
                again = QuoteRequest(
                    protocol_version=2,
                    job_id=quote.job_id,
                    msg_id=number.to_bytes(32, "big"),
                    expiry=virtual_time.START + 300,
                    task_kind=CHAT,
                    params=write_params(MODEL),
                )
                await send(pair.seller.node_id, *write_message(V02, again))
            await settle()
            assert wire.results == 17 and len(pair.compute.runs) == 1

    virtual_time.run(scenario())


def test_a_held_payment_is_settled_at_the_first_byte():
    async def scenario():
        async with Pair(seller=HOLD) as pair:
            pair.compute.gate.clear()
            quote = await pair.quote(stream=True)
            buying = asyncio.create_task(bought(pair.accept(quote)))
            await settle()
            (invoice,) = pair.seller.lightning.invoices._invoices.values()
            assert invoice.state is InvoiceState.ACCEPTED and pair.seller.seen.earned_msat == 0
            pair.compute.gate.set()
            _, data, delivered = await buying
            assert data == RESULT and delivered.payment.state is PaymentState.SETTLED
            assert pair.seller.seen.ended == [("seller", "delivered")]

    virtual_time.run(scenario())


def test_a_held_payment_goes_back_when_the_backend_fails_before_its_first_byte():
    async def scenario():
        async with Pair(seller=HOLD) as pair:
            pair.compute.error = ComputeError(ErrorCode.RATE_LIMITED, "backend unavailable")
            with pytest.raises(CallFailed) as failed:
                await pair.buy()
            assert failed.value.payment.state is PaymentState.NONE
            assert failed.value.details == "payment failed: FAILURE_REASON_INCORRECT_PAYMENT_DETAILS"
            assert pair.seller.seen.ended == [("seller", "unpaid")]

    virtual_time.run(scenario())


def test_a_held_payment_is_kept_when_the_backend_fails_later():
    async def scenario():
        async with Pair(seller=HOLD) as pair:
            pair.compute.late_error = ComputeError(ErrorCode.RATE_LIMITED, "backend unavailable")
            with pytest.raises(CallFailed) as failed:
                await pair.buy(stream=True)
            assert failed.value.payment.state is PaymentState.SETTLED

    virtual_time.run(scenario())


def test_a_held_payment_survives_a_restart_of_the_seller():
    async def scenario():
        async with Pair(seller=HOLD) as pair:
            pair.compute.gate.clear()
            buying = asyncio.create_task(bought(pair.accept(await pair.quote())))
            await settle()
            await pair.seller.restart()
            pair.compute.gate.set()
            assert (await buying)[1] == RESULT

    virtual_time.run(scenario())


def test_a_held_payment_that_went_back_delivers_nothing():
    async def scenario():
        async with Pair(seller=HOLD) as pair:
            pair.compute.gate.clear()
            buying = asyncio.create_task(bought(pair.accept(await pair.quote())))
            await settle()
            (payment_hash,) = pair.seller.lightning.invoices._invoices
            await pair.seller.lightning.invoices.cancel(payment_hash)
            pair.compute.gate.set()
            assert (await _code(buying)).startswith("payment failed")
            await settle(10)
            assert pair.seller.seen.ended == [("seller", "unpaid")]
            assert pair.compute.stopped == 1

    virtual_time.run(scenario())


def test_a_settlement_that_fails_is_tried_until_it_is_taken():
    async def scenario():
        async with Pair(seller=HOLD) as pair:
            invoices, failures = pair.seller.lightning.invoices, [1, 2, 3]
            settle_invoice = invoices.settle

            async def fail_at_first(preimage):
                if failures:
                    failures.pop()
                    raise LightningAway("no answer")
                await settle_invoice(preimage)

            invoices.settle = fail_at_first
            assert (await pair.buy(stream=True))[1] == RESULT

    virtual_time.run(scenario())


def test_a_buyer_that_cancels_a_held_payment_has_its_money():
    async def scenario():
        async with Pair(seller=HOLD) as pair:
            pair.compute.gate.clear()
            quote = await pair.quote()
            buying = asyncio.create_task(bought(pair.accept(quote)))
            await settle()
            pair.buyer.node.cancel(pair.seller.node_id, quote.job_id, "")
            assert (await _code(buying)).startswith("payment failed")
            assert pair.compute.stopped == 1

    virtual_time.run(scenario())


def test_an_invoice_that_cannot_be_made_refuses_the_job():
    async def scenario():
        async with Pair() as pair:

            async def fail(**_):
                raise LightningAway("no answer")

            pair.seller.lightning.invoices.make = fail
            assert await _code(pair.quote()) == "lcp_error code=4: the invoice could not be made"

    virtual_time.run(scenario())


def test_a_slow_peer_slows_its_own_backend():
    async def scenario():
        pieces = [bytes([number]) * 16_000 for number in range(100)]
        async with Pair(compute=ScriptedCompute(pieces), seller={"bounds": Bounds(window_bytes=64_000)}) as pair:
            send, go_on = pair.seller.lightning.transport.send, asyncio.Event()

            async def slowly(peer_id, message_type, payload):
                if message_type == 42091:
                    await go_on.wait()
                await send(peer_id, message_type, payload)

            pair.seller.lightning.transport.send = slowly
            quote = await pair.quote(stream=True)
            buying = asyncio.create_task(bought(pair.accept(quote)))
            await settle(10)
            assert pair.seller.node.figures().queued_bytes < 200_000
            go_on.set()
            assert (await buying)[1] == b"".join(pieces)

    virtual_time.run(scenario())


def test_a_sale_whose_request_was_not_kept_is_not_run_after_a_restart():
    async def scenario():
        async with Pair() as pair:
            keep = pair.seller.store.keep_sale

            async def without_body(sale):
                await keep(replace(sale, kept=replace(sale.kept, body=b"")))

            pair.seller.store.keep_sale = without_body
            unpaid = await pair.quote()
            pair.compute.gate.clear()
            buying = asyncio.create_task(bought(pair.accept(await pair.quote())))
            await settle()
            await pair.seller.restart()
            details = "lcp_error code=7: backend unavailable: interrupted by a restart"
            assert await _code(buying) == details
            await settle()
            assert (await _code(bought(pair.accept(unpaid)))).startswith("payment failed")

    virtual_time.run(scenario())


def test_a_buyer_follows_no_invoices():
    async def scenario():
        async with Pair() as pair:
            assert pair.buyer.node.figures().invoices_up is None
            assert not pair.buyer.lightning.invoices._streams
            assert pair.seller.node.figures().invoices_up is True

    virtual_time.run(scenario())


def test_a_node_that_stops_finishes_what_runs_and_leaves_what_is_paid_meanwhile_to_its_next_run():
    async def scenario():
        async with Pair() as pair:
            pair.compute.gate.clear()
            running = asyncio.create_task(pair.buy(stream=True))
            late = await pair.quote(stream=True)
            await settle()
            draining = asyncio.create_task(pair.seller.node.drain())
            await settle()
            assert await _code(pair.quote()) == "lcp_error code=7: the node stops"
            buying = asyncio.create_task(bought(pair.accept(late)))
            await settle()
            assert not draining.done() and len(pair.compute.runs) == 1
            pair.compute.gate.set()
            await draining
            assert (await running)[1] == RESULT
            await pair.seller.restart()
            assert (await buying)[1] == RESULT
            assert len(pair.compute.runs) == 2

    virtual_time.run(scenario())
