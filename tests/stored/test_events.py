import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from openai._streaming import SSEDecoder

from lcp_gateway.stored.events import EventReader, may_tell, read_event, telling_events
from tests.adapters.cuts import SIZES, cut

# Far more than it takes on any machine, and far less than if the time grew with the square of the length.
QUADRATIC_S = 60.0

BOM = b"\xef\xbb\xbf"
ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])
LINES = st.sampled_from(
    [b"", b"data: a", b"data:", b"data", b"data:  {} ", b"event: e.f", b"event", b": note", b":", b"id: 1",
     b"retry: 5", b"database: x", b"data: \xc3\xa9", b"event: \xf0\x9f\x98\x80", b" data: x", b"data: a:b"]
)  # fmt: skip
STREAMS = st.lists(st.tuples(LINES, ENDS), max_size=25).map(
    lambda lines: b"".join(line + end for line, end in lines)
)
BYTES = st.text("\r\n:dataevn \ufeff", max_size=60).map(str.encode) | st.binary(max_size=60)


def read(chunks):
    reader = EventReader()
    events = [event for chunk in chunks for event in reader.feed(chunk)]
    return events, reader.rest()


@given(STREAMS | BYTES, SIZES)
@example(b"data: a\r\n\r\nb", [10])
@example(b"data: a\r\r\ndata: b\n\n", [9])
@example(b"a\r\n\r\n", [1, 1, 1, 1, 1])
def test_the_events_bytes_are_the_streams_and_no_cut_changes_them(stream, sizes):
    events, rest = read(cut(stream, sizes))
    assert b"".join(event.raw for event in events + rest) == stream
    whole = read([stream])
    assert events + rest == whole[0] + whole[1]
    assert len(rest) <= 1


@given(STREAMS, SIZES)
def test_events_are_those_that_openais_client_reads(stream, sizes):
    # Without ids and retries, which its reader counts as events of their own.
    stream = stream.replace(b"id: 1", b"di: 1").replace(b"retry", b"other")
    theirs = [
        (event.event or "", event.data)
        for event in SSEDecoder().iter_bytes(iter(cut(stream, sizes)))
        if event.event or event.data
    ]
    events, rest = read(cut(stream, sizes))
    # What is not ended is no event to them, unless the stream ends with a line end that could have had a second half.
    ended = rest and rest[0].raw.endswith((b"\n\r", b"\r\r"))
    ours = [(event.name, event.data.decode()) for event in events + (rest if ended else [])]
    assert [each for each in ours if any(each)] == theirs


@given(STREAMS, SIZES)
def test_the_events_that_may_tell_something_are_all_that_do(stream, sizes):
    events, rest = read([stream])
    telling = [event for event in events + rest if b"{" in event.raw]
    assert list(telling_events(cut(stream, sizes))) == telling
    assert all(may_tell(event.raw) for event in events + rest if b"{" in event.data)


def test_an_event_has_its_name_and_the_lines_of_its_data():
    events, rest = read([BOM + b'event: x\n: note\ndata: {"a":\ndata:1}\n\n\n\ndata: [DONE]\n\n'])
    assert [(event.name, event.data) for event in events] == [("x", b'{"a":\n1}'), ("", b"[DONE]")]
    assert rest == []


def test_an_event_goes_out_as_soon_as_it_is_whole():
    reader = EventReader()
    assert [event.data for event in reader.feed(b"data: a\r\n\r\n")] == [b"a"]
    assert [event.data for event in reader.feed(b"data: b\n\nda")] == [b"b"]
    # The second half of a line end may be still to come.
    assert reader.feed(b"ta: c\r\n\r") == []
    assert [event.raw for event in reader.feed(b"\n")] == [b"data: c\r\n\r\n"]
    assert reader.rest() == []


def test_what_is_left_at_the_end_is_an_event_too():
    events, rest = read([b"data: a\n\ndata: [DONE]\n"])
    assert [event.data for event in events + rest] == [b"a", b"[DONE]"]
    assert read([b"data: a\n\n\n"])[1][0].data == b""


@pytest.mark.parametrize(
    ("raw", "changed"),
    [
        (b"event: x\ndata: old\n\n", b"event: x\ndata: new\n\n"),
        (b"\r\n: data: n\r\ndata:old\r\nid: 1\r\n\r\n", b"\r\n: data: n\r\ndata:new\r\nid: 1\r\n\r\n"),
        (b"data:  old\r\r", b"data: new\r\r"),
        (BOM + b"data: old", BOM + b"data: new"),
        (b"database: x\ndata: old\n\n", b"database: x\ndata: new\n\n"),
        (b"data: old\ndata: older\n\n", None),
        (b"data: old\ndata\n\n", None),
        (b"data\n\n", None),
        (b": note\n\n", None),
    ],
)  # fmt: skip
def test_data_of_one_line_can_be_put_in_its_place(raw, changed):
    assert read_event(raw).with_data(b"new") == changed


def test_an_event_shows_no_data():
    assert "secret" not in repr(read_event(b"event: x\ndata: secret\n\n"))


@pytest.mark.parametrize(
    "piece", [b"\n", b"\r", b":\n\n", b"data:\n", b"data: {}\n\n", b"x", b"event", b"\xff"]
)
def test_time_grows_with_the_length_alone(piece):
    def took_s(size):
        stream = piece * (size // len(piece))
        begun = time.perf_counter()
        read(cut(stream, [4096] * (size // 4096)))
        return time.perf_counter() - begun

    small = min(took_s(64 * 1024) for _ in range(3))
    # Eight times the length: eight times as long where it is linear, 64 where it is not.
    assert min(took_s(512 * 1024) for _ in range(2)) < 30 * small + 0.05


def test_an_event_of_many_small_chunks_costs_no_more_than_its_length():
    begun = time.perf_counter()
    reader = EventReader()
    for _ in range(100_000):
        reader.feed(b"a few more letters")
    assert len(reader.rest()[0].raw) == 1_800_000
    assert time.perf_counter() - begun < QUADRATIC_S
