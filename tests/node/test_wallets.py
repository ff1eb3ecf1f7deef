import asyncio
import hashlib
import time

import grpc
import orjson
import pytest

from lcp_gateway._gen.lcpd import lcpd_pb2
from lcp_gateway.lightning.bolt11 import decode
from lcp_gateway.node.config import ModelConfig, PeerConfig, WalletConfig
from lcp_gateway.node.events import EventKind
from tests.support.node_client import chat_task, until

SLOW = PeerConfig("Slow", (ModelConfig("m", tokens_per_second=0.1),), max_inflight_jobs=1)
"""Its jobs take longer than any wait: they end only when they are cancelled."""


async def failure(awaitable):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await awaitable
    return caught.value.code().name, caught.value.details()


async def bought(client, task, alias="Alice"):
    """Return the quote of a job and its answer; where the machine stood still until a quote had expired, there is another one."""
    while True:
        terms = await client.quote(task, alias)
        try:
            return terms, await client.accept(terms, alias)
        except grpc.aio.AioRpcError:
            assert client.node.wallet.payments == 0 and time.time() >= terms.quote_expiry.seconds


def kinds(client):
    return [event.kind for event in client.node.events.kept]


async def test_a_paid_job_costs_its_price_and_a_routing_fee(client):
    terms = await client.quote(chat_task())
    await client.accept(terms)
    wallet = client.node.wallet

    assert wallet.spent_msat == terms.price_msat
    assert wallet.fees_msat == 1_000 + terms.price_msat // 10_000
    assert wallet.balance_msat == 10_000_000_000 - wallet.spent_msat - wallet.fees_msat
    assert kinds(client) == [EventKind.QUOTE, EventKind.ACCEPT, EventKind.PAID, EventKind.SETTLED, EventKind.RESULT]


async def test_the_preimage_belongs_to_the_invoice(client):
    terms = await client.quote(chat_task())
    job = client.node.jobs.find(client.peer_id(), terms.job_id)

    assert hashlib.sha256(job.preimage).digest() == decode(terms.payment_request).payment_hash


async def test_a_job_is_paid_once(client):
    terms = await client.quote(chat_task())
    await client.accept(terms)

    for attempt in (client.accept(terms), client.stream(terms)):
        code, details = await failure(attempt)
        assert code == "UNAVAILABLE" and details.endswith("invoice is already paid")
    assert client.node.wallet.payments == 1
    assert client.node.events.counts[EventKind.ACCEPT] == 3


async def test_two_accepts_at_once_pay_once(make_node):
    async with make_node(wallet=WalletConfig(payment_latency_s=1.0), peers=(SLOW,)) as client:
        terms = await client.quote(chat_task(model="m"), "Slow")
        calls = [asyncio.create_task(client.accept(terms, "Slow")) for _ in range(2)]

        # However late the second one comes: the job goes on until it is cancelled.
        (refused,), (accepted,) = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        assert (await failure(refused))[1] == "the job is being executed"
        await until(lambda: client.node.peers.named("Slow").inflight == 1)
        await client.cancel(terms, "Slow")
        assert (await accepted).result.status == lcpd_pb2.Result.STATUS_CANCELLED
        assert client.node.wallet.payments == 1


async def test_a_small_payment_finds_no_route(make_node):
    peer = PeerConfig("Cheap", (ModelConfig("m", 0, 0, 1),))
    async with make_node(peers=(peer,)) as client:
        terms = await client.quote(chat_task(model="m", max_tokens=999), "Cheap")
        assert await failure(client.accept(terms, "Cheap")) == (
            "FAILED_PRECONDITION",
            "payment failed: FAILURE_REASON_NO_ROUTE",
        )
        assert EventKind.PAID not in kinds(client)

        enough = await client.quote(chat_task(model="m", max_tokens=1_000), "Cheap")
        await client.accept(enough, "Cheap")


async def test_a_fee_past_the_daemons_limit_finds_no_route(make_node):
    async with make_node(wallet=WalletConfig(fee_base_msat=10_000_001)) as client:
        _, details = await failure(client.accept(await client.quote(chat_task())))
        assert details == "payment failed: FAILURE_REASON_NO_ROUTE"


async def test_an_empty_wallet_pays_nothing(make_node):
    async with make_node(wallet=WalletConfig(balance_msat=60_000)) as client:
        assert await failure(client.accept(await client.quote(chat_task()))) == (
            "FAILED_PRECONDITION",
            "payment failed: FAILURE_REASON_INSUFFICIENT_BALANCE",
        )
        assert client.node.wallet.balance_msat == 60_000


async def test_an_expired_quote_is_not_paid(make_node):
    async with make_node(quote_ttl_s=1) as client:
        terms = await client.quote(chat_task())
        await asyncio.sleep(terms.quote_expiry.seconds - time.time() + 0.02)
        assert await failure(client.accept(terms)) == ("FAILED_PRECONDITION", "quote expired")
        assert client.node.wallet.payments == 0


