import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from openai._streaming import SSEDecoder

from lcp_gateway.adapters.sse import Event, EventReader, ends_event, is_readable_stream, may_hold_object, object_events
from tests.adapters.cuts import SIZES, cut
from tests.support.operations import lines_executed

BOM = b"\xef\xbb\xbf"
ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])
LINES = st.sampled_from(
    [b"", b"data: a", b"data:", b"data", b"data:  {} ", b"event: e.f", b"event", b": note", b":", b"id: 1",
     b"retry: 5", b"database: x", b"data: \xc3\xa9", b"event: \xf0\x9f\x98\x80", b" data: x", b"data: a:b",
     b"id: 1\x002", b"id", b"retry: x", b"retry: -1", b"data: [DONE]"]
)  # fmt: skip
STREAMS = st.builds(
    lambda mark, lines: mark + b"".join(line + end for line, end in lines),
    st.sampled_from([b"", b"", BOM]),
    st.lists(st.tuples(LINES, ENDS), max_size=25),
)
BYTES = st.text("\r\n:dataevn \ufeff", max_size=60).map(str.encode) | st.binary(max_size=60)


def read(chunks, **bounds):
    reader = EventReader(**bounds)
    events = [event for chunk in chunks for event in reader.feed(chunk)]
    return events, reader.rest()


def dispatched(events):
    return [event.fields for event in events if event.has_data]


def slowly(stream):
    """Read a stream line by line, as the specification describes it."""
    events, fields, data = [], ["", None, None], None
    for line in whole_lines(stream.removeprefix(BOM)):
        field, _, value = line.partition(b":")
        value = value[1:] if value[:1] == b" " else value
        text = value.decode("utf-8", "replace")
        if not line:
            if data is not None:
                events.append((fields[0], data[:-1], *fields[1:]))
            fields, data = ["", None, None], None
        elif field == b"data":
            data = (data or b"") + value + b"\n"
        elif field == b"event":
            fields[0] = text
        elif field == b"id" and b"\0" not in value:
            fields[1] = text
        elif field == b"retry" and value.isdigit():
            fields[2] = int(value)
    return events


def whole_lines(stream):
    """Return the lines that have an end, by reading byte after byte."""
    lines, line, at = [], b"", 0
    while at < len(stream):
        if stream[at : at + 1] in (b"\r", b"\n"):
            lines.append(line)
            line = b""
            at += 2 if stream[at : at + 2] == b"\r\n" else 1
        else:
            line += stream[at : at + 1]
            at += 1
    return lines


@given(STREAMS | BYTES, SIZES)
@example(b"data: a\r\n\r\nb", [10])
@example(b"data: a\r\r\ndata: b\n\n", [9])
@example(b"a\r\n\r\n", [1, 1, 1, 1, 1])
@example(BOM + b"data: a\n\n" + BOM + b"data: b\n\n", [3])
def test_the_events_are_those_of_the_specification_however_the_stream_is_cut(stream, sizes):
    events, rest = read(cut(stream, sizes))
    assert dispatched(events) == slowly(stream)
    assert b"".join(event.raw for event in events + rest) == stream
    assert len(rest) <= 1
    assert dispatched(rest) == []


@given(STREAMS, SIZES)
def test_events_are_those_that_openais_client_reads(stream, sizes):
    # openai-python does not strip a byte order mark, and yields events without data too.
    stream = stream.removeprefix(BOM)
    theirs = [
        (event.event or "", event.data) for event in SSEDecoder().iter_bytes(iter(cut(stream, sizes))) if event.data
    ]
    events, _ = read(cut(stream, sizes))
    assert [(event.name, event.data.decode()) for event in events if event.data] == theirs


@given(STREAMS | BYTES, SIZES)
def test_a_stream_is_between_two_events_exactly_where_nothing_of_the_next_has_come(stream, sizes):
    reader, seen = EventReader(), b"x\n\n"
    for chunk in cut(stream, sizes):
        reader.feed(chunk)
        seen += chunk
        if not reader.holds:
            assert ends_event(seen[-4:]) or seen == b"x\n\n" or not chunk
        elif ends_event(seen[-4:]):
            # Only the empty lines after an event are held back.
            assert reader.rest()[0].raw.strip(b"\r\n") == b""


@given(STREAMS, SIZES)
def test_the_events_that_may_tell_something_are_all_that_do(stream, sizes):
    events, _ = read([stream])
    telling = [event.fields for event in events if b"{" in event.raw]
    assert [event.fields for event in object_events(cut(stream, sizes))] == telling
    assert all(may_hold_object(event) for event in events if b"{" in event.data)


def test_an_event_has_its_name_its_id_and_the_lines_of_its_data():
    stream = BOM + b'event: x\n: note\nid: 7\nretry: 15\ndata: {"a":\ndata:1}\n\n\n\ndata: [DONE]\n\n'
    events, rest = read([stream])
    assert [tuple(event.fields) for event in events] == [("x", b'{"a":\n1}', "7", 15), ("", b"[DONE]", None, None)]
    assert rest == []


