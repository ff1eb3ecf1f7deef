"""Background jobs: started once, found again, cancelled, and never paid twice or left holding an admission."""

import asyncio
import gc
import json
import weakref

import pytest
from openai.types.responses import Response

from lcp_gateway.http.openai.background import BackgroundResponses
from lcp_gateway.purchase.errors import UpstreamError
from lcp_gateway.purchase.journal import InsufficientBalance, JournalUnavailable
from lcp_gateway.purchase.money import Charge, Markup, Msat, Refund
from lcp_gateway.purchase.purchase import InterruptReason, Purchase
from lcp_gateway.purchase.result_buffer import BufferLimits, ResultHead
from lcp_gateway.purchase.shared_purchases import BoughtElsewhere, LostElsewhere
from lcp_gateway.purchase.states import PurchaseEvent, Verdict
from lcp_gateway.responses.store import StoreLimits
from lcp_gateway.store.database.engines import DatabaseUnavailable
from tests.http.storing_front import BOB, events, response, storing_front
from tests.support.others import OtherGateways
from tests.support.purchases import quote, stream_events
from tests.support.result_buffers import PAID, order_of
from tests.support.scripted_peers import Peer, PlainJournal, ScriptedPeers

KEY = {"Idempotency-Key": "k"}


def slow_upstream():
    return ScriptedPeers({"p1": Peer(ready=asyncio.Event())})


async def begin(front, **fields):
    got = await front.create(background=True, **fields)
    assert got.status == 200, got.body
    return got.document["id"]


async def status(front, job_id):
    return (await front.get(f"/v1/responses/{job_id}")).document["status"]


async def until(front, job_id, wanted):
    async with asyncio.timeout(60):
        while await status(front, job_id) != wanted:
            await asyncio.sleep(0.001)


# -- from start to end ------------------------------------------------------------------


async def test_a_job_is_answered_at_once_polled_and_found_with_its_result(front):
    got = await front.create(background=True, instructions="be brief")
    shown = Response.model_validate(got.document)
    assert (shown.status, shown.background, shown.instructions, got.payment) == ("queued", True, "be brief", "none")
    assert shown.id.startswith("resp_bg_") and front.repository.rows == {shown.id: "key_alice"}
    work = await front.work()
    await until(front, shown.id, "in_progress")
    assert (await front.get(f"/v1/responses/{shown.id}")).payment == "unknown"
    assert b"background" not in front.sent()
    work.deliver(response("resp_own", "done"))
    await front.idle()
    done = await front.get(f"/v1/responses/{shown.id}")
    found = Response.model_validate(done.document)
    assert (found.status, found.output_text, found.background, found.id) == ("completed", "done", True, shown.id)
    assert (done.payment, done.headers["X-Lcp-Price-Msat"]) == ("settled", "5000")
    assert (await front.get("/v1/responses/resp_own")).status == 404
    assert front.repository.rows == {}
    assert front.metric("background_jobs_total", ended_as="completed") == 1
    assert front.metric("background_jobs_running") == 0


async def test_a_job_is_of_one_credential_only(front):
    job_id = await begin(front)
    for method, path in (
        ("GET", ""),
        ("DELETE", ""),
        ("POST", "/cancel"),
        ("GET", "/input_items"),
        ("GET", "?stream=true"),
    ):
        theirs = await front.ask(method, f"/v1/responses/{job_id}{path}", BOB)
        unknown = await front.ask(method, f"/v1/responses/resp_bg_0{path}", BOB)
        assert (theirs.status, theirs.code) == (404, "response_not_found")
        assert theirs.body == unknown.body
    (await front.work()).deliver(response())
    await front.idle()
    assert (await front.get(f"/v1/responses/{job_id}", BOB)).status == 404
    # A look-up costs the same whether the response exists or not.
    assert front.repository.asked.count(job_id) == front.repository.asked.count("resp_bg_0") + 1


