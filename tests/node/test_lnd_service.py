import asyncio
import os
import subprocess
import sys
import time
from contextlib import asynccontextmanager
from hashlib import sha256

import grpc
import orjson
import pytest
from coincurve import PrivateKey

from lcp_gateway.lightning import bolt11
from lcp_gateway.lightning.lnd.channel import LndAddress
from lcp_gateway.lightning.lnd.client import LndClient
from lcp_gateway.lightning.lnd.stubs import LndNotInstalled, load_stubs
from lcp_gateway.node import lnd_service
from lcp_gateway.node.config import NodeConfig, WalletConfig
from lcp_gateway.node.events import EventKind, EventLog
from lcp_gateway.node.invoices import CallError, InvoiceBook
from lcp_gateway.node.server import Node
from tests.support.node_client import chat_task, until

STUBS = load_stubs()
LN = STUBS.lightning
RECEIVE_LIMIT = [("grpc.max_receive_message_length", 64 * 1024 * 1024)]


class LndServiceClient:
    """A node and a client of its lnd service."""

    def __init__(self, node: Node, address: str, channel: grpc.aio.Channel) -> None:
        self.node = node
        self.address = address
        self.stub = STUBS.lightning_grpc.LightningStub(channel)

    async def add(self, **fields):
        return await self.stub.AddInvoice(LN.Invoice(**fields), timeout=60)

    async def pay(self, payment_request, **fields):
        request = LN.SendRequest(payment_request=payment_request, **fields)
        return await self.stub.SendPaymentSync(request, timeout=60)

    async def lookup(self, payment_hash):
        return await self.stub.LookupInvoice(LN.PaymentHash(r_hash=payment_hash), timeout=60)

    def subscribe(self, **fields):
        return self.stub.SubscribeInvoices(LN.InvoiceSubscription(**fields), timeout=60)


@asynccontextmanager
async def asking(**settings):
    settings.setdefault("listen", "127.0.0.1:0")
    node = Node(NodeConfig(**settings))
    address = await node.start()
    try:
        async with grpc.aio.insecure_channel(address, options=RECEIVE_LIMIT) as channel:
            yield LndServiceClient(node, address, channel)
    finally:
        await node.stop()


@pytest.fixture
async def lnd():
    async with asking() as lnd:
        yield lnd


async def failure(awaitable):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await awaitable
    return caught.value.code().name, caught.value.details()


async def listens(lnd, call):
    """Wait until a subscription to future invoices is in place: it reports an invoice that is created now."""
    reading = asyncio.ensure_future(call.read())
    made = None
    while not reading.done():
        made = await lnd.add(value_msat=1_000)
        await asyncio.wait({reading}, timeout=0.2)
    heard = reading.result()
    while heard.r_hash != made.r_hash:
        heard = await call.read()


async def test_an_invoice_is_signed_by_the_node_and_says_what_was_asked_for(lnd):
    added = await lnd.add(value_msat=12_345, memo="a top-up", expiry=60)
    invoice = bolt11.decode(added.payment_request)

    info = await lnd.stub.GetInfo(LN.GetInfoRequest())
    assert invoice.payee == info.identity_pubkey == lnd.node.invoices.node_id
    assert (invoice.network, info.chains[0].network) == ("bcrt", "regtest")
    assert (invoice.amount_msat, invoice.description, invoice.expiry_s) == (12_345, "a top-up", 60)
    assert (invoice.payment_hash, invoice.payment_secret) == (added.r_hash, added.payment_addr)


async def test_omitted_fields_have_lnds_defaults(lnd):
    added = await lnd.add(value=3)
    invoice = bolt11.decode(added.payment_request)

    assert (invoice.amount_msat, invoice.expiry_s, invoice.description) == (3_000, 86_400, "")


async def test_a_preimage_and_a_description_hash_may_be_given(lnd):
    digest = sha256(b"a long description").digest()
    added = await lnd.add(value=3, r_preimage=b"\x07" * 32, description_hash=digest)

    assert added.r_hash == sha256(b"\x07" * 32).digest()
    assert bolt11.decode(added.payment_request).description_hash == digest
    assert await failure(lnd.add(r_preimage=b"\x07" * 32)) == ("UNKNOWN", "invoice with payment hash already exists")