def test_a_byte_order_mark_counts_at_the_beginning_only():
    events, _ = read([BOM + b"data: a\n\n" + BOM + b"data: b\n\n"])
    assert [(event.has_data, event.data) for event in events] == [(True, b"a"), (False, b"")]


def test_an_event_goes_out_as_soon_as_it_is_whole():
    reader = EventReader()
    assert [event.data for event in reader.feed(b"data: a\r\n\r\n")] == [b"a"]
    assert [event.data for event in reader.feed(b"data: b\n\nda")] == [b"b"]
    # The second half of this line end is still missing, and goes with what follows.
    assert [event.raw for event in reader.feed(b"ta: c\r\n\r")] == [b"data: c\r\n\r"]
    assert [event.data for event in reader.feed(b"\ndata: d\r\r")] == [b"d"]
    assert reader.rest() == []


def test_an_event_needs_an_empty_line_after_it():
    events, rest = read([b"data: a\n\ndata: [DONE]\n"])
    assert [event.data for event in events] == [b"a"]
    assert [(event.raw, event.has_data) for event in rest] == [(b"data: [DONE]\n", False)]


@given(STREAMS, SIZES, st.integers(1, 40))
def test_an_event_above_the_bound_passes_unread_and_the_next_is_read_again(stream, sizes, bound):
    stream += b"\n\ndata: tail\n\n"
    events, rest = read(cut(stream, sizes), max_event_bytes=bound)
    assert b"".join(event.raw for event in events + rest) == stream
    assert all(len(event.raw) <= bound for event in events if event.is_whole)
    whole, _ = read([stream])
    short = [event.fields for event in whole if event.has_data and len(event.raw) <= bound]
    assert [fields for fields in dispatched(events) if fields in short] == dispatched(events)


def test_a_long_event_is_never_taken_for_another_by_its_end():
    reader = EventReader(max_event_bytes=64)
    stream = b"data: " + b"x" * 100 + b"\ndata: [DONE]\n\n"
    events = [event for chunk in cut(stream, [10] * 20) for event in reader.feed(chunk)]
    assert not any(event.has_data for event in events)
    assert reader.had_overlong
    assert not reader.holds
    assert [event.data for event in reader.feed(b"data: a\n\n")] == [b"a"]


@pytest.mark.parametrize(
    ("raw", "changed"),
    [
        (b"event: x\ndata: old\n\n", b"event: x\ndata: new\n\n"),
        (b"\r\n: data: n\r\ndata:old\r\nid: 1\r\n\r\n", b"\r\n: data: n\r\ndata:new\r\nid: 1\r\n\r\n"),
        (b"data:  old\r\r", b"data: new\r\r"),
        (BOM + b"data: old\n\n", BOM + b"data: new\n\n"),
        (b"database: x\ndata: old\n\n", b"database: x\ndata: new\n\n"),
        (b"data: old\nid: 1\ndata: older\n\n", b"data: new\nid: 1\n\n"),
        (b"data\nevent: x\n\n", b"data: new\nevent: x\n\n"),
        (b": note\n\n", b": note\n\n"),
    ],
)  # fmt: skip
def test_an_event_can_get_other_data(raw, changed):
    assert Event(raw, at_start=True).with_data(b"new") == changed


@given(STREAMS.filter(lambda stream: b"data" in stream), st.text("a\n{}", max_size=9).map(str.encode))
def test_other_data_is_read_as_it_was_given_and_nothing_else_changes(stream, data):
    for event in read([stream])[0]:
        if event.has_data:
            (again,) = read([event.text], max_event_bytes=10_000)[0]
            changed = Event(again.with_data(data))
            assert changed.data == data.removesuffix(b"\n")
            assert changed.fields[2:] == event.fields[2:]
            assert changed.name == event.name


def test_an_event_shows_no_data():
    assert "secret" not in repr(Event(b"event: x\ndata: secret\n\n"))


@pytest.mark.parametrize("piece", [b"\n", b"\r", b":\n\n", b"data:\n", b"data: {}\n\n", b"x", b"event", b"\xff"])
def test_work_grows_with_the_length_alone(piece):
    def work(size):
        stream = piece * (size // len(piece))
        return lines_executed(lambda: read(cut(stream, [256] * (size // 256))))

    # Eight times the length: eight times the work where it is linear, 64 where it is not.
    assert work(32 * 1024) < 9 * work(4 * 1024)


def test_an_event_of_many_small_chunks_costs_no_more_than_its_length():
    def work(chunks):
        reader = EventReader()
        lines = lines_executed(lambda: [reader.feed(b"a few more letters") for _ in range(chunks)])
        assert len(reader.rest()[0].raw) == 18 * chunks
        return lines

    assert work(8_000) < 9 * work(1_000)


@pytest.mark.parametrize(
    ("content_type", "encoding", "readable"),
    [("text/event-stream", "", True), ("Text/Event-Stream; charset=utf-8", "Identity", True),
     ("application/json", "", False), ("text/event-stream", "gzip", False)],
)  # fmt: skip
def test_only_uncompressed_events_can_be_read(content_type, encoding, readable):
    assert is_readable_stream(content_type, encoding) is readable