async def test_the_input_of_a_job_can_be_read_while_it_runs_and_after(front):
    job_id = await begin(front)
    running = await front.get(f"/v1/responses/{job_id}/input_items")
    (await front.work()).deliver(response())
    await front.idle()
    ended = await front.get(f"/v1/responses/{job_id}/input_items")
    assert running.body == ended.body
    assert running.document["data"][0]["content"][0]["text"] == "hi"


async def test_a_job_can_be_built_on_and_can_build_on_others(front):
    await front.bought(response("resp_1", "one"), front.create())
    job_id = await begin(front, previous_response_id="resp_1")
    (await front.work(1)).deliver(response("resp_2", "two"))
    await front.idle()
    assert (await front.get(f"/v1/responses/{job_id}")).document["previous_response_id"] == "resp_1"
    await front.bought(response("resp_3"), front.create(previous_response_id=job_id))
    assert len(json.loads(front.sent())["input"]) == 5


# -- one purchase, however often a client asks -------------------------------------------------------------------


async def test_the_same_request_at_once_is_one_job_and_holds_one_place(front):
    front.repository.gate = asyncio.Event()
    asked = [asyncio.ensure_future(front.create(background=True, headers=KEY)) for _ in range(5)]
    await asyncio.sleep(0.05)
    front.repository.gate.set()
    got = await asyncio.gather(*asked)
    assert len({one.document["id"] for one in got}) == 1
    async with asyncio.timeout(60):
        while len(front.jobs) > 1:
            await asyncio.sleep(0.001)
    assert len(front.jobs) == 1
    (await front.work()).deliver(response())
    await front.idle()
    assert front.payments == 1 and front.repository.rows == {}


async def test_a_repeat_of_a_running_job_gets_its_status(front):
    job_id = await begin(front, headers=KEY)
    work = await front.work()
    again = await front.create(background=True, headers=KEY)
    assert (again.document["id"], again.document["status"], again.payment) == (job_id, "in_progress", "unknown")
    assert len(front.jobs) == 1
    work.deliver(response())
    await front.idle()


async def test_a_repeat_of_an_ended_job_gets_its_result_and_pays_nothing(front):
    job_id = await begin(front, headers=KEY)
    (await front.work()).deliver(response(text="done"))
    await front.idle()
    again = await front.create(background=True, headers=KEY)
    assert again.body == (await front.get(f"/v1/responses/{job_id}")).body
    assert (again.document["status"], again.payment, front.payments) == ("completed", "settled", 1)
    assert front.metric("requests_total", payment="settled") == 1
    await front.ask("DELETE", f"/v1/responses/{job_id}")
    gone = await front.create(background=True, headers=KEY)
    assert (gone.status, gone.code, gone.payment, front.payments) == (409, "answer_gone", "settled", 1)


@pytest.mark.parametrize("query", ["", "?stream=true"])
async def test_a_result_that_the_store_lost_is_said_to_be_gone(front, monkeypatch, query):
    """Regression: it was a 500 that said nothing was paid."""
    job_id = await begin(front)
    # As a store that is shared may lose it, before the job is forgotten here.
    monkeypatch.setattr(BackgroundResponses, "_ended", lambda *_: None)
    (await front.work()).deliver(response(text="done"))
    await front.world.service.wait_idle()
    gone = await front.get(f"/v1/responses/{job_id}{query}")
    assert (gone.status, gone.code, gone.payment) == (409, "answer_gone", "settled")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_repeat_of_a_job_without_its_bytes_gets_the_stored_result(front, stream):
    began = asyncio.ensure_future(front.create(background=True, stream=stream, headers=KEY))
    work = await front.work()
    work.stream(*events(text="done")) if stream else work.deliver(response(text="done"))
    first = await began
    await front.idle()
    for answer, _ in front.world.memory._by_key._held.values():
        answer.forget()
    again = await front.create(background=True, stream=stream, headers=KEY)
    assert (again.status, front.payments) == (200, 1)
    if stream:
        assert again.body == first.body
    else:
        assert again.document["status"] == "completed"


