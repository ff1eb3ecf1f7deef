import asyncio
import time
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from hashlib import sha256

import grpc
import pytest
from coincurve import PrivateKey

from lcp_gateway.lightning import bolt11
from lcp_gateway.lightning.lnd import demo
from lcp_gateway.lightning.lnd.channel import LndAddress
from lcp_gateway.lightning.lnd.invoices import LndInvoices
from lcp_gateway.lightning.lnd.records import (
    InvoiceFlaw,
    InvoiceState,
    InvoiceStatus,
    LndError,
    SettledInvoice,
    SettlementsInterrupted,
    WrongInvoice,
)
from lcp_gateway.node.config import NodeConfig
from lcp_gateway.node.server import Node
from tests.support.lnd_standin import LN, LndStandin, Trouble

HOUR = 3_600


@pytest.fixture
async def lnd(tmp_path):
    standin = LndStandin(tmp_path)
    await standin.start()
    yield standin
    await standin.stop()


@pytest.fixture
async def invoices(lnd):
    async with LndInvoices(lnd.address, timeout_s=60, poll_s=0.01) as client:
        yield client


class Follower:
    """Collects settlements in the background, and what ended them."""

    def __init__(self, invoices: LndInvoices, settle_index: int = 0) -> None:
        self.heard: list[SettledInvoice] = []
        self._arrived = asyncio.Event()
        self.task = asyncio.create_task(self._follow(invoices, settle_index))

    async def _follow(self, invoices, settle_index):
        async with aclosing(invoices.follow(settle_index)) as settlements:
            async for settled in settlements:
                self.heard.append(settled)
                self._arrived.set()

    async def hears(self, count: int) -> list[SettledInvoice]:
        async with asyncio.timeout(60):
            while len(self.heard) < count:
                waiting = asyncio.create_task(self._arrived.wait())
                await asyncio.wait({waiting, self.task}, return_when=asyncio.FIRST_COMPLETED)
                waiting.cancel()
                if self.task.done() and len(self.heard) < count:
                    self.task.result()
                self._arrived.clear()
        assert len(self.heard) == count
        return self.heard

    async def ends(self) -> SettlementsInterrupted:
        with pytest.raises(SettlementsInterrupted) as ended:
            await asyncio.wait_for(self.task, 60)
        return ended.value

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


async def follow_again(invoices, settle_index) -> Follower:
    """Follow settlements once lnd is back: over the connection that it answers on."""
    async with asyncio.timeout(60):
        while True:
            try:
                await invoices.identity()
            except LndError:
                await asyncio.sleep(0.02)
            else:
                return Follower(invoices, settle_index)


async def subscribed(lnd):
    async with asyncio.timeout(60):
        while "SubscribeInvoices" not in lnd.calls:
            await asyncio.sleep(0.01)


async def settled_invoice(lnd, invoices, **how):
    created = await invoices.create(5_000, "a top-up", HOUR)
    await lnd.settle(created.payment_hash, **how)
    return created


