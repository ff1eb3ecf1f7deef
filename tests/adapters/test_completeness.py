import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lcp_gateway.adapters import completeness
from lcp_gateway.adapters.completeness import Form, Judgement, StreamJudge, judge_document
from lcp_gateway.adapters.sse import EventReader
from tests.adapters.cuts import SIZES, cut
from tests.support.cases import each_case

CHAT, RESPONSES, COMPLETIONS, EMBEDDINGS = Form.CHAT, Form.RESPONSES, Form.COMPLETIONS, Form.EMBEDDINGS  # fmt: skip
WHOLE, ERROR, EMPTY, WRONG_KIND, CUT = Judgement.WHOLE, Judgement.ERROR, Judgement.EMPTY, Judgement.WRONG_KIND, Judgement.CUT  # fmt: skip
DONE = b"data: [DONE]\n\n"


def data(value, name=""):
    line = value if isinstance(value, bytes) else json.dumps(value, separators=(",", ":")).encode()
    return (b"event: %b\n" % name.encode() if name else b"") + b"data: %b\n\n" % line


def chunk(text="", finish=None, index=0, **more):
    return data({"choices": [{"index": index, "delta": {"content": text}, "finish_reason": finish}], **more})


def event(kind, named=True, **more):
    return data({"type": kind, **more}, kind if named else "")


def judged(form, stream, sizes=(), *, request=b"", is_tidy=True):
    judge = StreamJudge(form, request=request)
    for piece in cut(stream, sizes):
        judge.feed(piece)
    return judge.end(is_tidy=is_tidy), judge


HELLO = chunk("hello")
CREATED = event("response.created", response={"id": "r", "status": "in_progress", "error": None})
DELTA = event("response.output_text.delta", delta="hello")


# Results in one piece.


@each_case(
    "form, document, expected",
    [
        (CHAT, {"choices": [{"message": {"content": "hi"}, "finish_reason": "stop"}]}, WHOLE),
        # unusual but valid
        (CHAT, {"choices": [{"message": {"content": None, "tool_calls": [{"id": "c"}]}}]}, WHOLE),
        (CHAT, {"choices": [{"message": {"content": None, "refusal": "no"}}]}, WHOLE),
        (CHAT, {"choices": [{"message": {"content": ""}, "finish_reason": "stop"}]}, WHOLE),
        (CHAT, {"choices": [{"message": {"audio": {"data": "aa"}}}], "error": None}, WHOLE),
        (CHAT, {"choices": [{"message": None, "finish_reason": "content_filter"}]}, WHOLE),
        (CHAT, {"choices": [{"message": {}}, {"message": {}}], "x_new": {"error": 1}}, WHOLE),
        (CHAT, {"error": {"message": "no"}}, ERROR),
        (CHAT, {"error": "no"}, ERROR),
        (CHAT, {"object": "error", "message": "no", "code": 400}, ERROR),
        (CHAT, {"choices": [{"message": {"content": "hi"}}], "error": {"code": 502}}, ERROR),
        (CHAT, {"choices": [{"message": {"content": ""}, "finish_reason": "error"}]}, ERROR),
        (CHAT, {"choices": [{"message": {"content": "h"}, "error": {"code": 502}}]}, ERROR),
        (CHAT, {"choices": []}, EMPTY),
        (CHAT, {"detail": "Not Found"}, WRONG_KIND),
        (CHAT, {"output": []}, WRONG_KIND),
        (CHAT, {"choices": [{"text": "hi"}]}, WRONG_KIND),
        (CHAT, {"choices": "none"}, WRONG_KIND),
        (CHAT, ["choices"], WRONG_KIND),
        (COMPLETIONS, {"choices": [{"text": "", "finish_reason": "length"}]}, WHOLE),
        (COMPLETIONS, {"choices": [{"delta": {}}]}, WRONG_KIND),
        (EMBEDDINGS, {"data": [{"embedding": [1.0]}]}, WHOLE),
        (EMBEDDINGS, {"data": []}, EMPTY),
        (EMBEDDINGS, {"choices": [{"message": {}}]}, WRONG_KIND),
        (RESPONSES, {"status": "completed", "output": [{"type": "message"}], "error": None}, WHOLE),
        (RESPONSES, {"output": [{"type": "function_call"}]}, WHOLE),
        (RESPONSES, {"status": "incomplete", "output": [], "incomplete_details": {}}, WHOLE),
        (RESPONSES, {"status": "failed", "output": [], "error": {"code": "server_error"}}, ERROR),
        (RESPONSES, {"status": "failed", "output": [{"type": "message"}]}, ERROR),
        (RESPONSES, {"status": "cancelled", "output": []}, ERROR),
        (RESPONSES, {"status": "completed", "output": []}, WHOLE),
        (RESPONSES, {"status": "in_progress", "output": [{"type": "message"}]}, WHOLE),
        (RESPONSES, {"object": "response", "status": "completed"}, EMPTY),
        (RESPONSES, {"status": "in_progress", "output": []}, CUT),
        (RESPONSES, {"choices": [{"message": {}}]}, WRONG_KIND),
    ],
)
def test_a_document_is_judged_by_what_it_holds(form, document, expected):
    """Regression: a node that answered 200 with an error was paid, counted as successful and preferred for its speed."""
    body = json.dumps(document).encode()
    assert judge_document(form, body) is expected
    assert judge_document(form, b"\xef\xbb\xbf\r\n " + body + b" \n") is expected
    # The same where a stream was requested.
    verdict, judge = judged(form, body, [5] * 9)
    assert verdict is expected
    assert judge.free_bytes == 0