async def test_a_stream_begins_before_its_provider_does():
    async with storing_front(upstream=slow_upstream()) as front:
        asked = asyncio.ensure_future(
            front.client.post(
                "/v1/responses",
                json={"model": "m", "input": "hi", "background": True, "stream": True},
                headers={"Authorization": "Bearer alice"},
            )
        )
        answer = await asyncio.wait_for(asked, 60)
        async with asyncio.timeout(60):
            event = await answer.content.readuntil(b"\n\n")
        document = json.loads(event.partition(b"data: ")[2])
        job_id = document["response"]["id"]
        assert (document["type"], document["response"]["status"]) == ("response.created", "queued")
        assert (document["sequence_number"], list(front.repository.rows)) == (0, [job_id])
        answer.close()
        await front.ask("POST", f"/v1/responses/{job_id}/cancel")
        await front.idle()


async def test_a_retry_that_says_so_joins_the_job_without_a_key(front):
    job_id = await begin(front)
    again = await front.create(background=True, headers={"x-stainless-retry-count": "1"})
    assert again.document["id"] == job_id
    (await front.work()).deliver(response())
    await front.idle()
    assert front.payments == 1


async def test_a_job_that_failed_after_its_payment_fails_alike_for_a_repeat(front):
    job_id = await begin(front, headers=KEY)
    (await front.work()).put(UpstreamError("DEADLINE_EXCEEDED", "late"))
    await front.idle()
    for got in (await front.get(f"/v1/responses/{job_id}"), await front.create(background=True, headers=KEY)):
        assert (got.document["id"], got.document["status"]) == (job_id, "failed")
        assert (got.document["lcp"]["payment"], got.payment) == ("unknown", "unknown")
        assert got.document["error"]["code"] == "payment_unknown"
    assert front.payments == 1


async def test_a_job_that_failed_before_its_payment_is_bought_again_by_a_repeat(front):
    front.world.upstream.peers["p1"].error = UpstreamError("UNAVAILABLE", "gone")
    job_id = await begin(front, headers=KEY)
    await front.idle()
    failed = await front.get(f"/v1/responses/{job_id}")
    assert (failed.document["status"], failed.document["lcp"]) == ("failed", {"payment": "none"})
    front.world.upstream.peers["p1"].error = None
    other = await begin(front, headers=KEY)
    (await front.work()).deliver(response())
    await front.idle()
    assert other != job_id and front.payments == 1


async def test_another_request_with_the_same_key_is_refused_and_leaves_no_row(front):
    job_id = await begin(front, headers=KEY)
    got = await front.create(background=True, input="other", headers=KEY)
    assert (got.status, got.code) == (422, "idempotency_key_reused")
    assert front.repository.rows == {job_id: "key_alice"}
    (await front.work()).deliver(response())
    await front.idle()


# -- jobs that cannot be started ------------------------------------------------------------------------------


async def test_a_job_that_cannot_be_written_down_is_not_begun(front):
    front.repository.error = JournalUnavailable("the journal cannot be written; nothing was paid")
    got = await front.create(background=True)
    assert (got.status, got.code, got.payment) == (503, "journal_unavailable", "none")
    await front.idle()
    assert front.payments == 0 and front.metric("background_jobs_running") == 0


@pytest.mark.parametrize(
    ("headers", "code"), [({"X-Lcp-Quote-Id": "quote_0"}, "quote_not_found"), ({}, "loop_detected")]
)
async def test_a_job_that_is_refused_after_its_row_was_written_leaves_no_row(headers, code):
    async with storing_front(per_minute=1, at_once=1, per_key=1) as front:
        if not headers:
            await begin(front)
            (await front.work()).deliver(response())
            await front.idle()
        got = await front.create(background=True, headers=headers)
        assert (got.code, got.payment) == (code, "none")
        await front.idle()
        assert front.repository.rows == {} and front.metric("background_jobs_running") == 0


