import asyncio
import contextlib
import gzip
import hashlib

import grpc
import orjson
import pytest

from lcp_gateway.lightning.bolt11 import InvoiceError, decode
from lcp_gateway.lightning.terms import terms_hash
from lcp_gateway.node.events import EventKind
from lcp_gateway.node.faults import FAULTS, MODEL_PREFIX, FaultScript, Stage
from tests.support.node_client import Streamed, chat_task, responses_task, until

CODES = [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK]
SILENT = {"execute-hangs": 0, "stream-stalls": 5}
"""The faults that end only with the call, and the chunks that come before."""


def fault_task(name, **fields):
    return chat_task(model=MODEL_PREFIX + name, **fields)


async def quote(faulty, name, **how):
    return await faulty.quote(fault_task(name), "Mallory", **how)


async def failure(awaitable):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await awaitable
    return caught.value.code(), caught.value.details()


async def test_every_fault_is_offered_as_a_model(faulty):
    mallory = (await faulty.list_peers())[-1]
    offered = {task.openai_chat_completions_v1.model for task in mallory.remote_manifest.supported_tasks} - {""}

    assert offered == {f"fault/{name}" for name in FAULTS}


async def test_without_the_switch_there_is_no_mallory(client):
    assert len(await client.list_peers()) == 3


# Quotes


@pytest.mark.parametrize("code", CODES, ids=lambda code: code.name)
async def test_a_quote_can_fail_with_every_status(faulty, code):
    found, _ = await failure(quote(faulty, f"quote-code-{code.name.lower()}"))
    assert found is code


async def test_a_quote_can_be_refused(faulty):
    assert await failure(quote(faulty, "quote-refused")) == (
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "lcp_error code=7: scripted refusal",
    )


async def test_a_quote_can_take_for_ever(faulty):
    code, _ = await failure(quote(faulty, "quote-slow", timeout=0.1))
    assert code is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_a_manifest_is_exchanged_in_the_end(faulty):
    for _ in range(2):
        code, details = await failure(quote(faulty, "manifest-not-exchanged"))
        assert (code, details) == (grpc.StatusCode.FAILED_PRECONDITION, "lcp_error code=10: manifest not exchanged")
    assert await quote(faulty, "manifest-not-exchanged")


async def test_a_price_can_be_absurd_and_the_daemon_pays_it_unless_the_wallet_is_empty(faulty):
    terms = await quote(faulty, "expensive")

    assert terms.price_msat == decode(terms.payment_request).amount_msat == 5_767_650_000
    await faulty.accept(terms, "Mallory")


async def test_a_quote_can_be_expired_when_it_comes(faulty):
    terms = await quote(faulty, "expired")
    assert await failure(faulty.accept(terms, "Mallory")) == (grpc.StatusCode.FAILED_PRECONDITION, "quote expired")


INVOICE_FAULTS = {
    "wrong-price": lambda terms, peer, invoice: invoice.amount_msat != terms.price_msat,
    "wrong-payee": lambda terms, peer, invoice: invoice.payee != peer,
    "wrong-description-hash": lambda terms, peer, invoice: invoice.description_hash != terms.terms_hash,
    "wrong-network": lambda terms, peer, invoice: invoice.network == "bc",
    "wrong-invoice-expiry": lambda terms, peer, invoice: invoice.expires_at > terms.quote_expiry.seconds + 5,
    "expired-invoice": lambda terms, peer, invoice: invoice.expires_at < terms.quote_expiry.seconds - 300,
}


@pytest.mark.parametrize("name", INVOICE_FAULTS)
async def test_an_invoice_can_be_wrong_in_one_field_and_in_no_other(faulty, name):
    terms = await quote(faulty, name)
    invoice = decode(terms.payment_request)
    peer = faulty.peer_id("Mallory")

    assert [wrong for wrong, is_so in INVOICE_FAULTS.items() if is_so(terms, peer, invoice)] == [name]


@pytest.mark.parametrize("name", ["bad-signature", "garbage-invoice"])
async def test_an_invoice_can_be_no_invoice(faulty, name):
    terms = await quote(faulty, name)
    with pytest.raises(InvoiceError):
        decode(terms.payment_request)


@pytest.mark.parametrize("name", [*INVOICE_FAULTS, "bad-signature", "garbage-invoice"])
async def test_the_daemon_pays_no_wrong_invoice(faulty, name):
    code, _ = await failure(faulty.accept(await quote(faulty, name), "Mallory"))

    # What cannot be read at all, lnd refuses.
    is_read = name not in {"bad-signature", "garbage-invoice"}
    assert code is (grpc.StatusCode.FAILED_PRECONDITION if is_read else grpc.StatusCode.UNAVAILABLE)
    assert faulty.node.wallet.payments == 0


