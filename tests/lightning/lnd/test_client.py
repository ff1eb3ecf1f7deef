import asyncio
import os
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from hashlib import sha256
from time import monotonic

import grpc
import pytest

from lcp_gateway.lightning.lnd import client as lnd_module
from lcp_gateway.lightning.lnd import stubs
from lcp_gateway.lightning.lnd.client import LndClient
from lcp_gateway.lightning.lnd.records import FailureReason, LndError, PaymentState
from lcp_gateway.lightning.lnd.stubs import LndNotInstalled
from tests.support.lnd_standin import (
    FAILED,
    IN_FLIGHT,
    INITIATED,
    LN,
    MACAROON,
    STUBS,
    LndStandin,
    Trouble,
    channel,
    make_certificate,
    settled,
    unfinished,
)

PREIMAGE = b"\x09" * 32
HASH = sha256(PREIMAGE).digest()


@pytest.fixture
async def node(tmp_path):
    standin = LndStandin(tmp_path)
    await standin.start()
    yield standin
    await standin.stop()


@pytest.fixture
async def lnd(node):
    async with LndClient(node.address, timeout_s=60) as client:
        yield client


async def failure(question) -> LndError:
    with pytest.raises(LndError) as failed:
        await question
    return failed.value


async def eventually(ask, within_s=60.0):
    """Call until there is an answer; return it, or raise the last error after the timeout."""
    deadline = monotonic() + within_s
    while True:
        try:
            return await ask()
        except LndError:
            if monotonic() > deadline:
                raise
            await asyncio.sleep(0.02)


async def test_lnds_identity_and_state_are_read(node, lnd):
    info = await lnd.info()

    assert info.identity == node.identity
    assert (info.network, info.invoice_prefix) == ("regtest", "bcrt")
    assert info.version == "0.20.0-beta"
    assert info.synced_to_chain and info.synced_to_graph
    assert (info.block_height, info.peers) == (101, 1)
    assert (info.channels_active, info.channels_inactive, info.channels_pending) == (1, 0, 0)


async def test_an_unknown_network_has_no_prefix(node, lnd):
    node.info.chains[0].network = "moonnet"
    assert (await lnd.info()).invoice_prefix is None

    node.info.ClearField("chains")
    assert (await lnd.info()).network == ""


async def test_balances_are_whole_msat(node, lnd):
    node.balance = LN.ChannelBalanceResponse(
        local_balance=LN.Amount(sat=1, msat=1_234),
        remote_balance=LN.Amount(sat=2, msat=2_345),
        unsettled_local_balance=LN.Amount(msat=3),
        pending_open_local_balance=LN.Amount(msat=4),
    )

    balance = await lnd.balance()

    assert (balance.local_msat, balance.remote_msat) == (1_234, 2_345)
    assert (balance.unsettled_local_msat, balance.pending_local_msat) == (3, 4)


async def test_only_what_is_above_the_reserves_of_active_channels_is_spendable(node, lnd):
    node.channels = [
        channel(10_000, reserve_sat=1_000, pending_htlcs=2),
        channel(500, reserve_sat=1_000),
        channel(3_000),
        channel(90_000, active=False),
    ]

    channels = await lnd.channels()

    assert (channels.active, channels.inactive, channels.pending_htlcs) == (3, 1, 2)
    assert channels.spendable_msat == 12_000_000
    assert channels.largest_spendable_msat == 9_000_000


async def test_a_node_without_channels_can_spend_nothing(lnd):
    assert (await lnd.channels()).largest_spendable_msat == 0


def preimage_of(number):
    return bytes([number]) * 32


async def test_payments_are_listed_from_an_index_on_and_back_from_the_end(node, lnd):
    for number in range(1, 6):
        node.knows(settled(preimage_of(number), fee_msat=number))

    after = await lnd.payments_after(2, 2)
    last = await lnd.payments_before(0, 2)
    before = await lnd.payments_before(4, 10)

    assert [index for index, _ in after.payments] == [3, 4]
    assert (after.count, after.first_index, after.last_index) == (2, 3, 4)
    assert [record.fee_msat for record in after.records()] == [3, 4]
    assert [index for index, _ in last.payments] == [4, 5]
    assert [index for index, _ in before.payments] == [1, 2, 3]
    assert (await lnd.payments_after(5, 10)).count == 0


