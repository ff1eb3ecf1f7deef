"""GET, DELETE, cancel and input_items of responses, and resumed streams."""

import asyncio
import json
import sys
from collections import Counter

import pytest
from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter

from lcp_gateway.adapters.sse import EventReader
from lcp_gateway.purchase.errors import UpstreamError
from tests.http.storing_front import BOB, events, response, storing_front
from tests.support.purchases import stream_events
from tests.support.scripted_peers import Peer, ScriptedPeers

ANY_EVENT = TypeAdapter(ResponseStreamEvent)


def read(stream):
    reader = EventReader()
    found = [event.data for event in (*reader.feed(stream), *reader.rest())]
    return [json.loads(data) for data in found if data.startswith(b"{")]


def kinds(got):
    return [event["type"] for event in read(got.body)]


def numbers(got):
    return [event["sequence_number"] for event in read(got.body)]


# -- stored responses ---------------------------------------------------------------------------------


async def test_a_deleted_response_is_gone_and_a_second_time_there_is_none(front):
    await front.bought(response(), front.create())
    assert (await front.ask("DELETE", "/v1/responses/resp_1", BOB)).status == 404
    got = await front.ask("DELETE", "/v1/responses/resp_1")
    assert got.document == {"id": "resp_1", "object": "response", "deleted": True}
    for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/input_items"), ("POST", "/cancel")):
        gone = await front.ask(method, f"/v1/responses/resp_1{path}")
        assert (gone.status, gone.code, gone.param) == (404, "response_not_found", "response_id")


async def test_the_same_id_of_two_keys_is_two_responses(front):
    await front.bought(response(text="hers"), front.create())
    await front.bought(response(text="his"), front.create(BOB))
    await front.ask("DELETE", "/v1/responses/resp_1", BOB)
    assert "hers" in (await front.get("/v1/responses/resp_1")).body.decode()


async def test_a_streamed_response_is_streamed_again_as_it_came(front):
    await front.bought(events(), front.create(stream=True))
    got = await front.get("/v1/responses/resp_1?stream=true")
    assert got.body == b"".join(events())
    assert got.headers["Content-Type"].startswith("text/event-stream")
    assert (got.payment, got.headers["X-Accel-Buffering"]) == ("none", "no")


@pytest.mark.parametrize(("after", "expected"), [(-1, 3), (0, 2), (1, 1), (2, 0), (10**17, 0)])
async def test_a_stream_is_taken_up_after_the_event_that_came_last(front, after, expected):
    await front.bought(events(), front.create(stream=True))
    query = "" if after < 0 else f"&starting_after={after}"
    got = await front.get(f"/v1/responses/resp_1?stream=true{query}")
    assert got.body == b"".join(events()[3 - expected :])


async def test_a_long_stream_is_handed_on_whole_however_it_is_cut():
    async with storing_front() as front:
        whole = events(text="é" * 200_000)
        await front.bought(whole, front.create(stream=True))
        assert (await front.get("/v1/responses/resp_1?stream=true")).body == b"".join(whole)
        await front.idle()


async def test_a_response_that_was_not_streamed_is_streamed_as_equivalent_events(front):
    await front.bought(response(), front.create())
    got = await front.get("/v1/responses/resp_1?stream=true")
    found = read(got.body)
    for event in found:
        ANY_EVENT.validate_python(event)
    assert (found[0]["type"], found[-1]["type"]) == ("response.created", "response.completed")
    assert numbers(got) == list(range(len(found)))
    rest = await front.get("/v1/responses/resp_1?stream=true&starting_after=3")
    assert read(rest.body) == found[4:]


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("stream=yes", "stream"),
        ("stream=1", "stream"),
        ("starting_after=1", "starting_after"),
        ("stream=false&starting_after=1", "starting_after"),
        ("stream=true&starting_after=-1", "starting_after"),
        ("stream=true&starting_after=", "starting_after"),
        ("stream=true&starting_after=one", "starting_after"),
        ("stream=true&starting_after=%C2%B2", "starting_after"),
        ("stream=true&starting_after=" + "9" * 19, "starting_after"),
    ],
)
async def test_a_query_that_makes_no_sense_is_refused(front, query, param):
    await front.bought(response(), front.create())
    got = await front.get(f"/v1/responses/resp_1?{query}")
    assert (got.status, got.param) == (400, param)


@pytest.mark.parametrize("body", [b'{"id":"resp_1"', b'{"id":"resp_1"}x'])
async def test_a_garbled_result_has_no_id_to_be_found_by(front, body):
    await front.bought(body, front.create())
    assert (await front.get("/v1/responses/resp_1")).status == 404