class TestMakingInvoices:
    async def test_an_invoice_says_what_it_was_asked_to_say(self, lnd, invoices):
        # An invoice's time has no fraction of a second.
        before = datetime.now(UTC).replace(microsecond=0)
        created = await invoices.create(123_456, "Aufladung für Ada", 600)
        after = datetime.now(UTC)

        invoice = bolt11.decode(created.payment_request)
        assert (invoice.amount_msat, invoice.description) == (123_456, "Aufladung für Ada")
        assert (invoice.payee, invoice.network) == (lnd.identity, "bcrt")
        assert invoice.payment_hash == created.payment_hash
        assert created.expires_at == datetime.fromtimestamp(invoice.expires_at, UTC)
        assert before <= created.expires_at - timedelta(seconds=600) <= after
        assert (await invoices.create(1_000, "", 600)).add_index == created.add_index + 1

    async def test_route_hints_are_asked_for_where_channels_are_private(self, lnd):
        async with LndInvoices(lnd.address, route_hints=True, timeout_s=60) as invoices:
            created = await invoices.create(1_000, "", 600)
        assert lnd.invoice(created.payment_hash).private

    @pytest.mark.parametrize(
        ("forged", "flaw"),
        [
            ({"key": PrivateKey(b"\x06" * 32)}, InvoiceFlaw.PAYEE),
            ({"network": "bc"}, InvoiceFlaw.NETWORK),
            ({"amount_msat": 5_001}, InvoiceFlaw.AMOUNT),
            ({"amount_msat": None}, InvoiceFlaw.AMOUNT),
            ({"description": "something else"}, InvoiceFlaw.DESCRIPTION),
            ({"description": None, "description_hash": sha256(b"a top-up").digest()}, InvoiceFlaw.DESCRIPTION),
            ({"payment_hash": b"\x01" * 32}, InvoiceFlaw.PAYMENT_HASH),
            ({"expiry_s": 7}, InvoiceFlaw.EXPIRY),
            ({"timestamp": int(time.time()) - HOUR}, InvoiceFlaw.EXPIRY),
        ],
    )
    async def test_an_invoice_that_is_not_the_one_asked_for_is_refused(self, lnd, invoices, forged, flaw):
        lnd.forged = forged

        with pytest.raises(WrongInvoice) as wrong:
            await invoices.create(5_000, "a top-up", HOUR)

        assert wrong.value.flaw is flaw
        assert "a top-up" not in str(wrong.value)
        lnd.forged = {}
        await invoices.create(5_000, "a top-up", HOUR)

    async def test_an_answer_that_is_no_invoice_is_refused(self, lnd, invoices, monkeypatch):
        monkeypatch.setattr(bolt11, "encode", lambda *_, **__: "lnbcrt1thisisnotaninvoice")

        with pytest.raises(WrongInvoice) as wrong:
            await invoices.create(5_000, "a top-up", HOUR)

        assert wrong.value.flaw is InvoiceFlaw.MALFORMED

    async def test_the_network_may_be_laid_down(self, lnd):
        async with LndInvoices(lnd.address, network="bc", timeout_s=60) as invoices:
            with pytest.raises(WrongInvoice) as wrong:
                await invoices.create(5_000, "a top-up", HOUR)
        assert wrong.value.flaw is InvoiceFlaw.NETWORK

    async def test_an_unknown_network_is_not_checked(self, lnd, invoices):
        lnd.info.chains[0].network = "moonnet"
        assert (await invoices.identity()).network is None
        await invoices.create(5_000, "a top-up", HOUR)

    async def test_another_node_behind_the_address_is_accepted_at_the_second_invoice(self, lnd, invoices):
        await invoices.create(5_000, "a top-up", HOUR)
        lnd.key = PrivateKey(b"\x06" * 32)
        lnd.info.identity_pubkey = lnd.key.public_key.format().hex()

        with pytest.raises(WrongInvoice):
            await invoices.create(5_000, "a top-up", HOUR)
        await invoices.create(5_000, "a top-up", HOUR)

        assert (await invoices.identity()).node_id == lnd.info.identity_pubkey

    @pytest.mark.parametrize(
        ("amount_msat", "memo", "expiry_s"),
        [(0, "", 1), (-1, "", 1), (1, "", 0), (1, "", -1), (1, "x" * 640, 1), (1, "ü" * 320, 1)],
    )
    async def test_an_impossible_invoice_is_not_requested(self, lnd, invoices, amount_msat, memo, expiry_s):
        with pytest.raises(ValueError, match=r"above zero|at most 639 bytes"):
            await invoices.create(amount_msat, memo, expiry_s)
        assert "AddInvoice" not in lnd.calls

    async def test_the_longest_memo_fits(self, invoices):
        await invoices.create(1_000, "x" * 639, HOUR)

    async def test_an_lnd_that_is_slow_or_away_is_an_error(self, lnd):
        async with LndInvoices(lnd.address, timeout_s=60) as invoices:
            await invoices.identity()
            invoices._timeout_s = 0.2
            lnd.trouble = Trouble(delay_s=60)
            with pytest.raises(LndError) as slow:
                await invoices.create(5_000, "", HOUR)
            lnd.trouble = Trouble()
            await lnd.stop()
            with pytest.raises(LndError) as away:
                await invoices.create(5_000, "", HOUR)
            await lnd.start()
        assert (slow.value.status, slow.value.retryable) == ("DEADLINE_EXCEEDED", True)
        assert away.value.retryable

    async def test_a_wrong_macaroon_is_not_worth_another_try(self, lnd, tmp_path):
        other = tmp_path / "other.macaroon"
        other.write_bytes(b"\x02other")
        address = LndAddress(lnd.address.target, lnd.address.tls_cert, other)
        async with LndInvoices(address, timeout_s=60) as invoices:
            with pytest.raises(LndError) as refused:
                await invoices.create(5_000, "", HOUR)
            ended = await Follower(invoices, 1).ends()
        assert not refused.value.retryable
        assert not ended.retryable

    def test_a_macaroon_is_never_sent_in_the_clear(self, tmp_path):
        with pytest.raises(ValueError, match="over TLS only"):
            LndAddress("127.0.0.1:1", macaroon=tmp_path / "a.macaroon")