@each_case("form", Form)
@each_case(
    "body, expected",
    [
        (b"", EMPTY),
        (b" \r\n\t", EMPTY),
        (b"<!DOCTYPE html><html><body>Log in</body></html>", WRONG_KIND),
        (b"Service Unavailable", WRONG_KIND),
        (b'{"choices":[{"message":{"con', CUT),
        (b"null", WRONG_KIND),
    ],
)
def test_an_invalid_document_is_incomplete(form, body, expected):
    assert judge_document(form, body) is expected
    verdict, _ = judged(form, body)
    assert verdict is expected or (body.startswith(b"null") and verdict is not WHOLE)


def test_a_very_long_document_is_judged_by_its_ends():
    long = b'{"data":[%b]}' % b",".join([b'{"embedding":[0.25,0.5]}'] * 60_000)
    assert judge_document(EMBEDDINGS, long) is WHOLE
    assert judge_document(EMBEDDINGS, long[:-1]) is CUT
    assert judge_document(CHAT, long) is WRONG_KIND
    assert judge_document(EMBEDDINGS, b"<p>" + long) is WRONG_KIND


# Streams.


COMPLETED = event("response.completed", response={"id": "r", "status": "completed", "error": None})
WHOLE_STREAMS = {
    "chat": (CHAT, HELLO + chunk("", "stop") + DONE),
    "no space": (CHAT, (HELLO + DONE).replace(b": ", b":")),
    "CR": (CHAT, (HELLO + DONE).replace(b"\n", b"\r")),
    "CRLF": (CHAT, (HELLO + DONE).replace(b"\n", b"\r\n")),
    "byte order mark": (CHAT, b"\xef\xbb\xbf" + HELLO + DONE),
    "comments": (CHAT, b": hi\n\n" + HELLO + b": there\n\n" + DONE + b": bye\n\n" * 2_000),
    "blank lines": (CHAT, b"\n\n\n" + HELLO + b"\n" + DONE + b"\n\n"),
    "several lines": (CHAT, HELLO.replace(b'{"', b'{\ndata: "', 1) + DONE),
    "event lines": (CHAT, HELLO.replace(b"data", b"event: message\nid: 4\nretry: 9\ndata") + DONE),
    "mark without an end": (CHAT, HELLO + b"data: [DONE]"),
    "no mark": (CHAT, HELLO + chunk("", "stop")),
    "no mark, spaced": (CHAT, HELLO + chunk("", "stop").replace(b":", b" : ").replace(b"data : ", b"data:")),
    "no mark, one choice first": (CHAT, chunk("a", None, 1) + chunk("", "stop", 0) + chunk("", "length", 1)),
    "usage after the finish": (CHAT, HELLO + chunk("", "stop") + data({"choices": [], "usage": {}})),
    "nothing said": (CHAT, chunk("", None) + chunk("", "stop") + DONE),
    "filtered": (CHAT, data({"choices": []}) + chunk("", "content_filter") + DONE),
    "tool calls": (CHAT, data({"choices": [{"delta": {"tool_calls": [{"index": 0}]}, "finish_reason": None}]}) + DONE),
    "null errors": (CHAT, HELLO.replace(b"{", b'{"error":null,', 1) + DONE),
    "speaks of errors": (CHAT, chunk('the word "error" and data: [DONE]') + DONE),
    "completions": (COMPLETIONS, data({"choices": [{"text": "a", "finish_reason": None}]}) + DONE),
    "responses": (RESPONSES, CREATED + DELTA + COMPLETED),
    "no event lines": (RESPONSES, CREATED + DELTA + event("response.completed", named=False)),
    "event lines alone": (RESPONSES, CREATED + data({"response": {}}, "response.completed")),
    "type comes last": (RESPONSES, DELTA + data({"response": {"x": 1}, "type": "response.completed"})),
    "spaced": (RESPONSES, DELTA + data(b'{ "type" : "response.completed" }')),
    "incomplete": (RESPONSES, DELTA + event("response.incomplete", response={"status": "incomplete"})),
    "incomplete, no event lines": (RESPONSES, DELTA + event("response.incomplete", named=False)),
    "mark after it": (RESPONSES, DELTA + COMPLETED + DONE),
}  # fmt: skip
OTHER_STREAMS = {
    "cut": (CHAT, HELLO, CUT),
    "cut mark": (CHAT, HELLO + b"data: [DON", CUT),
    "half an event": (CHAT, HELLO + b'data: {"choices":[', CUT),
    "one of two finished": (CHAT, chunk("a") + chunk("b", None, 1) + chunk("", "stop", 1), CUT),
    "text of a mark": (CHAT, chunk("data: [DONE]\n\n"), CUT),
    "mark as a string": (CHAT, HELLO + data(b'"[DONE]"'), CUT),
    "only a mark": (CHAT, DONE, EMPTY),
    "nothing in it": (CHAT, data({"choices": []}) + DONE, EMPTY),
    "only comments": (CHAT, b": ping\n\n: ping\n\n", EMPTY),
    "plain text": (CHAT, b"upstream connect error\n", WRONG_KIND),
    "another kind": (CHAT, CREATED + DELTA + COMPLETED, WRONG_KIND),
    "another kind and a mark": (CHAT, data({"message": "no such model"}) + DONE, EMPTY),
    "error and mark": (CHAT, data({"error": {"message": "no"}}) + DONE, ERROR),
    "error in the middle": (CHAT, HELLO + data({"error": {"message": "no"}}) + HELLO + DONE, ERROR),
    "named error": (CHAT, HELLO + data({"message": "no"}, "error") + DONE, ERROR),
    "error object": (CHAT, HELLO + data({"object": "error", "message": "no"}) + DONE, ERROR),
    "finished by an error": (CHAT, HELLO + chunk("", "error") + DONE, ERROR),
    "choice with an error": (CHAT, HELLO + data({"choices": [{"error": {"code": 1}, "delta": {}}]}) + DONE, ERROR),
    "responses cut": (RESPONSES, CREATED + DELTA, CUT),
    "end mark of a chat": (RESPONSES, CREATED + DELTA + DONE, CUT),
    "name without data": (RESPONSES, DELTA + b"event: response.completed\n\n", CUT),
    "end without its empty line": (RESPONSES, DELTA + COMPLETED[:-1], CUT),
    "text of an end": (RESPONSES, DELTA + event("response.output_text.delta", delta="response.completed"), CUT),
    "a longer name": (RESPONSES, DELTA + event("response.completed_not"), CUT),
    "chunks of a chat": (RESPONSES, HELLO + DONE, WRONG_KIND),
    "failed": (RESPONSES, CREATED + event("response.failed", response={"status": "failed"}), ERROR),
    "failed, no event lines": (RESPONSES, CREATED + event("response.failed", named=False), ERROR),
    "cancelled": (RESPONSES, CREATED + event("response.cancelled"), ERROR),
    "error event": (RESPONSES, CREATED + event("error", message="no"), ERROR),
    "error by name alone": (RESPONSES, CREATED + data({"message": "no"}, "error"), ERROR),
    "error and completed": (RESPONSES, CREATED + data({"error": {"code": "x"}}) + COMPLETED, ERROR),
    "completed with an error": (RESPONSES, DELTA + event("response.completed", response={"error": {"code": "x"}}), ERROR),
    "completed but failed": (RESPONSES, DELTA + event("response.completed", response={"status": "failed"}), ERROR),
}  # fmt: skip