async def test_a_payment_that_makes_no_sense_hides_no_other(node, lnd):
    odd = settled(preimage_of(1))
    odd.payment_preimage = "none"
    node.knows(odd)
    timeless = settled(preimage_of(2))
    timeless.creation_time_ns = -1
    node.knows(timeless)
    node.knows(settled(preimage_of(3)))

    page = await lnd.payments_after(0, 10)

    assert [index for index, _ in page.payments] == [2, 3]
    assert (page.count, page.last_index) == (3, 3)
    assert [record.created_at is None for record in page.records()] == [True, False]


async def test_a_settled_payment_comes_with_its_fee_and_preimage(node, lnd):
    # A record's time has no fraction of a second.
    before = datetime.now(UTC).replace(microsecond=0)
    node.knows(settled(PREIMAGE, value_msat=57_372, fee_msat=1_001))
    after = datetime.now(UTC)

    record = await lnd.payment(HASH)

    assert record.state is PaymentState.SETTLED
    assert record.payment_hash == HASH
    assert (record.amount_msat, record.fee_msat) == (57_372, 1_001)
    assert record.preimage == PREIMAGE
    assert before <= record.created_at <= after
    assert node.calls == ["TrackPaymentV2"]


@pytest.mark.parametrize("status", [0, IN_FLIGHT, INITIATED, 77])
async def test_what_has_not_ended_is_in_flight_and_the_answer_does_not_wait_for_its_end(node, lnd, status):
    node.knows(unfinished(HASH, status=status))

    record = await lnd.payment(HASH)

    assert record.state is PaymentState.IN_FLIGHT
    assert record.preimage is None and record.fee_msat is None


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (1, FailureReason.TIMEOUT),
        (2, FailureReason.NO_ROUTE),
        (3, FailureReason.ERROR),
        (4, FailureReason.INCORRECT_PAYMENT_DETAILS),
        (5, FailureReason.INSUFFICIENT_BALANCE),
        (6, FailureReason.CANCELLED),
        (99, FailureReason.OTHER),
    ],
)
async def test_a_failed_payment_says_why(node, lnd, number, reason):
    node.knows(unfinished(HASH, status=FAILED, failure_reason=number))

    record = await lnd.payment(HASH)

    assert (record.state, record.failure) == (PaymentState.FAILED, reason)
    assert record.preimage is None


async def test_a_payment_that_lnd_never_heard_of_is_a_fact_and_not_an_error(lnd):
    record = await lnd.payment(HASH)

    assert record.state is PaymentState.UNKNOWN_TO_LND
    assert record.payment_hash == HASH


class TestWithoutTheRoutersCalls:
    @pytest.fixture
    async def node(self, tmp_path):
        standin = LndStandin(tmp_path, with_router=False)
        await standin.start()
        yield standin
        await standin.stop()

    async def test_a_payment_is_found_in_the_list(self, node, lnd):
        node.knows(settled(PREIMAGE))
        for number in range(250):
            node.knows(settled(number.to_bytes(32, "big")))

        record = await lnd.payment(HASH)

        assert (record.state, record.preimage) == (PaymentState.SETTLED, PREIMAGE)
        assert node.calls == ["ListPayments"] * 3

    @pytest.mark.parametrize("others", [0, 1, 100, 101])
    async def test_a_payment_is_absent_when_the_whole_list_was_read(self, node, lnd, others):
        for number in range(others):
            node.knows(settled(number.to_bytes(32, "big")))

        assert (await lnd.payment(HASH)).state is PaymentState.UNKNOWN_TO_LND

    async def test_a_short_page_is_not_taken_for_the_end_of_the_list(self, node, lnd):
        node.longest_page = 7
        node.knows(settled(PREIMAGE))
        for number in range(20):
            node.knows(settled(number.to_bytes(32, "big")))

        assert (await lnd.payment(HASH)).state is PaymentState.SETTLED

    async def test_a_list_too_long_to_read_proves_nothing(self, node, lnd, monkeypatch):
        monkeypatch.setattr(lnd_module, "_MAX_PAGES", 2)
        for number in range(250):
            node.knows(settled(number.to_bytes(32, "big")))

        error = await failure(lnd.payment(HASH))

        assert (error.status, error.retryable) == ("OUT_OF_RANGE", False)


