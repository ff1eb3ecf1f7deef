"""Storing and chaining: the request that the provider gets, and the objects that the client retrieves later."""

import asyncio
import json

import pytest

from lcp_gateway.http.errors import ApiError
from lcp_gateway.http.openai.history import not_stored, page_response
from lcp_gateway.http.openai.responses import input_item
from lcp_gateway.responses.items import ItemKind
from lcp_gateway.responses.store import ResponseStore, StoreLimits
from lcp_gateway.responses.stored_items import MemoryItems
from tests.http.storing_front import BOB, events, response, storing_front
from tests.support.purchases import stream_events

OFF = StoreLimits(items_per_owner=0, bytes_in_all=10**7, keep_s=1e6)
RAW = b'{"model":"m" , "input":[ {"role":"user","content":"\\ud83d" ,"n":1.0E0} ],"x":{"previous_response_id":1}'
HI = b'{"type":"message","role":"user","content":"hi"}'


async def test_a_response_is_stored_as_its_provider_sent_it_and_sent_on_as_the_client_wrote_it(front):
    body = RAW + b"}"
    got = await front.bought(
        response(), front.ask("POST", "/v1/responses", data=body, headers={"Content-Type": "application/json"})
    )
    assert (got.body, got.payment) == (response(), "settled")
    assert front.sent() == body
    again = await front.get("/v1/responses/resp_1")
    assert (again.body, again.payment) == (response(), "none")


async def test_a_streamed_response_is_stored_too(front):
    got = await front.bought(events(), front.create(stream=True))
    assert got.body == b"".join(events())
    again = await front.get("/v1/responses/resp_1")
    assert again.document == json.loads(response())


async def test_a_result_that_is_not_to_be_stored_is_not(front):
    await front.bought(response(), front.create(store=False))
    await front.bought(b'{"id":"chatcmpl-1"}', front.chat())
    assert len(front.store) == 0
    assert (await front.get("/v1/responses/resp_1")).code == "response_not_found"


async def test_a_cut_result_is_not_stored(front):
    asked = asyncio.ensure_future(front.create(stream=True))
    work = await front.work()
    begin, one, *_ = stream_events(*events())
    work.put(begin, one, None)
    with pytest.raises(Exception, match=r"."):
        await asked
    assert len(front.store) == 0


async def test_three_turns_send_all_that_was_said_in_the_bytes_that_it_was_said_in(front):
    first = response("resp_1", "one")
    await front.bought(first, front.create(input="hi"))
    output = first[first.index(b'"output": [') + 11 : -2]
    await front.bought(
        events("resp_2", "two"),
        front.create(previous_response_id="resp_1", input=[{"role": "user", "content": "2"}], stream=True),
    )
    assert json.loads(front.sent()) == {
        "model": "m",
        "stream": True,
        "input": [json.loads(HI), json.loads(output), {"role": "user", "content": "2"}],
    }
    assert HI + b"," + output + b"," in front.sent()
    await front.bought(response("resp_3"), front.create(previous_response_id="resp_2", store=False))
    said = json.loads(front.sent())["input"]
    assert [item["content"] if isinstance(item["content"], str) else item["content"][0]["text"] for item in said] == [
        "hi", "one", "2", "two", "hi",
    ]  # fmt: skip
    assert front.payments == 3


async def test_fields_that_the_gateway_does_not_change_keep_their_bytes(front):
    await front.bought(response(), front.create())
    body = RAW + b',"previous_response_id":"resp_1"}'
    asking = front.ask("POST", "/v1/responses", data=body)
    await front.bought(response("resp_2"), asking)
    assert front.sent().startswith(b'{"model":"m","input":[' + HI)
    assert front.sent().endswith(b'{"role":"user","content":"\\ud83d" ,"n":1.0E0}],"x":{"previous_response_id":1}}')


@pytest.mark.parametrize("previous", ["resp_0", "resp_bg_0", "../x", "é", "r" * 256])
async def test_an_unknown_earlier_response_is_a_404_and_nothing_is_bought(front, previous):
    got = await front.create(previous_response_id=previous)
    assert (got.status, got.code, got.param) == (404, "previous_response_not_found", "previous_response_id")
    assert (got.payment, got.headers["x-should-retry"], front.payments) == ("none", "false", 0)