@pytest.mark.parametrize(
    "fields",
    [
        {"value_msat": -1},
        {"value": 1, "value_msat": 1_000},
        {"memo": "x" * 640},
        {"description_hash": b"short"},
        {"r_preimage": b"short"},
        {"expiry": -1},
        {"expiry": 10**12},
        {"value_msat": 21_000_001 * 10**11},
    ],
)
async def test_an_impossible_invoice_is_refused(lnd, fields):
    assert (await failure(lnd.add(**fields)))[0] == "UNKNOWN"
    assert len(lnd.node.invoices) == 0


async def test_an_invoice_is_paid_once_out_of_the_customers_wallet(lnd):
    added = await lnd.add(value_msat=50_000)
    before, theirs = lnd.node.wallet.balance_msat, lnd.node.customer.balance_msat

    paid = await lnd.pay(added.payment_request)
    again = await lnd.pay(added.payment_request)

    assert sha256(paid.payment_preimage).digest() == added.r_hash == paid.payment_hash
    assert paid.payment_route.total_amt_msat == 50_000
    assert (again.payment_error, again.payment_preimage) == ("invoice is already paid", b"")
    assert lnd.node.wallet.balance_msat == before + 50_000
    assert lnd.node.wallet.received_msat == 50_000
    assert lnd.node.customer.balance_msat == theirs - 50_000


async def test_two_payments_at_once_pay_once():
    async with asking(wallet=WalletConfig(payment_latency_s=1.0)) as lnd:
        added = await lnd.add(value_msat=50_000)
        answers = await asyncio.gather(*(lnd.pay(added.payment_request) for _ in range(2)))

        assert sorted(answer.payment_error for answer in answers) == ["", "payment is in transition"]
        assert lnd.node.wallet.received_msat == 50_000


async def test_a_payment_goes_on_when_its_caller_is_gone():
    async with asking(wallet=WalletConfig(payment_latency_s=1.5)) as lnd:
        added = await lnd.add(value_msat=50_000)
        call = asyncio.create_task(lnd.pay(added.payment_request))
        await until(lambda: lnd.node.invoices.find(added.r_hash).in_flight)
        call.cancel()

        async with asyncio.timeout(60):
            while (await lnd.lookup(added.r_hash)).state != 1:
                await asyncio.sleep(0.05)


async def test_a_lookup_returns_the_state_of_an_invoice(lnd):
    added = await lnd.add(value_msat=50_500, memo="a top-up")
    opened = await lnd.lookup(added.r_hash)
    await lnd.pay(added.payment_request)
    settled = await lnd.lookup(added.r_hash)
    by_text = await lnd.stub.LookupInvoice(LN.PaymentHash(r_hash_str=added.r_hash.hex()))

    assert (opened.state, opened.settle_index, opened.amt_paid_msat) == (0, 0, 0)
    assert (settled.state, settled.value_msat, settled.amt_paid_msat) == (1, 50_500, 50_500)
    assert (settled.memo, settled.payment_request) == ("a top-up", added.payment_request)
    assert settled.settle_index > 0 and abs(settled.settle_date - time.time()) < 120
    assert by_text == settled


async def test_an_unknown_invoice_is_not_found(lnd):
    assert await failure(lnd.lookup(b"\x01" * 32)) == ("NOT_FOUND", "unable to locate invoice")
    for nonsense in (LN.PaymentHash(r_hash=b"x"), LN.PaymentHash(r_hash_str="zz")):
        assert (await failure(lnd.stub.LookupInvoice(nonsense)))[0] == "UNKNOWN"