@each_case("name", WHOLE_STREAMS)
@each_case("size", [1, 2, 7, 100, 10**9])
def test_a_whole_stream_is_whole_however_it_is_written(name, size):
    """Regression: these were classified as cut and charged, and counted against their providers."""
    form, stream = WHOLE_STREAMS[name]
    request = b'{"n":2}' if "one choice" in name else b""
    verdict, judge = judged(form, stream, [size] * len(stream), request=request)
    assert verdict is WHOLE
    assert judge.is_complete == ("no mark" not in name and "usage" not in name and "without" not in name)


@each_case("name", OTHER_STREAMS)
@each_case("size", [1, 2, 7, 100, 10**9])
def test_any_other_stream_is_not(name, size):
    form, stream, expected = OTHER_STREAMS[name]
    request = b'{"n":2}' if "two" in name else b""
    verdict, _ = judged(form, stream, [size] * len(stream), request=request)
    assert verdict is expected


def test_without_an_end_mark_only_a_clean_end_shows_that_nothing_is_missing():
    stream = HELLO + chunk("", "stop")
    assert judged(CHAT, stream, is_tidy=False)[0] is CUT
    assert judged(CHAT, stream + DONE, is_tidy=False)[0] is WHOLE


@pytest.mark.parametrize(
    ("request_body", "finished", "expected"),
    [
        (b'{"prompt":["a","b"],"n":2}', 4, WHOLE),
        (b'{"prompt":["a","b"],"n":2}', 3, CUT),
        (b'{"prompt":[1,2,3]}', 1, WHOLE),
        (b'{"n":null}', 1, WHOLE),
        (b"not json", 1, WHOLE),
    ],
)
def test_each_choice_that_was_asked_for_has_to_finish(request_body, finished, expected):
    events = [data({"choices": [{"text": "", "index": index, "finish_reason": "stop"}]}) for index in range(finished)]
    assert judged(COMPLETIONS, b"".join(events), request=request_body)[0] is expected