async def test_a_client_that_leaves_before_its_job_is_written_down_leaves_nothing_behind(front):
    front.repository.gate = asyncio.Event()
    asked = asyncio.ensure_future(front.create(background=True))
    async with asyncio.timeout(60):
        while len(front.jobs) != 1:
            await asyncio.sleep(0.001)
    asked.cancel()
    async with asyncio.timeout(60):
        while len(front.jobs):
            await asyncio.sleep(0.001)
    front.repository.gate.set()
    await front.idle()
    assert front.payments == 0 and front.repository.rows == {}


# -- admissions -----------------------------------------------------------------------------------------


async def test_a_job_holds_its_place_and_its_keys_lease_until_it_ends():
    async with storing_front(at_once=2, per_key=1) as front:
        await begin(front)
        assert len(front.jobs) == 1 and dict(front.leases._running) == {"key_alice": 1}
        refused = await front.create(input="other")
        assert (refused.status, refused.code) == (429, "rate_limit_exceeded")
        theirs = asyncio.ensure_future(front.create(BOB, input="theirs"))
        await front.work(1)
        full = await front.create(BOB)
        assert full.status == 429
        for work in front.world.upstream.works:
            work.deliver(response())
        await theirs
        await front.idle()
        assert (await front.bought(response("resp_2"), front.create(input="other"))).status == 200


@pytest.mark.parametrize("how", ["result", "failure", "cancelled", "shutting down", "timed out", "too large"])
async def test_however_a_job_ends_its_place_comes_back(how):
    limits = StoreLimits(10, 4_000, 1e6) if how == "too large" else StoreLimits(10, 10**7, 1e6)
    async with storing_front(at_once=1, per_key=1, limits=limits) as front:
        job_id = await begin(front)
        work = await front.work()
        match how:
            case "result":
                work.deliver(response())
            case "too large":
                work.deliver(response(text="x" * 10_000))
            case "failure":
                work.put(RuntimeError("a bug of an upstream"))
            case "cancelled":
                await front.ask("POST", f"/v1/responses/{job_id}/cancel")
            case "shutting down":
                front.world.service.interrupt_all(InterruptReason.SHUTTING_DOWN)
            case "timed out":
                front.world.service.interrupt_all(InterruptReason.TIMED_OUT)
        await front.idle()
        expected = {"result": "completed", "cancelled": "cancelled"}.get(how, "failed")
        assert await status(front, job_id) == expected
        assert front.metric("background_jobs_total", ended_as=expected) == 1
        got = asyncio.ensure_future(front.create())
        (await front.work(1)).deliver(response("resp_2"))
        assert (await got).status == 200


async def test_nothing_holds_an_ended_job(front):
    job_id = await begin(front, input="x" * 1_000)
    job = front.background.find("key_alice", job_id)
    (await front.work()).deliver(response())
    await front.idle()
    assert job.inputs == () and set(job.request) == {"previous_response_id"}
    answer = weakref.ref(job.answer)
    del job
    front.world.memory._by_repeat._held.clear()
    front.world.memory._unkeyed.clear()
    front.world.observer.ends.clear()
    front.world.observer.quotes.clear()
    # The connection object keeps its last request.
    await front.get("/v1/responses/resp_1")
    gc.collect()
    assert answer() is None


# -- cancelling and deleting ------------------------------------------------------------------------


async def test_a_job_cancelled_before_its_payment_costs_nothing():
    async with storing_front(upstream=slow_upstream()) as front:
        job_id = await begin(front)
        got = await front.ask("POST", f"/v1/responses/{job_id}/cancel")
        assert (got.status, got.document["status"], got.document["error"]) == (200, "cancelled", None)
        assert (got.document["lcp"], got.payment) == ({"payment": "none"}, "none")
        await front.idle()
        again = await front.ask("POST", f"/v1/responses/{job_id}/cancel")
        assert again.body == got.body and front.payments == 0
        assert front.repository.rows == {}