async def test_a_stream_without_its_end_cannot_be_shown_whole_but_can_be_streamed(front):
    await front.bought(events()[:2], front.create(stream=True))
    got = await front.get("/v1/responses/resp_1")
    assert (got.status, got.code, got.headers["x-should-retry"]) == (502, "unreadable", "false")
    assert (await front.get("/v1/responses/resp_1?stream=true")).body == b"".join(events()[:2])


async def work_of(front, path: str) -> Counter:
    """Return which of the gateway's functions a rejected GET calls, and how often."""
    calls: Counter = Counter()

    def count(frame, event, _arg):
        if event == "call" and "/lcp_gateway/" in frame.f_code.co_filename:
            calls[frame.f_code.co_qualname] += 1

    sys.setprofile(count)
    try:
        assert (await front.get(path, BOB)).status == 404
    finally:
        sys.setprofile(None)
    return calls


async def test_an_id_of_another_credential_takes_the_same_work_as_an_unknown_one(front):
    """Their response times do not differ: the same functions run equally often."""
    await front.bought(response("resp_1", "x" * 1_000), front.create())
    # The first fills the caches of the metrics.
    _, theirs, unknown = [await work_of(front, f"/v1/responses/resp_{n}") for n in (3, 1, 2)]
    assert theirs == unknown and theirs["ResponseStore.get"] == 1


# -- input items ------------------------------------------------------------------------------------


async def test_the_input_of_a_response_is_listed_the_newest_first_and_a_page_at_a_time(front):
    await front.bought(response("resp_1", "one"), front.create(input="first"))
    await front.bought(response("resp_2", "two"), front.create(previous_response_id="resp_1", input="second"))
    got = await front.get("/v1/responses/resp_2/input_items")
    said = [item["content"][0]["text"] for item in got.document["data"]]
    assert (said, got.document["has_more"]) == (["second", "one", "first"], False)
    assert [item["role"] for item in got.document["data"]] == ["user", "assistant", "user"]
    first = (await front.get("/v1/responses/resp_2/input_items?order=asc&limit=2")).document
    assert (first["has_more"], len(first["data"])) == (True, 2)
    rest = (await front.get(f"/v1/responses/resp_2/input_items?order=asc&after={first['last_id']}")).document
    assert [item["content"][0]["text"] for item in rest["data"]] == ["second"]
    assert len({item["id"] for item in got.document["data"]}) == 3


@pytest.mark.parametrize(
    ("query", "param"), [("limit=0", "limit"), ("limit=101", "limit"), ("order=up", "order"), ("after=x", "after")]
)
async def test_a_page_that_makes_no_sense_is_refused(front, query, param):
    await front.bought(response(), front.create())
    got = await front.get(f"/v1/responses/resp_1/input_items?{query}")
    assert (got.status, got.param) == (400, param)


async def test_items_of_any_form_can_be_listed(front):
    odd = [
        1,
        "text",
        None,
        [],
        {"type": "x"},
        {"role": "user", "content": [{"type": "input_text", "text": "t"}]},
        {"id": 7},
    ]
    await front.bought(response(), front.create(input=odd))
    got = await front.get("/v1/responses/resp_1/input_items?order=asc")
    assert len(got.document["data"]) == len(odd)
    assert all(isinstance(item["id"], str) for item in got.document["data"])


async def test_items_nested_too_deeply_to_be_written_are_an_answer_and_no_crash(front):
    body = b'{"model":"m","input":[{"a":%b}]}' % (b"[" * 1_000 + b"]" * 1_000)
    await front.bought(response(), front.ask("POST", "/v1/responses", data=body))
    got = await front.get("/v1/responses/resp_1/input_items")
    assert (got.status, got.code) == (502, "unreadable")


# -- streams of background jobs --------------------------------------------------------------


async def begun(front, **fields):
    """Start a streamed job whose client leaves immediately; return its id and its work."""
    asked = asyncio.ensure_future(front.create(background=True, stream=True, **fields))
    work = await front.work()
    asked.cancel()
    return next(iter(front.repository.rows)), work


async def test_a_job_whose_client_left_goes_on_and_can_be_taken_up_while_it_runs(front):
    job_id, work = await begun(front)
    begin, one, two, three, *end = stream_events(*events())
    work.put(begin, one)
    taken = await front.follow(f"/v1/responses/{job_id}?stream=true")
    later = await front.follow(f"/v1/responses/{job_id}?stream=true&starting_after=0")
    work.put(two, three, *end)
    whole, rest = await asyncio.gather(taken, later)
    await front.idle()
    assert numbers(whole) == [0, 1, 2] and numbers(rest) == [1, 2]
    found = read(whole.body)
    assert {event["response"]["id"] for event in found if "response" in event} == {job_id}
    assert whole.payment == "settled"
    ended = await front.get(f"/v1/responses/{job_id}?stream=true")
    assert (ended.body, ended.payment) == (whole.body, "settled")
    shown = (await front.get(f"/v1/responses/{job_id}")).document
    assert (shown["status"], shown["id"], shown["background"]) == ("completed", job_id, True)
    assert front.payments == 1


