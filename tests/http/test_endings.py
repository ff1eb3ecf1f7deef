import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lcp_gateway.http.endings import EndingHold
from lcp_gateway.purchase.task import TaskKind

CHAT, RESPONSES = TaskKind.CHAT_COMPLETIONS, TaskKind.RESPONSES


def passed(kind, *chunks):
    hold = EndingHold(kind)
    return [hold.feed(chunk) for chunk in chunks], hold.rest()


def test_a_streams_events_go_out_at_once_and_its_end_mark_waits():
    assert passed(CHAT, b"data: 1\n\n", b"data: 2\n\ndata: [DONE]\n\n") == (
        [b"data: 1\n\n", b"data: 2\n\n"],
        b"data: [DONE]\n\n",
    )


def test_a_response_waits_with_its_completed_event():
    assert passed(RESPONSES, b"event: x\n\nevent: response.completed\n", b"data: {}\n\n") == (
        [b"event: x\n\n", b""],
        b"event: response.completed\ndata: {}\n\n",
    )


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_mark_that_comes_in_pieces_is_still_one(cut):
    stream = b"data: 1\n\ndata: [DONE]\n\n"
    at = len(b"data: 1\n\n") + cut
    out, rest = passed(CHAT, stream[:at], stream[at:])
    assert (b"".join(out), rest) == (b"data: 1\n\n", b"data: [DONE]\n\n")


def test_a_mark_inside_a_line_is_text():
    assert passed(CHAT, b'data: "see ', b'data: [DONE]"\n\n') == (
        [b'data: "see ', b'data: [DONE]"\n\n'],
        b"",
    )


def test_what_never_ends_after_a_mark_is_not_kept_for_ever():
    hold = EndingHold(CHAT)
    flood = b"data: [DONE]\n\n" + b"x" * (5 * 1024 * 1024)
    assert hold.feed(flood) == flood
    assert hold.rest() == b""


PIECES = st.sampled_from(
    [
        b"data: ",
        b"[DONE]",
        b"data:[DONE]",
        b"\n",
        b"\r\n",
        b"x",
        b"data: [DO",
        b"NE]",
        b"d",
        b"\n\n",
    ]
)


@given(st.lists(PIECES, max_size=30), st.lists(st.integers(1, 7), max_size=30))
@example([b"x", b"data: [DONE]"], [1])
def test_nothing_is_lost_added_or_moved_and_no_mark_goes_out_early(pieces, sizes):
    stream = b"".join(pieces)
    chunks, left = [], stream
    for size in sizes:
        chunks.append(left[:size])
        left = left[size:]
    chunks.append(left)
    out, rest = passed(CHAT, *[chunk for chunk in chunks if chunk])
    assert b"".join(out) + rest == stream
    lines = b"".join(out).split(b"\n")
    assert not any(line.startswith((b"data: [DONE]", b"data:[DONE]")) for line in lines)