@pytest.mark.parametrize(("stream", "verdict"), [(False, "unknown"), (True, "settled")])
async def test_a_job_cancelled_after_its_payment_shows_the_payments_state(front, stream, verdict):
    if stream:
        asked = asyncio.ensure_future(front.create(background=True, stream=True))
        work = await front.work()
        work.put(*stream_events(*events())[:2])
        job_id = next(iter(front.repository.rows))
        await asyncio.sleep(0.02)
    else:
        job_id = await begin(front)
        await front.work()
    both = await asyncio.gather(*(front.ask("POST", f"/v1/responses/{job_id}/cancel") for _ in range(2)))
    for got in both:
        assert (got.document["status"], got.document["lcp"]["payment"]) == ("cancelled", verdict)
        assert got.payment == verdict
    assert len(front.world.upstream.cancelled) == 1
    if stream:
        assert b"event: response.failed" in (await asked).body
    await front.idle()


async def test_a_client_whose_job_another_cancels_must_not_retry():
    async with storing_front(upstream=slow_upstream()) as front:
        asked = asyncio.ensure_future(front.create(background=True, stream=True))
        async with asyncio.timeout(60):
            while not front.repository.rows:
                await asyncio.sleep(0.001)
        await front.ask("POST", f"/v1/responses/{next(iter(front.repository.rows))}/cancel")
        got = await asked
        last = json.loads(got.body.rstrip().rpartition(b"data: ")[2])
        assert (last["type"], last["response"]["status"]) == ("response.failed", "cancelled")
        assert last["response"]["lcp"]["payment"] == got.payment == "none"
        await front.idle()


async def test_a_job_that_is_deleted_is_cancelled_and_gone(front):
    job_id = await begin(front)
    await front.work()
    got = await front.ask("DELETE", f"/v1/responses/{job_id}")
    assert got.document == {"id": job_id, "object": "response", "deleted": True}
    await front.idle()
    assert (await front.get(f"/v1/responses/{job_id}")).status == 404
    assert (await front.ask("DELETE", f"/v1/responses/{job_id}")).status == 404
    assert len(front.world.upstream.cancelled) == 1 and len(front.store) == 0


async def test_a_response_that_is_not_of_the_background_cannot_be_cancelled(front):
    await front.bought(response(), front.create())
    got = await front.ask("POST", "/v1/responses/resp_1/cancel")
    assert (got.status, got.code) == (400, "response_not_cancellable")


# -- results that cannot be stored -------------------------------------------------------------------


@pytest.mark.parametrize("body", [b"nonsense", b"[]", b"", b"\xff", b'"text"', b'{"id":' + b"[" * 5_000])
async def test_a_result_that_cannot_be_shown_is_a_failure_that_says_it_was_paid(front, body):
    job_id = await begin(front)
    (await front.work()).deliver(body)
    await front.idle()
    got = await front.get(f"/v1/responses/{job_id}")
    assert (got.status, got.document["status"], got.document["error"]["code"]) == (200, "failed", "answer_not_stored")
    assert (got.document["lcp"]["payment"], got.payment) == ("settled", "settled")
    assert front.world.journal.only[-1] == "delivered"


async def test_a_result_that_is_too_large_is_a_failure_that_says_it_was_paid():
    async with storing_front(limits=StoreLimits(10, 6_000, 1e6)) as front:
        job_id = await begin(front)
        (await front.work()).deliver(response(text="x" * 20_000))
        await front.idle()
        got = await front.get(f"/v1/responses/{job_id}")
        assert (got.document["error"]["code"], got.payment) == ("answer_not_stored", "settled")


async def test_so_is_a_stream_larger_than_the_buffer():
    async with storing_front(bounds=BufferLimits(window_bytes=1_000, whole_bytes=2_000)) as front:
        asked = asyncio.ensure_future(front.create(background=True, stream=True))
        (await front.work()).stream(*events(text="x" * 3_000))
        got = await asked
        # Its client received every byte of it.
        assert b"response.completed" in got.body
        await front.idle()
        job_id = json.loads(got.body.split(b"data: ")[1].split(b"\n")[0])["response"]["id"]
        shown = await front.get(f"/v1/responses/{job_id}")
        assert (shown.document["status"], shown.payment) == ("failed", "settled")


