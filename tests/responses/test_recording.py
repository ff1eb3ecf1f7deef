"""Storing results: incomplete ones are not stored, and a failure to store never affects the response."""

import gzip
import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcp_gateway.purchase.errors import Undelivered
from lcp_gateway.purchase.order import TaskKind
from lcp_gateway.purchase.result_buffer import BufferLimits
from lcp_gateway.purchase.states import PurchaseEvent, Verdict
from lcp_gateway.responses.items import ItemKind
from lcp_gateway.responses.recording import Recorder, RecordingPlan
from lcp_gateway.responses.store import ResponseStore, StoreLimits
from tests.adapters.raw_json import VALUES, deep
from tests.support.cases import each_case
from tests.support.result_buffers import EVENTS, JSON, Complaints, begun, came

BODY = b'{"model":"m","input":"hi","metadata":{"a":"b"}}'
DOCUMENT = b'{"id":"resp_1","output":[]}'
STREAM = b'data: {"type":"response.created","response":{"id":"resp_1"}}\n\n'


class Keeping:
    def __init__(self, *, items=10, bytes_in_all=10**6):
        self.store = ResponseStore(StoreLimits(items, bytes_in_all, 1e6), clock=lambda: 0.0)
        self.lost = 0
        self.recorder = Recorder(self.store, now=lambda: 7.9, on_lost=self._lose)

    def _lose(self):
        self.lost += 1

    def keep(self, answer, **changes):
        self.recorder.record(answer, plan(**changes))

    def get(self, item_id="resp_1", kind=ItemKind.RESPONSE, owner="key_1"):
        return self.store.get(owner, kind, item_id)


def plan(**changes):
    fields = {"owner": "key_1", "kind": TaskKind.RESPONSES, "model": "m", "body": BODY}
    return RecordingPlan(**{**fields, **changes})


def test_a_complete_result_is_stored_with_its_input():
    keeping = Keeping()
    keeping.keep(came(DOCUMENT), earlier=(b'"before"',))
    item = keeping.get()
    assert (item.blocks, item.stream, item.created_at) == ((DOCUMENT,), False, 7)
    assert item.inputs == (b'"before"', b'{"type":"message","role":"user","content":"hi"}')
    assert dict(item.changes) == {} and not item.background and dict(item.headers) == {}


def test_a_whole_answer_is_not_copied():
    keeping = Keeping()
    keeping.keep(came(DOCUMENT))
    assert keeping.get().blocks[0] is DOCUMENT


async def test_it_is_there_as_soon_as_the_answer_has_ended_and_not_before():
    keeping, answer = Keeping(), begun(None, PurchaseEvent.PAY, PurchaseEvent.SETTLE)
    keeping.keep(answer)
    answer.begin(came(DOCUMENT).head)
    answer.append(DOCUMENT)
    assert keeping.get() is None
    answer.end()
    assert keeping.get() is not None


@pytest.mark.parametrize("verdict", list(Verdict))
def test_cut_and_failed_results_are_not_stored(verdict):
    keeping, answer = Keeping(), begun(None, PurchaseEvent.PAY, PurchaseEvent.SETTLE)
    keeping.keep(answer)
    answer.begin(came(DOCUMENT).head)
    answer.append(DOCUMENT)
    answer.fail(Undelivered("cut", verdict=verdict))
    assert len(keeping.store) == keeping.lost == 0


def test_a_chat_is_kept_under_its_own_kind_with_its_metadata():
    keeping = Keeping()
    body = b'{"messages":[ {"role":"user"} ],"store":true}'
    keeping.keep(came(b'{"id":"chatcmpl-1"}'), kind=TaskKind.CHAT_COMPLETIONS, body=body, metadata={"a": "b"})
    item = keeping.get("chatcmpl-1", ItemKind.CHAT)
    assert (item.inputs, dict(item.metadata)) == ((b'{"role":"user"}',), {"a": "b"})
    assert keeping.get("chatcmpl-1") is None


def test_a_result_without_an_id_is_kept_under_the_one_given_if_one_was():
    keeping = Keeping()
    keeping.keep(came(b'{"output":[]}'))
    assert (len(keeping.store), keeping.lost) == (0, 1)
    keeping.keep(came(b'{"output":[]}'), given_id="resp_given")
    assert json.loads(keeping.get("resp_given").document())["id"] == "resp_given"