ENDS = [
    (CHAT, HELLO, DONE),
    (CHAT, HELLO.replace(b"\n", b"\r"), DONE.replace(b"\n", b"\r")),
    (RESPONSES, CREATED + DELTA, COMPLETED),
    (RESPONSES, CREATED, event("response.completed", named=False)),
    (RESPONSES, CREATED, event("response.incomplete")),
    (RESPONSES, CREATED, event("response.incomplete", named=False)),
    (RESPONSES, CREATED, data({"type": "x"}, "response.completed")),
    (RESPONSES, CREATED, event("response.completed", response={"status": "failed"})),
    (RESPONSES, CREATED, DONE),
]


@each_case("form, before, end", ENDS)
@each_case("size", [1, 3, 50, 10**9])
def test_an_end_mark_and_all_after_it_waits_to_be_shown(form, before, end, size):
    """Regression: an end mark in another spelling reached the client before the wrong hash was found, so that the result looked complete."""
    stream = before + end + b": bye\n\n" + before
    judge = StreamJudge(form)
    seen = 0
    for piece in cut(stream, [size] * len(stream)):
        judge.feed(piece)
        seen += len(piece)
        assert judge.free_bytes <= min(seen, len(before))
    assert judge.free_bytes == len(before)
    assert judge.is_complete
    assert not judge.shows_error


@pytest.mark.parametrize("size", [1, 3, 50, 10**9])
def test_a_providers_error_is_shown_and_nothing_after_it(size):
    error = data({"error": {"message": "no"}})
    stream = HELLO + error + HELLO + DONE
    judge = StreamJudge(CHAT)
    for piece in cut(stream, [size] * len(stream)):
        judge.feed(piece)
    assert judge.free_bytes == len(HELLO + error)
    assert judge.shows_error
    assert judge.is_complete


def test_an_event_waits_for_its_end_and_whole_ones_go_out_at_once():
    judge = StreamJudge(CHAT)
    for piece, free in [(HELLO, len(HELLO)), (b"data: [DO", 0), (b'" is no mark\n', 0), (b"\n", 23)]:
        before = judge.free_bytes
        judge.feed(piece)
        assert judge.free_bytes - before == free


def test_a_mark_inside_a_flood_is_text_and_a_flood_is_never_whole(monkeypatch):
    monkeypatch.setattr(completeness, "EventReader", lambda: EventReader(4_096))
    for form, mark in ((CHAT, DONE), (RESPONSES, COMPLETED)):
        flood = b"data: " + b"x" * 5_000
        verdict, judge = judged(form, HELLO + CREATED + flood + b"\n" + mark, [1_000] * 9)
        assert verdict is CUT
        assert not judge.is_complete
        verdict, judge = judged(form, HELLO + CREATED + flood + b"\n\n" + mark, [1_000] * 9)
        assert verdict is CUT, "it was shown, and what it was cannot be known"
        assert judge.is_complete, "the mark after it still waits"
        assert judge.free_bytes == len(HELLO + CREATED + flood) + 2