async def test_another_keys_response_is_as_unknown_as_one_that_does_not_exist(front):
    await front.bought(response(), front.create())
    got = await front.create(BOB, previous_response_id="resp_1")
    unknown = await front.create(BOB, previous_response_id="resp_0")
    assert (got.status, got.body) == (unknown.status, unknown.body)


async def test_an_earlier_response_that_cannot_be_read_cannot_be_built_on(front):
    await front.bought(b'{"id":"resp_1","output":"text"}', front.create())
    got = await front.create(previous_response_id="resp_1")
    assert (got.status, got.code, got.payment) == (400, "previous_response_unreadable", "none")


async def test_a_result_without_an_id_gets_one_only_where_the_client_asked_for_it(front):
    plain = await front.bought(response(None), front.create())
    assert plain.body == response(None) and len(front.store) == 0
    got = await front.bought(response(None), front.create(store=True))
    assert got.document["id"].startswith("resp_")
    assert (await front.get(f"/v1/responses/{got.document['id']}")).document == got.document
    assert front.metric("not_stored_total") == 1


async def test_a_request_that_joins_a_running_purchase_sees_the_same_given_id(front):
    headers = {"Idempotency-Key": "k"}
    both = asyncio.gather(*(front.create(store=True, headers=headers) for _ in range(2)))
    (await front.work()).deliver(response(None))
    one, other = await both
    late = await front.create(store=True, headers=headers)
    assert one.body == other.body == late.body
    assert (len(front.store), front.payments) == (1, 1)


async def test_a_retry_of_a_chained_request_joins_the_paid_one_though_its_beginning_has_gone(front):
    await front.bought(response(), front.create())
    headers = {"Idempotency-Key": "k"}
    first = await front.bought(response("resp_2"), front.create(previous_response_id="resp_1", headers=headers))
    await front.ask("DELETE", "/v1/responses/resp_1")
    again = await front.create(previous_response_id="resp_1", headers=headers)
    assert (again.status, again.body, front.payments) == (200, first.body, 2)
    # The responses that continue it still exist.
    third = front.create(previous_response_id="resp_2")
    assert (await front.bought(response("resp_3"), third)).status == 200


async def test_a_quote_for_a_chained_request_is_for_the_whole_of_it_and_can_be_taken(front):
    await front.bought(response(), front.create())
    quoted = await front.create(previous_response_id="resp_1", headers={"X-Lcp-Quote-Only": "true"})
    assert quoted.document["object"] == "lcp.quote" and front.payments == 1
    taken = front.create(previous_response_id="resp_1", headers={"X-Lcp-Quote-Id": quoted.document["id"]})
    got = await front.bought(response("resp_2"), taken)
    assert got.headers["X-Lcp-Job-Id"] == quoted.document["job_id"]
    assert len(json.loads(front.sent())["input"]) == 3


async def test_how_a_chained_request_would_be_routed_is_explained_with_its_earlier_turns(front):
    await front.bought(response(), front.create())
    got = await front.create(previous_response_id="resp_1", headers={"X-Lcp-Route-Only": "true"})
    assert len(json.loads(got.document["body"])["input"]) == 3


@pytest.mark.parametrize(("limits", "length"), [({"max_body_bytes": 500}, 400), ({"context_tokens": 300}, 800)])
async def test_a_context_that_is_too_long_is_refused_before_anything_is_bought(limits, length):
    async with storing_front(**limits) as front:
        await front.bought(response(text="x" * length), front.create())
        got = await front.create(previous_response_id="resp_1")
        assert (got.status, got.code, got.param) == (400, "context_length_exceeded", "input")
        assert (got.payment, front.payments) == ("none", 1)
        await front.idle()


async def test_an_estimate_that_may_be_twice_too_high_refuses_nothing_that_could_fit():
    async with storing_front(context_tokens=300) as front:
        await front.bought(response(text="x" * 100), front.create())
        assert (await front.bought(response("resp_2"), front.create(previous_response_id="resp_1"))).status == 200
        await front.idle()