class TestLookingUp:
    async def test_an_open_invoice_has_no_preimage(self, invoices):
        created = await invoices.create(5_000, "", HOUR)

        assert await invoices.lookup(created.payment_hash) == InvoiceState(InvoiceStatus.OPEN)

    async def test_a_settled_invoice_has_the_amount_paid(self, lnd, invoices):
        before = datetime.now(UTC).replace(microsecond=0)
        created = await settled_invoice(lnd, invoices, paid_msat=6_000)
        after = datetime.now(UTC)

        state = await invoices.lookup(created.payment_hash)

        assert (state.state, state.amount_paid_msat) == (InvoiceStatus.SETTLED, 6_000)
        assert state.settle_index == 1
        assert sha256(state.preimage).digest() == created.payment_hash
        assert before <= state.settled_at <= after
        assert state.preimage.hex() not in repr(state) and repr(state.preimage) not in repr(state)

    async def test_a_preimage_that_does_not_fit_is_none(self, lnd, invoices):
        created = await settled_invoice(lnd, invoices)
        lnd.invoice(created.payment_hash).r_preimage = b"\x01" * 32

        state = await invoices.lookup(created.payment_hash)

        assert (state.state, state.preimage) == (InvoiceStatus.SETTLED, None)

    @pytest.mark.parametrize(("number", "state"), [(2, "canceled"), (3, "accepted"), (77, "open")])
    async def test_other_states_are_read_with_care(self, lnd, invoices, number, state):
        created = await invoices.create(5_000, "", HOUR)
        lnd.invoice(created.payment_hash).state = number

        assert await invoices.lookup(created.payment_hash) == InvoiceState(InvoiceStatus(state))

    async def test_an_invoice_that_lnd_does_not_know_is_said_to_be_unknown(self, invoices):
        unknown = InvoiceState(InvoiceStatus.UNKNOWN_TO_LND)
        assert await invoices.lookup(b"\x01" * 32) == unknown
        await invoices.create(5_000, "", HOUR)
        assert await invoices.lookup(b"\x01" * 32) == unknown

    async def test_an_answer_about_another_invoice_is_an_error(self, lnd, invoices, monkeypatch):
        created = await invoices.create(5_000, "", HOUR)
        other = LN.Invoice(r_hash=b"\x02" * 32, state=1)
        monkeypatch.setattr(lnd, "invoice", lambda _: other)

        with pytest.raises(LndError, match="another invoice"):
            await invoices.lookup(created.payment_hash)

    async def test_an_error_is_not_an_unknown_invoice(self, lnd, invoices):
        lnd.trouble = Trouble(grpc.StatusCode.UNKNOWN, "wallet locked, unlock it")

        with pytest.raises(LndError) as failed:
            await invoices.lookup(b"\x01" * 32)

        assert failed.value.retryable