async def test_where_not_even_the_failure_can_be_kept_the_journal_is_asked():
    async with storing_front(limits=StoreLimits(10, 100, 1e6)) as front:
        job_id = await begin(front)
        (await front.work()).deliver(response())
        await front.idle()
        assert front.repository.rows == {job_id: "key_alice"}
        front.repository.leave(job_id, payment="settled", state="delivered")
        got = await front.get(f"/v1/responses/{job_id}")
        assert (got.document["status"], got.document["lcp"]["payment"]) == ("failed", "settled")


async def test_a_request_nested_too_deeply_to_be_shown_runs_all_the_same(front):
    body = b'{"model":"m","input":"hi","background":true,"tools":%b}' % (b"[" * 1_000 + b"]" * 1_000)
    got = await front.ask("POST", "/v1/responses", data=body)
    assert (got.status, got.document["tools"]) == (200, [])
    (await front.work()).put(UpstreamError("DEADLINE_EXCEEDED", "late"))
    await front.idle()
    assert await status(front, got.document["id"]) == "failed"


# -- payments ------------------------------------------------------------------------------------------


async def test_a_balance_that_is_too_low_is_a_failed_job_that_cost_nothing():
    journal = PlainJournal(refusal=InsufficientBalance(quote(), required_msat=5_000, available_msat=10))
    async with storing_front(journal=journal) as front:
        job_id = await begin(front)
        await front.idle()
        got = await front.get(f"/v1/responses/{job_id}")
        assert (got.document["status"], got.document["error"]["code"]) == ("failed", "insufficient_balance")
        assert (got.document["lcp"]["payment"], got.payment, front.payments) == ("none", "none", 0)


async def test_the_journal_being_away_is_a_failed_job_that_cost_nothing():
    journal = PlainJournal(refusal=JournalUnavailable("full"))
    async with storing_front(journal=journal) as front:
        job_id = await begin(front)
        await front.idle()
        got = await front.get(f"/v1/responses/{job_id}")
        assert (got.document["error"]["code"], got.payment) == ("journal_unavailable", "none")


async def test_a_purchase_carries_the_id_of_its_job(front):
    job_id = await begin(front)
    (await front.work()).deliver(response())
    await front.idle()
    (intent,) = front.world.journal.intents
    assert intent.request_id == job_id


# -- after a restart --------------------------------------------------------------------------------


@pytest.mark.parametrize("payment", ["none", "unknown", "settled"])
async def test_a_job_that_a_restart_cut_has_failed_and_shows_the_payments_state(front, payment):
    front.repository.leave("resp_bg_left", payment=payment, state="x")
    got = await front.get("/v1/responses/resp_bg_left")
    shown = Response.model_validate(got.document)
    assert (shown.status, shown.error.code, got.payment) == ("failed", "server_error", payment)
    assert got.document["lcp"] == {"payment": payment, "state": "x"}
    assert (await front.ask("POST", "/v1/responses/resp_bg_left/cancel")).body == got.body
    streamed = await front.get("/v1/responses/resp_bg_left?stream=true")
    assert b"response.failed" in streamed.body and streamed.payment == payment
    assert (await front.get("/v1/responses/resp_bg_left", BOB)).status == 404
    assert (await front.ask("DELETE", "/v1/responses/resp_bg_left", BOB)).status == 404
    assert (await front.ask("DELETE", "/v1/responses/resp_bg_left")).status == 200
    assert (await front.get("/v1/responses/resp_bg_left")).status == 404


async def test_a_job_of_another_gateway_runs_there(front):
    front.repository.leave("resp_bg_left", elsewhere=True, payment="unknown")
    got = await front.get("/v1/responses/resp_bg_left")
    assert (got.document["status"], got.document["error"], got.payment) == ("in_progress", None, "unknown")


async def test_the_row_of_a_job_that_runs_at_shutdown_stays(front):
    job_id = await begin(front)
    await front.work()
    interrupted = await front.jobs.drain(0.01, lambda: front.world.service.interrupt_all(InterruptReason.SHUTTING_DOWN))
    await front.idle()
    assert interrupted == 1 and front.repository.rows == {job_id: "key_alice"}


