import json

import pytest

from lcp_gateway.http.errors import ApiError
from lcp_gateway.http.openai.history import not_stored, page_response
from lcp_gateway.http.openai.responses import input_item
from lcp_gateway.responses.store import ResponseStore, StoreLimits


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
def test_what_is_not_there_says_why_that_may_be(items, why):
    error = not_stored(ResponseStore(StoreLimits(items, 10, 10)), "response", "response")
    assert (error.status, error.code, error.param) == (404, "response_not_found", "response_id")
    assert why in error.message