@pytest.mark.parametrize("field", ["payment_hash", "payment_preimage"])
@pytest.mark.parametrize("nonsense", ["", "ab", "zz" * 32])
async def test_a_malformed_answer_is_an_error(node, lnd, field, nonsense):
    payment = settled(PREIMAGE)
    setattr(payment, field, nonsense)
    node.payments[HASH] = payment

    error = await failure(lnd.payment(HASH))

    assert (error.status, error.retryable) == ("INTERNAL", False)


async def test_lnd_reads_an_invoice(node, lnd):
    added = await add_invoice(node, value_msat=5_000, memo="top-up", expiry=60)

    invoice = await lnd.decode(added.payment_request)

    assert (invoice.payee, invoice.payment_hash) == (node.identity, added.r_hash)
    assert (invoice.amount_msat, invoice.expiry_s) == (5_000, 60)
    assert (invoice.description, invoice.description_hash) == ("top-up", None)


async def test_an_invoice_without_an_amount_has_none(node, lnd):
    added = await add_invoice(node, description_hash=b"\x22" * 32)

    invoice = await lnd.decode(added.payment_request)

    assert (invoice.amount_msat, invoice.description_hash) == (None, b"\x22" * 32)


async def test_an_invoice_that_lnd_cannot_parse_is_an_error(lnd):
    assert (await failure(lnd.decode("lnbc1nonsense"))).status == "UNKNOWN"


@pytest.mark.parametrize(
    ("status", "text", "retryable"),
    [
        ("UNAVAILABLE", "connection refused", True),
        ("UNKNOWN", "wallet locked, unlock it to enable full RPC access", True),
        ("UNKNOWN", "permission denied", False),
        ("PERMISSION_DENIED", "no", False),
        ("UNAUTHENTICATED", "no", False),
        ("INVALID_ARGUMENT", "no", False),
        ("RESOURCE_EXHAUSTED", "later", True),
    ],
)
async def test_errors_say_whether_asking_again_may_help(node, lnd, status, text, retryable):
    node.trouble = Trouble(grpc.StatusCode[status], text)

    for question in (lnd.info(), lnd.payment(HASH)):
        error = await failure(question)
        assert (error.status, error.retryable) == (status, retryable)
        assert text in str(error)


async def test_the_text_of_an_error_is_bounded_and_printable(node, lnd):
    node.trouble = Trouble(grpc.StatusCode.UNKNOWN, "\x1b[31m" + "x" * 5_000)

    text = str(await failure(lnd.info()))

    assert text.isprintable() and len(text) < 400


async def test_an_lnd_that_does_not_answer_is_given_up_in_time(node):
    node.trouble = Trouble(delay_s=60)
    async with LndClient(node.address, timeout_s=0.2) as lnd, asyncio.timeout(60):
        for question in (lnd.info(), lnd.payment(HASH)):
            error = await failure(question)
            assert (error.status, error.retryable) == ("DEADLINE_EXCEEDED", True)


async def test_the_wrong_macaroon_is_refused_and_not_shown(node, tmp_path):
    wrong = tmp_path / "wrong.macaroon"
    wrong.write_bytes(b"\xaa\xbb\xcc" * 9)
    async with LndClient(replace(node.address, macaroon=wrong), timeout_s=60) as lnd:
        error = await failure(lnd.info())

    assert "verification failed" in str(error) and not error.retryable
    for shown in (str(error), repr(error), repr(lnd), repr(node.address)):
        assert "aabbcc" not in shown and MACAROON.hex() not in shown