class TestFollowing:
    async def test_settlements_are_reported_as_they_happen(self, lnd, invoices):
        first = await settled_invoice(lnd, invoices)
        follower = Follower(invoices, 1)
        await subscribed(lnd)
        second = await invoices.create(5_000, "", HOUR)
        await lnd.settle(second.payment_hash, paid_msat=7_000)

        (heard,) = await follower.hears(1)
        await follower.stop()

        assert (heard.payment_hash, heard.amount_paid_msat) == (second.payment_hash, 7_000)
        assert heard.settle_index == 2
        assert heard.settled_at.tzinfo is UTC
        assert first.payment_hash != second.payment_hash

    async def test_a_settlement_with_an_impossible_time_is_still_reported(self, lnd, invoices):
        """Regression: an invalid timestamp ended the following for good, and no later top-up was credited."""
        await settled_invoice(lnd, invoices)
        odd = await invoices.create(5_000, "", HOUR)
        await lnd.settle(odd.payment_hash)
        lnd.invoice(odd.payment_hash).settle_date = 1 << 62
        assert (await invoices.lookup(odd.payment_hash)).settled_at.tzinfo is UTC
        follower = Follower(invoices, 1)
        (heard,) = await follower.hears(1)
        await follower.stop()
        assert (heard.payment_hash, heard.settled_at.tzinfo) == (odd.payment_hash, UTC)

    async def test_the_first_settlement_of_all_is_not_missed(self, lnd, invoices):
        created = await settled_invoice(lnd, invoices)

        follower = Follower(invoices)
        (heard,) = await follower.hears(1)
        assert (heard.payment_hash, heard.settle_index) == (created.payment_hash, 1)

        later = await settled_invoice(lnd, invoices)
        assert (await follower.hears(2))[1].payment_hash == later.payment_hash
        await follower.stop()

    async def test_before_the_first_settlement_it_is_waited_for(self, lnd, invoices):
        follower = Follower(invoices)
        while lnd.calls.count("ListInvoices") < 3:
            await asyncio.sleep(0.01)
        created = await settled_invoice(lnd, invoices)

        assert (await follower.hears(1))[0].payment_hash == created.payment_hash
        await follower.stop()

    async def test_from_nothing_on_the_newest_come_in_the_order_of_their_settlement(self, lnd, invoices):
        made = [await invoices.create(5_000, "", HOUR) for _ in range(4)]
        for created in (made[2], made[0], made[3]):
            await lnd.settle(created.payment_hash)

        follower = Follower(invoices)
        heard = await follower.hears(3)
        await follower.stop()

        assert [it.settle_index for it in heard] == [1, 2, 3]
        assert heard[0].payment_hash == made[2].payment_hash

    async def test_settlements_between_two_subscriptions_come_first(self, lnd, invoices):
        missed = [await settled_invoice(lnd, invoices) for _ in range(5)]

        follower = Follower(invoices, 2)
        heard = await follower.hears(3)
        await follower.stop()

        assert [it.payment_hash for it in heard] == [it.payment_hash for it in missed[2:]]

    async def test_a_clean_end_is_an_interruption(self, lnd, invoices):
        await settled_invoice(lnd, invoices)
        follower = Follower(invoices, 1)
        await subscribed(lnd)
        await lnd.stop()

        ended = await follower.ends()

        assert (ended.status, ended.retryable) == ("CANCELLED", True)
        await lnd.start()

    async def test_a_killed_lnd_is_an_interruption(self, lnd, invoices):
        await settled_invoice(lnd, invoices)
        follower = Follower(invoices, 1)
        await subscribed(lnd)
        await lnd.kill()

        assert (await follower.ends()).retryable
        assert (await Follower(invoices, 1).ends()).retryable
        assert (await Follower(invoices).ends()).retryable
        await lnd.start()

    @pytest.mark.parametrize("killed", [False, True])
    async def test_a_settlement_during_a_restart_is_reported_once(self, lnd, invoices, killed):
        made = [await invoices.create(5_000, "", HOUR) for _ in range(4)]
        await lnd.settle(made[0].payment_hash)
        follower = Follower(invoices)
        await follower.hears(1)
        while "SubscribeInvoices" not in lnd.calls:
            await asyncio.sleep(0.01)
        # One is settled at the moment of the stop: it may or may not be reported before the end.
        await asyncio.gather(lnd.settle(made[1].payment_hash), lnd.kill() if killed else lnd.stop())
        await follower.ends()
        heard = list(follower.heard)
        await lnd.settle(made[2].payment_hash)
        await lnd.start()

        again = await follow_again(invoices, heard[-1].settle_index)
        await lnd.settle(made[3].payment_hash)
        heard += await again.hears(4 - len(heard))
        await again.stop()

        assert [it.payment_hash for it in heard] == [it.payment_hash for it in made]
        assert [it.settle_index for it in heard] == [1, 2, 3, 4]

    async def test_leaving_ends_the_subscription(self, lnd, invoices):
        await settled_invoice(lnd, invoices)
        async with aclosing(invoices.follow(0)) as settlements:
            assert (await anext(settlements)).settle_index == 1
            await settled_invoice(lnd, invoices)
            assert (await anext(settlements)).settle_index == 2

        await asyncio.wait_for(lnd.stop(), 60)
        await lnd.start()