async def test_where_nothing_is_stored_plain_requests_work_and_the_rest_says_so():
    async with storing_front(limits=OFF) as front:
        assert (await front.bought(response(), front.create(store=True))).status == 200
        for wish, param in (
            ({"previous_response_id": "r"}, "previous_response_id"),
            ({"background": True}, "background"),
        ):
            got = await front.create(**wish)
            assert (got.status, got.code, got.param) == (404, "storing_is_off", param)
        got = await front.get("/v1/responses/resp_1")
        assert got.status == 404 and "max_stored_items" in got.document["error"]["message"]
        assert front.payments == 1
        await front.idle()


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"store": "yes"}, "store"),
        ({"background": True, "store": False}, "background"),
        ({"previous_response_id": 1}, "previous_response_id"),
    ],
)
async def test_invalid_options_are_refused(front, fields, param):
    got = await front.create(**fields)
    assert (got.status, got.param, front.payments) == (400, param, 0)


async def test_the_oldest_go_first_and_never_anothers():
    async with storing_front(limits=StoreLimits(2, 10**7, 1e6)) as front:
        for number in range(3):
            await front.bought(response(f"resp_{number}"), front.create())
        await front.bought(response("resp_0"), front.create(BOB))
        found = [(await front.get(f"/v1/responses/resp_{number}")).status for number in range(3)]
        assert found == [404, 200, 200]
        assert (await front.get("/v1/responses/resp_0", BOB)).status == 200
        await front.idle()


async def test_a_default_model_is_bought_where_none_is_named():
    async with storing_front(default_model="house") as front:
        asking = front.ask("POST", "/v1/responses", data=b'{ "input":"hi" }')
        await front.bought(response(), asking)
        assert front.sent() == b'{"input":"hi","model":"house"}'
        assert front.store.get("key_alice", ItemKind.RESPONSE, "resp_1").model == "house"
        await front.idle()


async def test_nothing_is_bought_without_a_reader(front):
    got = await front.create("mallory")
    assert (got.status, front.payments) == (401, 0)


# -- pages of stored items ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        (
            {"role": "user", "content": "hi"},
            {"type": "message", "content": [{"type": "input_text", "text": "hi"}], "status": "completed"},
        ),
        (
            {"role": "assistant", "content": "hi", "id": "msg_1"},
            {"id": "msg_1", "content": [{"type": "output_text", "text": "hi", "annotations": []}]},
        ),
        ({"role": "developer", "content": [], "status": "incomplete"}, {"content": [], "status": "incomplete"}),
        ({"type": "function_call_output", "output": "1"}, {"type": "function_call_output", "output": "1"}),
        ({"role": 7, "content": "x"}, {"content": [{"type": "input_text", "text": "x"}]}),
        ({"id": 7}, {"id": "item_resp_1_3"}),
        ("text", {"type": "unknown", "value": "text"}),
        (None, {"type": "unknown", "value": None}),
    ],
)  # fmt: skip
def test_an_input_item_is_listed_in_the_form_that_clients_read(item, expected):
    before = json.dumps(item)
    shown = input_item(item, "resp_1", 3)
    assert expected.items() <= shown.items()
    assert isinstance(shown["id"], str)
    assert json.dumps(item) == before


def shown(item, owner_id, place):
    return {"id": f"{owner_id}-{place}", "value": item}


def test_a_page_is_a_list_object():
    body = page_response({"limit": "2"}, b"[1,2,3]", "r", shown, order="asc").body
    assert json.loads(body) == {
        "object": "list",
        "data": [{"id": "r-0", "value": 1}, {"id": "r-1", "value": 2}],
        "first_id": "r-0",
        "last_id": "r-1",
        "has_more": True,
    }


@pytest.mark.parametrize("array", [b"[", b"[1,]", b"[\xff]"])
def test_items_that_cannot_be_read_are_an_answer_of_their_own(array):
    with pytest.raises(ApiError) as caught:
        page_response({}, array, "r", shown, order="asc")
    assert (caught.value.status, caught.value.code) == (502, "unreadable")


@pytest.mark.parametrize(("items", "why"), [(0, "max_stored_items is 0"), (1, "was not stored")])
def test_an_unknown_id_gets_an_error_with_the_possible_reasons(items, why):
    error = not_stored(MemoryItems(ResponseStore(StoreLimits(items, 10, 10))), "response", "response")
    assert (error.status, error.code, error.param) == (404, "response_not_found", "response_id")
    assert why in error.message