async def test_another_certificate_than_lnds_own_is_not_trusted(node, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    certificate, _ = make_certificate(elsewhere)
    async with LndClient(replace(node.address, tls_cert=certificate), timeout_s=1) as lnd:
        error = await failure(lnd.info())

    assert error.status in {"UNAVAILABLE", "DEADLINE_EXCEEDED"}
    assert node.calls == []


@pytest.mark.parametrize("field", ["tls_cert", "macaroon"])
async def test_a_missing_file_is_found_at_once(node, tmp_path, field):
    with pytest.raises(FileNotFoundError):
        LndClient(replace(node.address, **{field: tmp_path / "nowhere"}))


async def test_a_restart_of_lnd_is_survived_and_what_it_knew_is_still_known(node, lnd):
    node.knows(settled(PREIMAGE))
    assert (await lnd.payment(HASH)).state is PaymentState.SETTLED

    for _ in range(2):
        await node.stop()
        error = await failure(lnd.payment(HASH))
        assert (error.status, error.retryable) == ("UNAVAILABLE", True)
        await node.start()

        assert (await eventually(lambda: lnd.payment(HASH))).state is PaymentState.SETTLED


async def test_lnd_may_start_after_the_gateway(tmp_path):
    node = LndStandin(tmp_path)
    await node.start()
    await node.stop()
    async with LndClient(node.address, timeout_s=1) as lnd:
        assert (await failure(lnd.info())).retryable
        await node.start()
        assert (await eventually(lnd.info)).identity == node.identity
    await node.stop()


async def test_a_call_that_is_cut_by_a_restart_is_an_error_that_passes(node, lnd):
    node.trouble = Trouble(delay_s=60)
    asked = asyncio.create_task(failure(lnd.info()))
    while "GetInfo" not in node.calls:
        await asyncio.sleep(0.01)
    await node.stop()

    assert (await asked).retryable


async def test_no_call_here_can_pay(node, lnd):
    """The macaroon in the docs has two permissions, which only these calls need."""
    added = await add_invoice(node, value_msat=1)
    node.calls.clear()
    for question in (lnd.info(), lnd.balance(), lnd.channels(), lnd.payment(HASH), lnd.decode(added.payment_request)):
        await question

    assert node.calls == ["GetInfo", "ChannelBalance", "ListChannels", "TrackPaymentV2", "DecodePayReq"]


def test_the_stubs_are_loaded_only_when_lnd_is_asked_and_leave_the_process_as_it_was():
    program = (
        "import os, sys\n"
        "from lcp_gateway.lightning import checks, receipts, reconcile\n"
        "from lcp_gateway.lightning.lnd import client, stubs\n"
        "assert 'lndgrpc' not in sys.modules\n"
        "before = dict(os.environ)\n"
        "stubs.load_stubs()\n"
        "assert 'lndgrpc' in sys.modules\n"
        "assert dict(os.environ) == before, 'gRPC ciphers of the whole process were changed'\n"
    )
    for ciphers in ({}, {"GRPC_SSL_CIPHER_SUITES": "HIGH"}):
        subprocess.run([sys.executable, "-c", program], check=True, env={**os.environ, **ciphers})


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "lndgrpc.compiled", None)

    with pytest.raises(LndNotInstalled, match=r"lcp-gateway\[lnd\]"):
        stubs.load_stubs()


async def add_invoice(node, **fields):
    async with open_channel(node) as channel_:
        stub = STUBS.lightning_grpc.LightningStub(channel_)
        return await stub.AddInvoice(LN.Invoice(**fields), metadata=admitted())


def open_channel(node):
    credentials = grpc.ssl_channel_credentials(node.address.tls_cert.read_bytes())
    return grpc.aio.secure_channel(node.address.target, credentials)


def admitted():
    return (("macaroon", MACAROON.hex()),)


async def test_the_standin_sends_settled_invoices_and_ends_cleanly_when_it_stops(node):
    first, second, third = [await add_invoice(node, value_msat=n) for n in (1, 2, 3)]
    await node.settle(second.r_hash)
    async with open_channel(node) as channel_:
        stub = STUBS.lightning_grpc.LightningStub(channel_)
        call = stub.SubscribeInvoices(LN.InvoiceSubscription(), metadata=admitted())
        while "SubscribeInvoices" not in node.calls:
            await asyncio.sleep(0.01)
        await node.settle(first.r_hash)
        heard = await call.read()
        assert (heard.r_hash, heard.settle_index) == (first.r_hash, 2)
        await node.stop()
        assert await call.read() is grpc.aio.EOF
        assert await call.code() is grpc.StatusCode.OK

    await node.start()
    await node.settle(third.r_hash)
    async with open_channel(node) as channel_:
        stub = STUBS.lightning_grpc.LightningStub(channel_)
        missed = stub.SubscribeInvoices(LN.InvoiceSubscription(settle_index=1), metadata=admitted())
        assert [(await missed.read()).r_hash for _ in range(2)] == [first.r_hash, third.r_hash]
        missed.cancel()
