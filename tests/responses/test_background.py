import json

import pytest
from openai.types.responses import Response

from lcp_gateway.purchase.errors import Undelivered
from lcp_gateway.purchase.purchase import Purchase
from lcp_gateway.purchase.states import PurchaseEvent
from lcp_gateway.responses.background import BackgroundJob, ResponseStatus, echoed_fields, response_object
from tests.support.purchases import quote
from tests.support.result_buffers import PAID, begun, came

REQUEST = {
    "model": "m",
    "input": "SECRET",
    "instructions": "be brief",
    "tools": [{"type": "function", "name": "f", "parameters": {}, "strict": True}],
    "tool_choice": "required",
    "parallel_tool_calls": False,
    "metadata": {"a": "b"},
    "temperature": 0.5,
    "previous_response_id": "resp_1",
    "store": True,
    "background": True,
}


def job(answer, request=None, **fields):
    return BackgroundJob(
        id="resp_bg_1",
        owner="key_1",
        created_at=7,
        model="m",
        answer=answer,
        request=echoed_fields(REQUEST if request is None else request),
        **fields,
    )


@pytest.mark.parametrize(
    ("events", "status"),
    [
        ((), ResponseStatus.QUEUED),
        ((PurchaseEvent.PAY,), ResponseStatus.IN_PROGRESS),
        ((PurchaseEvent.PAY, PurchaseEvent.SETTLE), ResponseStatus.IN_PROGRESS),
        ((PurchaseEvent.PAY, PurchaseEvent.LOSE_SIGHT), ResponseStatus.IN_PROGRESS),
        ((PurchaseEvent.REFUSE,), ResponseStatus.IN_PROGRESS),
    ],
)
def test_a_job_that_runs_is_queued_until_its_payment_goes_out(events, status):
    answer = begun(None, *events)
    assert job(answer).status is status


def test_one_with_a_quote_that_is_not_paid_is_queued_still():
    answer = begun()
    answer.purchase = Purchase(answer.order, quote())
    assert job(answer).status is ResponseStatus.QUEUED


def test_one_that_has_ended_is_completed_failed_or_cancelled():
    assert job(came(b"{}")).status is ResponseStatus.COMPLETED
    failed = begun(None, PurchaseEvent.PAY, PurchaseEvent.SETTLE, PurchaseEvent.FAIL_DELIVERY)
    failed.fail(Undelivered("cut"))
    assert job(failed).status is ResponseStatus.FAILED
    assert job(failed, cancelled=True).status is ResponseStatus.CANCELLED


def test_one_whose_result_came_before_the_cancelling_is_completed():
    assert job(came(b"{}"), cancelled=True).status is ResponseStatus.COMPLETED


def test_one_whose_result_could_not_be_kept_has_failed():
    problem = RuntimeError("too large")
    lost = job(came(b"{}"), problem=problem)
    assert (lost.status, lost.error) == (ResponseStatus.FAILED, problem)


def test_it_is_shown_as_openai_shows_one():
    shown = json.loads(job(begun()).document())
    found = Response.model_validate(shown)
    assert (found.id, found.status, found.background, found.output) == ("resp_bg_1", "queued", True, [])
    assert (found.instructions, found.temperature, found.previous_response_id) == ("be brief", 0.5, "resp_1")
    assert (found.tool_choice, found.parallel_tool_calls, found.metadata) == ("required", False, {"a": "b"})
    assert shown["error"] is None and "lcp" not in shown


def test_a_bare_request_is_shown_with_openais_defaults():
    found = Response.model_validate(json.loads(job(begun(), {"model": "m", "input": "x"}).document()))
    assert (found.tool_choice, found.parallel_tool_calls, found.tools, found.metadata) == ("auto", True, [], {})


def test_the_reason_of_a_failure_and_the_state_of_its_payment_are_shown():
    failed = begun(None, *PAID)
    failed.fail(Undelivered("cut"))
    shown = json.loads(
        job(failed).document(error={"code": "undelivered", "message": "cut"}, money={"payment": "settled"})
    )
    assert (shown["status"], shown["error"]["code"], shown["lcp"]) == ("failed", "undelivered", {"payment": "settled"})


def test_the_input_is_not_repeated_and_not_in_a_repr():
    shown = job(begun(), inputs=(b'"SECRET"',))
    assert b"SECRET" not in shown.document() and "SECRET" not in repr(shown)
    assert "input" not in echoed_fields(REQUEST)
    assert "be brief" not in repr(shown)


def test_half_an_emoji_in_what_is_repeated_can_be_written():
    shown = json.loads(job(begun(), {"instructions": "\ud83d"}).document())
    assert shown["instructions"] == "\ud83d"


def test_what_is_nested_too_deeply_to_be_written_is_left_out():
    deep = "x"
    for _ in range(1_020):
        deep = [deep]
    shown = json.loads(job(begun(), {"tools": deep, "user": "u"}).document())
    assert shown["tools"] == [] and shown["status"] == "queued"


def test_after_its_end_it_holds_on_to_nothing_large():
    ended = job(came(b"{}"), inputs=(b'"SECRET"',))
    ended.release()
    assert ended.inputs == () and ended.request == {"previous_response_id": "resp_1"}
    assert ended.changes == {"background": True, "previous_response_id": "resp_1"}


@pytest.mark.parametrize("status", list(ResponseStatus))
def test_every_status_makes_an_object_that_clients_read(status):
    shown = response_object("resp_bg_1", created_at=7, model="m", status=status, request={})
    assert Response.model_validate(shown).status == status.value