def test_what_follows_the_end_without_end_is_not_waited_for():
    judge = StreamJudge(CHAT)
    judge.feed(HELLO + DONE)
    judge.feed(b": more\n\n" * 1_000)
    assert not judge.is_flooded
    judge.feed(b"x" * completeness.MAX_AFTER_END_BYTES)
    assert judge.is_flooded
    assert judge.end() is WHOLE


def test_a_compressed_stream_is_left_to_its_hash():
    judge = StreamJudge(CHAT, content_encoding="gzip")
    judge.feed(b"\x1f\x8b[DONE]")
    assert judge.free_bytes == 8
    assert judge.end() is WHOLE


def test_the_last_usage_counts_whatever_comes_after_it():
    """Regression: with usage in each chunk and 11 KiB of search results after the last one, 6 msat were charged."""
    judge = StreamJudge(CHAT, wants_usage=True)
    for tokens in (1, 2, 3):
        judge.feed(chunk("a", usage={"completion_tokens": tokens, "prompt_tokens": 5}))
    judge.feed(chunk("", "stop", usage=None))
    judge.feed(data({"choices": [], "search_results": ["y" * 11_000]}) + DONE)
    assert json.loads(judge.usage_data)["usage"]["completion_tokens"] == 3


PIECES = st.sampled_from(
    [HELLO, CREATED, DELTA, DONE, COMPLETED, chunk("", "stop"), data({"error": {"x": 1}}), b": note\n\n", b"\n",
     data({"error": None}), event("error"), event("response.failed", named=False), b"data: [DO", b"NE]\n", b"data: x\n",
     b"event: response.completed\n", HELLO.replace(b"\n", b"\r"), DONE.replace(b"\n", b"\r\n"), b"{", b"<", b"\xff",
     chunk("error complete fail cancel"), data({"choices": [], "usage": {"total_tokens": 1}}), b"\xef\xbb\xbf"]
)  # fmt: skip
MIXED = st.lists(PIECES, max_size=12).map(b"".join)


@given(st.sampled_from([CHAT, RESPONSES, COMPLETIONS]), MIXED, SIZES)
@example(CHAT, HELLO + b"\n" + DONE, [len(HELLO) + 1])
def test_no_cut_changes_the_judgement_or_what_is_shown(form, stream, sizes):
    by_bytes, slow = judged(form, stream, [1] * len(stream))
    verdict, judge = judged(form, stream, sizes)
    assert verdict is by_bytes
    assert judge.is_complete == slow.is_complete
    assert judge.shows_error == slow.shows_error
    if judge.is_complete:
        assert judge.free_bytes == slow.free_bytes
    else:
        # Only empty lines may be shown with either the event before or the one after.
        between = sorted((judge.free_bytes, slow.free_bytes))
        assert stream[slice(*between)].strip(b"\r\n") == b""


@given(st.sampled_from([CHAT, RESPONSES]), MIXED, SIZES)
def test_what_is_shown_never_shrinks_and_never_holds_the_end(form, stream, sizes):
    judge = StreamJudge(form)
    seen = free = 0
    for piece in cut(stream, sizes):
        judge.feed(piece)
        seen += len(piece)
        assert free <= judge.free_bytes <= seen
        free = judge.free_bytes
    if not judge.shows_error and judge.is_complete:
        again, _ = judged(form, stream[:free])
        assert again is not WHOLE or form is CHAT


OPEN = b'data: {"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":null}]}\n\n'
OPEN_WITH_SPACE = OPEN.replace(b":null", b": null")
FINISHED = OPEN.replace(b"null", b'"stop"')


@pytest.mark.parametrize(
    ("block", "is_ordinary"),
    [
        (OPEN, True),
        (OPEN * 3, True),
        (OPEN + OPEN_WITH_SPACE + b": comment\n\n", True),
        (OPEN + FINISHED, False),
        (FINISHED + OPEN, False),
        (OPEN * 2 + OPEN[:-1], False),
        (OPEN + b"data: [DONE]\n\n", False),
    ],
)
def test_a_block_of_whole_events_that_end_nothing_is_ordinary(block, is_ordinary):
    """What arrived together is judged together: a block of many tokens costs no more than one of one."""
    judge = StreamJudge(Form.CHAT)
    assert not judge.feed_ordinary(block), "it is not known yet that these are events"
    judge.feed(OPEN)
    assert judge.feed_ordinary(block) == is_ordinary
    assert judge.free_bytes == len(OPEN) + (len(block) if is_ordinary else 0), "all or nothing is read"