async def test_a_peer_finishes_work_that_was_paid_after_its_quote_has_expired(make_node):
    peer = PeerConfig("Slow", (ModelConfig("m", tokens_per_second=2.0),))
    # The eleven tokens take 5.5 s.
    async with make_node(quote_ttl_s=5, peers=(peer,)) as client:
        terms, answer = await bought(client, chat_task(model="m", say="a b c d"), "Slow")

        assert time.time() > terms.quote_expiry.seconds
        assert answer.result.status == 1
        assert client.node.wallet.payments == 1


async def test_a_job_that_was_paid_is_paid_for_lnd_to_refuse_even_past_its_quote(make_node):
    async with make_node(quote_ttl_s=3) as client:
        terms, _ = await bought(client, chat_task())
        await asyncio.sleep(max(0.0, terms.quote_expiry.seconds - time.time()) + 0.02)
        code, details = await failure(client.accept(terms))

    assert code == "UNAVAILABLE" and details.endswith("invoice is already paid")


async def test_an_unknown_job_and_another_peers_job_are_not_found(client):
    terms = await client.quote(chat_task())

    assert await failure(client.accept(terms, "Bob")) == ("NOT_FOUND", "job not found")
    terms.job_id = b"\x00" * 32
    assert await failure(client.accept(terms)) == ("NOT_FOUND", "job not found")


async def test_an_accept_that_shall_not_pay_is_invalid(client):
    terms = await client.quote(chat_task())

    assert (await failure(client.accept(terms, pay=False)))[0] == "INVALID_ARGUMENT"
    assert client.node.wallet.payments == 0


async def test_a_payment_goes_on_when_its_caller_is_gone(make_node):
    async with make_node(wallet=WalletConfig(payment_latency_s=0.2)) as client:
        call = asyncio.create_task(client.accept(await client.quote(chat_task()), timeout=60))
        await until(lambda: EventKind.PAID in kinds(client))
        call.cancel()
        await until(lambda: client.node.wallet.payments == 1)


async def test_a_job_that_is_cancelled_at_work_stays_paid_and_its_result_says_so(make_node):
    async with make_node(peers=(SLOW,)) as client:
        terms = await client.quote(chat_task(model="m"), "Slow")
        call = asyncio.create_task(client.accept(terms, "Slow"))
        await until(lambda: client.node.peers.named("Slow").inflight == 1)

        assert (await client.cancel(terms, "Slow")).success

        assert (await call).result.status == lcpd_pb2.Result.STATUS_CANCELLED
        assert client.node.wallet.payments == 1
        assert EventKind.CANCEL in kinds(client)


async def test_a_cancelled_quote_is_not_paid(client):
    terms = await client.quote(chat_task())
    await client.cancel(terms)

    assert (await failure(client.accept(terms)))[0] == "CANCELLED"
    assert client.node.wallet.payments == 0


async def test_cancelling_needs_a_known_peer_and_a_short_reason(client):
    terms = await client.quote(chat_task())

    assert (await client.cancel(terms, "Bob")).success
    assert (await failure(client.cancel(terms, reason="x" * 257)))[0] == "INVALID_ARGUMENT"


async def test_a_caller_that_leaves_frees_the_peer(make_node):
    async with make_node(peers=(SLOW,)) as client:
        terms = await client.quote(chat_task(model="m", stream=True), "Slow")
        call = client.open_stream(terms, "Slow")
        await call.read()
        assert client.node.peers.named("Slow").inflight == 1
        call.cancel()
        await until(lambda: client.node.peers.named("Slow").inflight == 0)


async def test_a_busy_peer_refuses_the_next_quote(make_node):
    async with make_node(peers=(SLOW,)) as client:
        task = chat_task(model="m")
        terms = await client.quote(task, "Slow")
        running = asyncio.create_task(client.accept(terms, "Slow"))
        await until(lambda: client.node.peers.named("Slow").inflight == 1)
        code, details = await failure(client.quote(task, "Slow"))
        assert (code, details) == ("RESOURCE_EXHAUSTED", "lcp_error code=7: too many jobs run")
        await client.cancel(terms, "Slow")
        await running
        await client.quote(task, "Slow")


async def test_events_are_on_disk_as_they_happen(make_node, tmp_path):
    path = tmp_path / "events.jsonl"
    async with make_node(events_path=path) as client:
        terms = await client.quote(chat_task(say="SECRET"))
        await client.accept(terms)
        lines = [orjson.loads(line) for line in path.read_bytes().splitlines()]

    assert [line["kind"] for line in lines] == ["quote", "accept", "paid", "settled", "result"]
    assert {line["job_id"] for line in lines} == {terms.job_id.hex()}
    assert {line["price_msat"] for line in lines} == {terms.price_msat}
    assert {line["peer_id"] for line in lines} == {client.peer_id()}
    paid = lines[2]
    assert paid["fee_msat"] == client.node.wallet.fees_msat
    assert paid["payment_hash"] == decode(terms.payment_request).payment_hash.hex()
    assert abs(paid["at"] - time.time()) < 120
    assert b"SECRET" not in path.read_bytes()