async def test_an_invoice_that_expired_is_canceled_and_cannot_be_paid(lnd):
    added = await lnd.add(value_msat=50_000, expiry=1)
    await asyncio.sleep(bolt11.decode(added.payment_request).expires_at - time.time() + 0.02)

    assert (await lnd.lookup(added.r_hash)).state == 2
    code, details = await failure(lnd.pay(added.payment_request))
    assert code == "UNKNOWN" and details.startswith("invoice expired. Valid until ")
    assert lnd.node.wallet.received_msat == 0


def an_invoice(key, **says):
    return bolt11.encode(
        key,
        **{
            "network": "bcrt",
            "timestamp": int(time.time()),
            "payment_hash": b"\x01" * 32,
            "payment_secret": b"\x02" * 32,
            "amount_msat": 5_000,
            "description": "",
            **says,
        },
    )


async def test_invoices_of_others_and_forged_ones_are_not_paid(lnd):
    key = lnd.node.invoices._key
    known = await lnd.add(value_msat=50_000)
    elsewhere = await lnd.pay(an_invoice(PrivateKey(b"\x06" * 32)))
    unknown = await lnd.pay(an_invoice(key))
    forged = await lnd.pay(an_invoice(key, payment_hash=known.r_hash))

    assert elsewhere.payment_error == "no_route"
    assert unknown.payment_error == forged.payment_error == "incorrect_payment_details"
    assert await failure(lnd.pay(an_invoice(key, network="bc"))) == (
        "UNKNOWN",
        "invoice not for current active network",
    )
    assert (await failure(lnd.pay("lnbcrt1nonsense")))[0] == "UNKNOWN"
    assert (await failure(lnd.pay("")))[0] == "UNKNOWN"


async def test_the_payer_may_choose_the_amount_where_there_is_none(lnd):
    added = await lnd.add(memo="what you like")
    assert (await failure(lnd.pay(added.payment_request)))[0] == "UNKNOWN"
    fixed = await lnd.add(value_msat=5_000)
    assert (await failure(lnd.pay(fixed.payment_request, amt_msat=6_000)))[0] == "UNKNOWN"

    assert (await lnd.pay(added.payment_request, amt=7)).payment_route.total_amt_msat == 7_000
    assert (await lnd.lookup(added.r_hash)).amt_paid_msat == 7_000


async def test_a_customer_without_money_and_a_tiny_amount_do_not_pay():
    async with asking(wallet=WalletConfig(customer_balance_msat=40_000)) as lnd:
        dear = await lnd.add(value_msat=40_001)
        tiny = await lnd.add(value_msat=999)
        assert (await lnd.pay(dear.payment_request)).payment_error == "insufficient_balance"
        assert (await lnd.pay(tiny.payment_request)).payment_error == "no_route"
        assert (await lnd.lookup(dear.r_hash)).state == 0

        enough = await lnd.add(value_msat=40_000)
        assert not (await lnd.pay(enough.payment_request)).payment_error


async def test_a_subscription_replays_what_came_after_its_indexes_and_goes_on(lnd):
    added = [await lnd.add(value_msat=5_000 + n) for n in range(4)]
    settled = []
    for invoice in (added[2], added[0], added[3]):
        await lnd.pay(invoice.payment_request)
        settled.append(await lnd.lookup(invoice.r_hash))

    call = lnd.subscribe(settle_index=settled[0].settle_index)
    assert [(await call.read()).r_hash for _ in range(2)] == [added[0].r_hash, added[3].r_hash]
    await lnd.pay(added[1].payment_request)
    assert (await call.read()).r_hash == added[1].r_hash
    call.cancel()

    call = lnd.subscribe(add_index=added[1].add_index)
    assert [(await call.read()).r_hash for _ in range(2)] == [added[2].r_hash, added[3].r_hash]
    later = await lnd.add(value_msat=9_000)
    heard = await call.read()
    assert (heard.r_hash, heard.state) == (later.r_hash, 0)
    await lnd.pay(later.payment_request)
    heard = await call.read()
    assert (heard.r_hash, heard.state) == (later.r_hash, 1)
    call.cancel()