async def test_draining_waits_for_jobs_in_the_background(front):
    job_id = await begin(front)
    work = await front.work()
    asyncio.get_running_loop().call_later(0.05, work.deliver, response())
    assert await front.jobs.drain(60, lambda: len(front.jobs)) == 0
    await front.idle()
    assert await status(front, job_id) == "completed"


async def test_an_unreachable_database_may_be_tried_again_and_is_no_404(front):
    front.repository.error = DatabaseUnavailable("unreachable")
    got = await front.get("/v1/responses/resp_bg_left")
    assert (got.status, got.code, got.headers["x-should-retry"]) == (503, "journal_unavailable", "true")
    # An id that is no background job's is unknown without a query of the database.
    assert (await front.get("/v1/responses/resp_1")).status == 404


async def test_a_row_that_cannot_be_deleted_does_no_harm(front):
    job_id = await begin(front)
    front.repository.error = DatabaseUnavailable("unreachable")
    (await front.work()).deliver(response())
    await front.idle()
    assert await status(front, job_id) == "completed"


async def test_without_a_journal_jobs_work_and_a_restart_forgets_them():
    async with storing_front(with_repository=False) as front:
        job_id = await begin(front)
        (await front.work()).deliver(response())
        await front.idle()
        assert await status(front, job_id) == "completed"
        assert (await front.get("/v1/responses/resp_bg_left")).status == 404
        assert (await front.ask("DELETE", "/v1/responses/resp_bg_left")).status == 404


# -- several gateways that share their results -----------------------------------------------------


class Others(OtherGateways):
    """Stands in for the other gateways' answer about an order."""

    def __init__(self, says=None, *, may_pay=True) -> None:
        self.says, self.pays, self.heard = says, may_pay, []

    async def claim(self, order, repeat, per_minute):
        await asyncio.sleep(0)
        return self.says or self

    async def may_pay(self):
        return self.pays

    async def ended(self, answer):
        self.heard.append(answer.verdict.value)


async def test_a_job_that_another_gateway_took_over_has_failed_and_cost_nothing_here(front):
    front.world.service._shared = others = Others(may_pay=False)
    job_id = await begin(front)
    await front.idle()
    got = await front.get(f"/v1/responses/{job_id}")
    assert (got.document["status"], got.document["error"]["code"]) == ("failed", "taken_over")
    assert (got.document["lcp"]["payment"], front.payments, others.heard) == ("none", 0, ["none"])


async def test_a_job_that_another_gateway_has_bought_is_stored_here_and_not_paid_again(front):
    purchase = Purchase(order_of(), quote())
    for event in PAID:
        purchase.apply(event)
    head = ResultHead("application/json", "identity")
    front.world.service._shared = Others(BoughtElsewhere(purchase, head, response(text="theirs"), None))
    job_id = await begin(front, headers=KEY)
    await front.idle()
    got = await front.get(f"/v1/responses/{job_id}")
    assert Response.model_validate(got.document).output_text == "theirs"
    assert (got.payment, front.payments) == ("settled", 0)
    assert (await front.create(background=True, headers=KEY)).body == got.body


async def test_a_job_that_failed_at_another_gateway_shows_the_payment_there(front):
    purchase = Purchase(order_of(), quote())
    purchase.apply(PurchaseEvent.PAY)
    purchase.apply(PurchaseEvent.LOSE_SIGHT)
    error = LostElsewhere("its gateway is gone", verdict=Verdict.UNKNOWN, quote=purchase.quote)
    front.world.service._shared = Others(BoughtElsewhere(purchase, None, b"", error))
    job_id = await begin(front)
    await front.idle()
    got = await front.get(f"/v1/responses/{job_id}")
    assert (got.document["status"], got.document["lcp"]["payment"]) == ("failed", "unknown")
    assert (got.payment, front.payments) == ("unknown", 0)