async def test_a_wrong_terms_hash_is_seen_by_the_client_only_which_knows_the_request(faulty):
    task = fault_task("wrong-terms-hash")
    terms = await faulty.quote(task, "Mallory")

    assert decode(terms.payment_request).description_hash == terms.terms_hash
    assert terms.terms_hash != terms_hash(
        protocol_version=2,
        job_id=terms.job_id,
        price_msat=terms.price_msat,
        quote_expiry=terms.quote_expiry.seconds,
        task_kind="openai.chat_completions.v1",
        request=task.openai_chat_completions_v1.request_json,
        model="fault/wrong-terms-hash",
    )
    await faulty.accept(terms, "Mallory")
    assert faulty.node.wallet.payments == 1


async def test_a_job_id_can_be_short(faulty):
    assert len((await quote(faulty, "short-job-id")).job_id) == 16


# Results


@pytest.mark.parametrize("name", [name for name in FAULTS if FAULTS[name].stage is Stage.EXECUTE])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_a_job_is_paid_where_the_table_of_faults_says_so(faulty, name, stream):
    terms = await faulty.quote(fault_task(name, stream=stream), "Mallory")
    counts = faulty.node.events.counts
    call = asyncio.create_task((faulty.stream if stream else faulty.accept)(terms, "Mallory"))
    if name in SILENT:
        await until(lambda: counts[EventKind.PAID])
        call.cancel()
    with contextlib.suppress(grpc.aio.AioRpcError, asyncio.CancelledError):
        await call

    assert counts[EventKind.PAID] == (1 if FAULTS[name].paid else 0)


@pytest.mark.parametrize("code", CODES, ids=lambda code: code.name)
async def test_an_execution_can_fail_with_every_status(faulty, code):
    terms = await quote(faulty, f"execute-code-{code.name.lower()}")
    for call in (faulty.accept, faulty.stream):
        found, _ = await failure(call(terms, "Mallory"))
        assert found is code
        terms = await quote(faulty, f"execute-code-{code.name.lower()}")


@pytest.mark.parametrize(
    ("name", "code", "details"),
    [
        ("no-route", "FAILED_PRECONDITION", "payment failed: FAILURE_REASON_NO_ROUTE"),
        ("already-paid", "UNAVAILABLE", "SendPaymentV2: invoice is already paid"),
        ("fail-after-payment", "RESOURCE_EXHAUSTED", "lcp_error code=7: backend unavailable: scripted failure"),
    ],
)
async def test_a_failed_execution_says_why(faulty, name, code, details):
    found = await failure(faulty.accept(await quote(faulty, name), "Mallory"))
    assert (found[0].name, found[1]) == (code, details)


@pytest.mark.parametrize("name", SILENT)
async def test_an_execution_can_fall_silent(faulty, name):
    streamed = Streamed()
    terms = await faulty.quote(fault_task(name, stream=True), "Mallory")
    call = asyncio.create_task(faulty.stream(terms, "Mallory", into=streamed))
    await until(lambda: faulty.node.events.counts[EventKind.PAID] and len(streamed.chunks) == SILENT[name])
    await asyncio.wait({call}, timeout=0.3)

    assert not call.done()
    assert len(streamed.chunks) == SILENT[name]
    call.cancel()


async def both_ways(faulty, name):
    whole = await faulty.accept(await quote(faulty, name), "Mallory")
    streamed = await faulty.ask_stream(fault_task(name, stream=True), "Mallory")
    return whole.result, streamed


async def test_a_hash_can_be_wrong(faulty):
    whole, streamed = await both_ways(faulty, "wrong-hash")

    assert whole.result_hash != hashlib.sha256(whole.result).digest()
    assert whole.result_len == len(whole.result)
    assert streamed.end.result_hash != hashlib.sha256(streamed.body).digest()


async def test_a_length_can_be_wrong(faulty):
    whole, streamed = await both_ways(faulty, "wrong-length")

    assert whole.result_len == len(whole.result) + 1
    assert whole.result_hash == hashlib.sha256(whole.result).digest()
    assert streamed.end.result_len == len(streamed.body) + 1


@pytest.mark.parametrize(("name", "status"), [("result-failed", 2), ("result-cancelled", 3)])
async def test_a_result_can_be_none_of_the_good_ones(faulty, name, status):
    whole, streamed = await both_ways(faulty, name)

    assert (whole.status, whole.result) == (status, b"")
    assert streamed.result.status == status
    assert whole.message and streamed.result.message


async def test_there_can_be_no_result(faulty):
    answer = await faulty.accept(await quote(faulty, "no-result"), "Mallory")
    streamed = await faulty.ask_stream(fault_task("no-result", stream=True), "Mallory")

    assert not answer.HasField("result")
    assert streamed == Streamed()


async def test_a_stream_can_be_cut(faulty):
    streamed = Streamed()
    terms = await faulty.quote(fault_task("stream-cut", stream=True), "Mallory")
    code, _ = await failure(faulty.stream(terms, "Mallory", into=streamed))

    assert code is grpc.StatusCode.UNAVAILABLE
    assert len(streamed.chunks) == 5 and streamed.end is None