def test_a_job_in_the_background_goes_by_its_own_id_whatever_its_result_says():
    keeping = Keeping()
    keeping.keep(came(DOCUMENT), fixed_id="resp_bg_1", given_id="resp_2", changes={"background": True})
    item = keeping.get("resp_bg_1")
    assert item.background and json.loads(item.document())["id"] == "resp_bg_1"
    assert keeping.get("resp_1") is None


def test_the_result_of_a_stream_is_kept_as_one_string():
    keeping = Keeping()
    keeping.keep(came(STREAM[:10], STREAM[10:], b": end\n\n", content_type=EVENTS))
    item = keeping.get()
    assert (item.blocks, item.stream) == ((STREAM + b": end\n\n",), True)


def test_a_stream_is_recognized_by_the_result_and_not_by_the_request():
    keeping = Keeping()
    keeping.keep(came(DOCUMENT, content_type="Application/JSON"))
    assert not keeping.get().stream


@pytest.mark.parametrize("encoding", ["gzip", "br", " GZip "])
def test_an_encoded_result_is_not_stored(encoding):
    keeping = Keeping()
    keeping.keep(came(gzip.compress(DOCUMENT), encoding=encoding), fixed_id="resp_bg_1")
    assert (len(keeping.store), keeping.lost) == (0, 1)


@pytest.mark.parametrize("encoding", ["", "identity", " Identity "])
def test_a_result_without_an_encoding_is_stored(encoding):
    keeping = Keeping()
    keeping.keep(came(DOCUMENT, encoding=encoding))
    assert keeping.get() is not None


def test_an_answer_whose_beginning_is_gone_is_lost():
    keeping = Keeping()
    keeping.keep(came(DOCUMENT, bounds=BufferLimits(whole_bytes=5)))
    assert (len(keeping.store), keeping.lost) == (0, 1)


@pytest.mark.parametrize("limits", [{"items": 0}, {"bytes_in_all": 100}])
def test_a_result_that_does_not_fit_is_lost(limits):
    keeping = Keeping(**limits)
    keeping.keep(came(DOCUMENT))
    assert (len(keeping.store), keeping.lost) == (0, 1)


def test_an_id_that_cannot_stand_in_a_path_is_none():
    keeping = Keeping()
    keeping.keep(came(b'{"id":"../../etc"}'), given_id="resp_given")
    assert keeping.get("resp_given") is not None


@each_case("block", [
        b"", b"\x00\xff", b"nul", b"[]", b"[" * 100_000, b'{"id":' + b"[" * 100_000, b'{"id":{"id":"x"}}', b'{"id":1e999}',
        b'{"id":"' + b"x" * 1_000 + b'"}', b'{"id":"\\ud800"}', b'data: {"response":{"id":"\\ud800"}}\n\n', b"data: " * 5_000,
        b'data: {"response":' + b"{" * 5_000, b"\r" * 70_000, b'{"id":"a","id":["b"]}', b'{"response":7,"id":7}',
        b'{"a":' * 990 + b"1" + b"}" * 990, b'{"id":' + b"9" * 5_000 + b"}",
    ])  # fmt: skip
@each_case("content_type", [JSON, EVENTS, "", "text/event-stream\x00", "é"])
@each_case("kind", [TaskKind.RESPONSES, TaskKind.CHAT_COMPLETIONS])
async def test_a_result_stays_delivered_whatever_the_provider_sends(block, content_type, kind):
    complaints, keeping = Complaints(), Keeping()
    answer = begun(None, PurchaseEvent.PAY, PurchaseEvent.SETTLE, PurchaseEvent.DELIVER)
    keeping.keep(answer, kind=kind, fixed_id="resp_bg_1")
    answer.begin(came(content_type=content_type).head)
    answer.append(block)
    answer.end()
    assert answer.ended and answer.error is None
    assert complaints.heard == []
    item = keeping.get("resp_bg_1", ItemKind.RESPONSE if kind is TaskKind.RESPONSES else ItemKind.CHAT)
    for read in (item.document, item.context):
        with suppress(ValueError):
            read()


@given(st.lists(st.binary(max_size=40) | VALUES.map(str.encode) | deep().map(str.encode), max_size=4), st.booleans())
def test_no_bytes_make_keeping_fail(blocks, stream):
    keeping = Keeping()
    content_type = EVENTS if stream else JSON
    keeping.keep(came(*(b"data: " * stream + block + b"\n\n" * stream for block in blocks), content_type=content_type))
    assert len(keeping.store) + keeping.lost == 1


def test_neither_the_request_nor_what_came_before_is_in_a_repr():
    assert "hi" not in repr(plan(body=b'{"input":"hi"}', earlier=(b'"hi"',), metadata={"hi": "hi"}))