async def test_a_subscription_without_indexes_gets_only_future_settlements(lnd):
    old = await lnd.add(value_msat=5_000)
    await lnd.pay(old.payment_request)
    call = lnd.subscribe()
    await listens(lnd, call)
    new = await lnd.add(value_msat=6_000)
    await lnd.pay(new.payment_request)

    heard = [await call.read() for _ in range(2)]
    assert [(it.r_hash, it.state) for it in heard] == [(new.r_hash, 0), (new.r_hash, 1)]
    call.cancel()


async def test_every_subscriber_gets_every_settlement_once(lnd):
    calls = [lnd.subscribe(add_index=1) for _ in range(5)]
    added = await asyncio.gather(*(lnd.add(value_msat=5_000) for _ in range(20)))
    wanted = {invoice.r_hash for invoice in added}
    for call in calls:
        heard = [await call.read() for _ in added]
        assert {it.r_hash for it in heard} == wanted
        assert sorted(it.add_index for it in heard) == [it.add_index for it in heard]
        call.cancel()


async def test_a_stop_ends_subscriptions_in_good_order():
    node = Node(NodeConfig(listen="127.0.0.1:0"))
    address = await node.start()
    async with grpc.aio.insecure_channel(address) as channel:
        lnd = LndServiceClient(node, address, channel)
        call = lnd.subscribe()
        await listens(lnd, call)
        await node.stop(60)
        while (heard := await call.read()) is not grpc.aio.EOF:
            assert heard.add_index
        assert await call.code() is grpc.StatusCode.OK


async def test_indexes_of_a_later_run_are_higher():
    indexes = []
    for _ in range(2):
        async with asking() as lnd:
            added = await lnd.add(value_msat=5_000)
            await lnd.pay(added.payment_request)
            indexes.append((added.add_index, (await lnd.lookup(added.r_hash)).settle_index))
    assert indexes[0] < indexes[1] and indexes[0][1] < indexes[1][1]
    # They must fit a signed 64-bit column, and a JavaScript number.
    assert indexes[1][1] < 2**53


async def test_pages_of_invoices_go_both_ways(lnd):
    added = [await lnd.add(value_msat=5_000) for _ in range(5)]
    await lnd.pay(added[4].payment_request)
    indexes = [invoice.add_index for invoice in added]

    async def page(**fields):
        answer = await lnd.stub.ListInvoices(LN.ListInvoiceRequest(**fields))
        return [invoice.add_index for invoice in answer.invoices], answer.first_index_offset

    assert await page() == (indexes, indexes[0])
    assert await page(num_max_invoices=2) == (indexes[:2], indexes[0])
    assert await page(num_max_invoices=2, index_offset=indexes[1]) == (indexes[2:4], indexes[2])
    assert await page(num_max_invoices=2, reversed=True) == (indexes[3:], indexes[3])
    assert (await page(reversed=True, num_max_invoices=2, index_offset=indexes[3]))[0] == (indexes[1:3])
    assert (await page(pending_only=True))[0] == indexes[:4]
    assert await page(index_offset=indexes[4]) == ([], 0)


async def test_settled_invoices_outlive_unpaid_ones():
    log = EventLog()
    book = InvoiceBook("seed", "bcrt", log, max_invoices=4)
    paid = [book.add(1_000) for _ in range(2)]
    for invoice in paid:
        book.settle(invoice, 1_000)
    unpaid = [book.add(1_000) for _ in range(3)]

    assert len(book) == 4
    assert [book.find(it.payment_hash) for it in (*paid, *unpaid)] == [*paid, None, *unpaid[1:]]

    for invoice in unpaid[1:]:
        book.settle(invoice, 1_000)
    newest = book.add(1_000)
    assert len(book) == 4 and book.find(paid[0].payment_hash) is None
    book.settle(newest, 1_000)
    assert log.counts[EventKind.INVOICE_PAID] == 5


async def test_an_invoice_that_is_being_paid_is_not_forgotten():
    book = InvoiceBook("seed", "bcrt", EventLog(), max_invoices=2)
    first, second = book.add(1_000), book.add(1_000)
    first.in_flight = True
    third = book.add(1_000)
    assert book.find(first.payment_hash) and not book.find(second.payment_hash)
    third.in_flight = True
    with pytest.raises(CallError, match="too many"):
        book.add(1_000)