async def test_a_shared_job_is_bought_and_announced_to_the_others(front):
    front.world.service._shared = others = Others()
    job_id = await begin(front)
    (await front.work()).deliver(response())
    await front.idle()
    assert (await status(front, job_id), others.heard) == ("completed", ["settled"])


@pytest.mark.parametrize("stream", [False, True])
async def test_a_job_whose_payment_was_unknown_shows_the_state_found_since(front, stream):
    """Regression: it kept showing "unknown" after the payment was found and its charge refunded."""
    job_id = await begin(front)
    (await front.work()).put(UpstreamError("UNAVAILABLE", "the daemon is gone"))
    await front.idle()
    where = f"/v1/responses/{job_id}" + ("?stream=true" if stream else "")
    front.repository.leave(job_id, payment="unknown", state="unknown")
    assert (await front.get(where)).payment == "unknown"
    assert b"payment_unknown" in (await front.get(where)).body
    assert front.repository.rows == {job_id: "key_alice"}, "by its row the journal knows of it"
    front.repository.error = DatabaseUnavailable("unreachable")
    assert b"payment_unknown" in (await front.get(where)).body
    front.repository.error = None
    front.repository.leave(job_id, payment="settled", state="undelivered", charged_msat=0, refund="given")
    found = await front.get(where)
    assert found.payment == "settled" and b"payment_unknown" not in found.body
    assert b'"status":"failed"' in found.body and b'"refund":"given"' in found.body
    if not stream:
        assert (found.headers["X-Lcp-Charged-Msat"], found.headers["X-Lcp-Refund"]) == ("0", "given")
    assert (await front.ask("POST", f"/v1/responses/{job_id}/cancel")).payment == "settled"
    assert (await front.ask("DELETE", f"/v1/responses/{job_id}")).status == 200
    await front.idle()
    assert front.repository.rows == {} and (await front.get(where)).status == 404


@pytest.mark.parametrize(("refund", "charged_msat"), [(Refund.GIVEN, 0), (Refund.WITHHELD, 5_500)])
async def test_a_failed_job_shows_its_refund_once_that_is_decided(front, refund, charged_msat):
    """Regression: a withheld refund was shown as granted for as long as the job was stored."""
    asked = asyncio.ensure_future(front.create(background=True, stream=True))
    work = await front.work()
    (job_id,) = front.repository.rows
    purchase = front.background.find("key_alice", job_id).answer.purchase
    purchase.charge = Charge("acct_1", Msat(5_500), Markup(100_000), refund_undelivered=True)
    work.put(*stream_events(*events())[:2], UpstreamError("UNAVAILABLE", "cut"))
    await asked
    pending = await front.get(f"/v1/responses/{job_id}")
    assert (pending.document["status"], pending.document["lcp"]["refund"]) == ("failed", "pending")
    purchase.record_refund(refund)
    await front.idle()
    shown = await front.get(f"/v1/responses/{job_id}")
    assert shown.document["error"] == pending.document["error"]
    assert shown.document["lcp"]["refund"] == shown.headers["X-Lcp-Refund"] == refund.value
    assert shown.document["lcp"]["charged_msat"] == charged_msat
    assert shown.headers["X-Lcp-Charged-Msat"] == str(charged_msat)


async def test_a_job_that_was_deleted_before_its_refund_was_decided_stays_deleted(front):
    asked = asyncio.ensure_future(front.create(background=True, stream=True))
    work = await front.work()
    (job_id,) = front.repository.rows
    purchase = front.background.find("key_alice", job_id).answer.purchase
    purchase.charge = Charge("acct_1", Msat(5_500), Markup(100_000), refund_undelivered=True)
    work.put(*stream_events(*events())[:2], UpstreamError("UNAVAILABLE", "cut"))
    await asked
    assert (await front.ask("DELETE", f"/v1/responses/{job_id}")).status == 200
    purchase.record_refund(Refund.GIVEN)
    await front.idle()
    assert (await front.get(f"/v1/responses/{job_id}")).status == 404