async def test_the_stream_of_the_first_request_carries_the_jobs_id(front):
    got = await front.bought(events(), front.create(background=True, stream=True))
    ids = {event["response"]["id"] for event in read(got.body) if "response" in event}
    (only,) = ids
    assert only.startswith("resp_bg_")
    assert (await front.get(f"/v1/responses/{only}?stream=true")).body == got.body


async def test_the_stream_of_a_queued_job_has_the_headers_of_the_moment_its_head_goes_out():
    ready = asyncio.Event()
    async with storing_front(upstream=ScriptedPeers({"p1": Peer(ready=ready)})) as front:
        body, headers = (
            {"model": "m", "input": "hi", "background": True, "stream": True},
            {"Authorization": "Bearer alice"},
        )
        # A client has the response as soon as its head has come.
        async with front.client.post("/v1/responses", json=body, headers=headers) as created:
            (job_id,) = front.repository.rows
            async with front.client.get(f"/v1/responses/{job_id}?stream=true", headers=headers) as taken:
                ready.set()
                (await front.work()).stream(*events())
                first, second = await created.read(), await taken.read()
        assert created.headers["X-Lcp-Payment"] == taken.headers["X-Lcp-Payment"] == "none"
        assert first == second
        found = [event["type"] for event in read(first)]
        assert (found[0], found[-1]) == ("response.created", "response.completed")
        await front.idle()
        assert (await front.get(f"/v1/responses/{job_id}")).payment == "settled"


async def test_a_job_that_does_not_stream_gives_its_events_at_its_end(front):
    job_id = (await front.create(background=True)).document["id"]
    taken = await front.follow(f"/v1/responses/{job_id}?stream=true")
    (await front.work()).deliver(response(text="done"))
    got = await taken
    assert kinds(got)[0] == "response.created" and kinds(got)[-1] == "response.completed"
    await front.idle()


@pytest.mark.parametrize("stream", [False, True])
async def test_a_job_that_fails_before_its_first_byte_has_the_events_of_a_failed_response(stream):
    ready = asyncio.Event()
    peer = Peer(ready=ready, error=UpstreamError("UNAVAILABLE", "gone"))
    async with storing_front(upstream=ScriptedPeers({"p1": peer})) as front:
        asked = asyncio.ensure_future(front.create(background=True, stream=stream))
        async with asyncio.timeout(60):
            while not front.repository.rows:
                await asyncio.sleep(0.001)
        (job_id,) = front.repository.rows
        taken = await front.follow(f"/v1/responses/{job_id}?stream=true")
        ready.set()
        got = await taken
        assert kinds(got)[-1] == "response.failed"
        assert (read(got.body)[-1]["response"]["lcp"], got.payment) == ({"payment": "none"}, "none")
        await asked
        await front.idle()


async def test_a_job_that_is_cut_in_its_stream_ends_with_the_event_of_a_failure(front):
    job_id, work = await begun(front)
    begin, one, *_ = stream_events(*events())
    work.put(begin, one)
    taken = await front.follow(f"/v1/responses/{job_id}?stream=true")
    work.put(UpstreamError("UNAVAILABLE", "cut"))
    got = await taken
    assert (kinds(got), numbers(got)) == (["response.created", "response.failed"], [0, 1])
    assert read(got.body)[-1]["response"]["lcp"]["payment"] == "settled"
    await front.idle()
    shown = await front.get(f"/v1/responses/{job_id}")
    assert (shown.document["status"], shown.document["lcp"]["payment"]) == ("failed", "settled")


async def test_heartbeats_go_out_while_a_job_is_silent():
    ready = asyncio.Event()
    async with storing_front(upstream=ScriptedPeers({"p1": Peer(ready=ready)}), heartbeat_s=0.02) as front:
        job_id = (await front.create(background=True)).document["id"]
        path, headers = f"/v1/responses/{job_id}?stream=true", {"Authorization": "Bearer alice"}
        async with asyncio.timeout(60), front.client.get(path, headers=headers) as got:
            for _ in range(2):
                await got.content.readuntil(b": heartbeat\n\n")
            ready.set()
            (await front.work()).deliver(response())
            body = await got.read()
        assert read(body.rpartition(b": heartbeat\n\n")[2])[-1]["type"] == "response.completed"
        await front.idle()