async def test_invoices_are_in_the_events_file(tmp_path):
    path = tmp_path / "events.jsonl"
    async with asking(events_path=path) as lnd:
        added = await lnd.add(value_msat=50_000, memo="SECRET")
        paid = await lnd.pay(added.payment_request)
        lines = [orjson.loads(line) for line in path.read_bytes().splitlines()]

    assert [line["kind"] for line in lines] == ["invoice", "invoice_paid"]
    assert {line["payment_hash"] for line in lines} == {added.r_hash.hex()}
    assert {line["price_msat"] for line in lines} == {50_000}
    assert {line["peer_id"] for line in lines} == {lnd.node.invoices.node_id}
    assert b"SECRET" not in path.read_bytes()
    assert paid.payment_preimage.hex().encode() not in path.read_bytes()


async def test_the_gateways_own_questions_are_answered(lnd):
    added = await lnd.add(value_msat=50_000)
    await lnd.pay(added.payment_request)
    async with LndClient(LndAddress(lnd.address), timeout_s=60) as client:
        info = await client.info()
        balance = await client.balance()
        channels = await client.channels()

    assert info.identity == lnd.node.invoices.node_id and info.invoice_prefix == "bcrt"
    assert info.synced_to_chain and info.synced_to_graph and info.peers == 3
    assert balance.local_msat == 10_000_000_000 + 50_000
    assert balance.remote_msat == 10_000_000_000 - 50_000
    assert channels.spendable_msat == balance.local_msat // 1_000 * 1_000
    assert (await lnd.stub.WalletBalance(LN.WalletBalanceRequest())).total_balance == 0


async def test_the_node_that_is_paid_is_the_one_that_pays(make_node):
    async with make_node(events_path=None) as client:
        terms = await client.quote(chat_task())
        await client.accept(terms)
        assert client.node.wallet.balance_msat < 10_000_000_000
        invoice = client.node.invoices.add(terms.price_msat)
        await client.node.customer.pay(invoice.payment_request)
        assert client.node.wallet.balance_msat == 10_000_000_000 - client.node.wallet.fees_msat


async def test_other_calls_of_lnd_are_not_implemented(lnd):
    assert (await failure(lnd.stub.StopDaemon(LN.StopRequest())))[0] == "UNIMPLEMENTED"


async def test_what_is_no_message_is_an_error(lnd):
    async with grpc.aio.insecure_channel(lnd.address) as channel:
        for kind, name in (("unary_unary", "AddInvoice"), ("unary_stream", "SubscribeInvoices")):
            call = getattr(channel, kind)(f"/lnrpc.Lightning/{name}")(b"\xff\xff\xff")
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await (call if kind == "unary_unary" else call.read())
            assert failed.value.code() is grpc.StatusCode.INTERNAL


async def test_a_node_without_the_extra_says_what_is_missing_and_does_the_rest(make_node, monkeypatch):
    def missing():
        raise LndNotInstalled("missing")

    monkeypatch.setattr(lnd_service, "load_stubs", missing)
    async with make_node() as client:
        await client.ask(chat_task())
    async with asking() as lnd:
        code, details = await failure(lnd.add(value=1))
        stream_code, _ = await failure(lnd.subscribe().read())
    assert code == stream_code == "UNIMPLEMENTED"
    assert "lcp-gateway[lnd]" in details


def test_starting_a_node_does_not_import_the_extra():
    program = (
        "import asyncio, sys\n"
        "from lcp_gateway.node.config import NodeConfig\n"
        "from lcp_gateway.node.server import Node\n"
        "async def main():\n"
        "    node = Node(NodeConfig(listen='127.0.0.1:0'))\n"
        "    await node.start()\n"
        "    await node.stop()\n"
        "asyncio.run(main())\n"
        "assert 'lndgrpc' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, env=os.environ, timeout=60)