async def pay_at(address, payment_request) -> demo.DemoPayment:
    return await demo.pay(address, payment_request, timeout_s=60)


@pytest.fixture
async def node():
    """An embedded node and its address."""
    made = Node(NodeConfig(listen="127.0.0.1:0"))
    address = await made.start()
    yield made, address
    await made.stop()


class TestTheEmbeddedNode:
    async def test_it_is_asked_and_followed_like_lnd(self, node):
        made, address = node
        async with LndInvoices(LndAddress(address), timeout_s=60, poll_s=0.01) as invoices:
            identity = await invoices.identity()
            follower = Follower(invoices)
            created = await invoices.create(21_000, "a top-up", HOUR)
            assert (await invoices.lookup(created.payment_hash)).state is InvoiceStatus.OPEN

            paid = await pay_at(address, created.payment_request)

            (heard,) = await follower.hears(1)
            state = await invoices.lookup(created.payment_hash)
            second = await invoices.create(22_000, "", HOUR)
            await pay_at(address, second.payment_request.upper())
            await follower.hears(2)
            await follower.stop()

        assert identity.node_id == made.invoices.node_id and identity.network == "bcrt"
        assert (paid.payment_hash, paid.amount_msat) == (created.payment_hash, 21_000)
        assert (heard.payment_hash, heard.amount_paid_msat) == (created.payment_hash, 21_000)
        assert state.settle_index == heard.settle_index and state.preimage == paid.preimage
        assert paid.preimage.hex() not in repr(paid)

    async def test_paying_twice_says_so(self, node):
        _, address = node
        async with LndInvoices(LndAddress(address), timeout_s=60) as invoices:
            created = await invoices.create(21_000, "a top-up", HOUR)
        await pay_at(address, created.payment_request)

        with pytest.raises(demo.DemoPaymentFailed, match="the invoice was not paid") as failed:
            await pay_at(address, created.payment_request)

        assert failed.value.reason == "invoice is already paid"

    async def test_a_stop_is_reported_and_the_next_run_continues_from_the_same_index(self):
        first = Node(NodeConfig(listen="127.0.0.1:0"))
        address = await first.start()
        config = NodeConfig(listen=address)
        async with LndInvoices(LndAddress(address), timeout_s=60, poll_s=0.01) as invoices:
            before = await invoices.create(21_000, "", HOUR)
            await pay_at(address, before.payment_request)
            follower = Follower(invoices)
            await follower.hears(1)
            # The second is reported only once the subscription is in place.
            await pay_at(address, (await invoices.create(21_000, "", HOUR)).payment_request)
            heard = (await follower.hears(2))[-1]
            await first.stop(1.0)
            assert (await follower.ends()).status == "CANCELLED"

            second = Node(config)
            await second.start()
            again = await follow_again(invoices, heard.settle_index)
            after = await invoices.create(22_000, "", HOUR)
            await pay_at(address, after.payment_request)
            (later,) = await again.hears(1)
            await again.stop()

            assert later.payment_hash == after.payment_hash
            assert later.settle_index > heard.settle_index
            forgotten = await invoices.lookup(before.payment_hash)
            assert forgotten.state is InvoiceStatus.UNKNOWN_TO_LND
            await second.stop()

    async def test_it_is_reached_through_a_unix_socket_too(self, tmp_path):
        node = Node(NodeConfig(listen=f"unix:{tmp_path / 'node.sock'}"))
        address = await node.start()
        async with LndInvoices(LndAddress(address), timeout_s=60) as invoices:
            created = await invoices.create(21_000, "", HOUR)
            assert (await pay_at(address, created.payment_request)).amount_msat == 21_000
        await node.stop()

    async def test_a_payment_at_an_address_without_a_node_is_an_error(self):
        with pytest.raises(LndError):
            await demo.pay("127.0.0.1:1", "lnbcrt1", timeout_s=1)