async def test_a_stream_can_be_cut_without_an_error(faulty):
    streamed = await faulty.ask_stream(fault_task("stream-cut-silently", stream=True), "Mallory")

    assert len(streamed.chunks) == 5
    assert streamed.end is None and streamed.result is None


async def test_a_stream_can_flood(faulty):
    total = 0
    terms = await faulty.quote(fault_task("stream-floods", stream=True), "Mallory")
    async for event in faulty.open_stream(terms, "Mallory"):
        total += len(event.result_chunk.data)

    assert total >= 8 << 20


async def test_a_stream_can_be_slow_and_whole(faulty):
    streamed = await faulty.ask_stream(fault_task("stream-slow", stream=True), "Mallory")

    assert streamed.chunks[-1] == b"data: [DONE]\n\n" and streamed.result.status == 1


async def test_chunks_can_break_inside_characters(faulty):
    streamed = await faulty.ask_stream(fault_task("stream-split-utf8", say="ü", stream=True), "Mallory")
    broken = 0
    for chunk in streamed.chunks:
        try:
            chunk.decode()
        except UnicodeDecodeError:
            broken += 1

    assert broken >= 2
    assert "ü" in streamed.body.decode()


async def test_a_stream_can_be_binary(faulty):
    streamed = await faulty.ask_stream(fault_task("stream-binary", stream=True), "Mallory")

    with pytest.raises(UnicodeDecodeError):
        streamed.body.decode()
    assert streamed.end.result_hash == hashlib.sha256(streamed.body).digest()


async def test_a_result_can_be_as_large_as_allowed_and_still_be_right(faulty):
    whole, streamed = await both_ways(faulty, "big-result")

    assert len(whole.result) == len(streamed.body) == 4 << 20
    assert orjson.loads(whole.result)["object"] == "chat.completion"
    assert streamed.events[0]["object"] == "chat.completion.chunk"


async def test_chunks_can_be_empty(faulty):
    streamed = await faulty.ask_stream(fault_task("empty-chunks", stream=True), "Mallory")

    assert streamed.chunks[::2] == [b""] * (len(streamed.chunks) // 2 + 1)
    assert streamed.events


async def test_a_content_type_can_be_odd(faulty):
    whole, streamed = await both_ways(faulty, "odd-content-type")

    assert whole.content_type == streamed.begin.content_type == streamed.result.content_type
    assert whole.content_type.startswith("application/x-odd")


async def test_a_result_can_be_gzipped(faulty):
    whole, streamed = await both_ways(faulty, "gzip-encoding")

    assert whole.content_encoding == streamed.begin.content_encoding == "gzip"
    assert orjson.loads(gzip.decompress(whole.result))["object"] == "chat.completion"
    assert gzip.decompress(streamed.body).endswith(b"data: [DONE]\n\n")


# In process


async def test_queued_faults_strike_the_next_calls_of_their_stage(client):
    client.node.faults.queue("quote-refused", "fail-after-payment")

    code, _ = await failure(client.quote(chat_task()))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    terms = await client.quote(chat_task())
    code, _ = await failure(client.accept(terms))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert await client.ask(chat_task())


async def test_a_queued_pass_lets_one_call_through(client):
    client.node.faults.queue_none(Stage.QUOTE)
    client.node.faults.queue("quote-refused")

    await client.quote(chat_task())
    await failure(client.quote(chat_task()))


async def test_a_rule_for_a_model_holds_until_it_is_cleared(client):
    client.node.faults.set_for_model("echo-1", "wrong-hash")
    for _ in range(2):
        result = (await client.accept(await client.quote(chat_task()))).result
        assert result.result_hash != hashlib.sha256(result.result).digest()
    assert await client.ask(chat_task(model="echo-mini"))

    client.node.faults.clear()
    result = (await client.accept(await client.quote(responses_task()))).result
    assert result.result_hash == hashlib.sha256(result.result).digest()


def test_an_unknown_fault_cannot_be_scripted():
    script = FaultScript(by_model_name=True)
    with pytest.raises(KeyError):
        script.queue("no-such-fault")
    with pytest.raises(KeyError):
        script.set_for_model("echo-1", "no-such-fault")
    assert script.next(Stage.QUOTE, "fault/no-such-fault") is None


def test_every_fault_says_what_it_does():
    assert all(fault.summary for fault in FAULTS.values())
    assert len(FAULTS) >= 65


async def test_a_hanging_job_ends_with_its_caller(faulty):
    terms = await quote(faulty, "execute-hangs")
    call = asyncio.create_task(faulty.accept(terms, "Mallory"))
    await until(lambda: faulty.node.peers.named("Mallory").inflight == 1)
    call.cancel()
    await until(lambda: faulty.node.peers.named("Mallory").inflight == 0)
