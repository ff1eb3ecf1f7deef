"""The HTTP/2 core: bytes in, events out, for any input."""

import hpack
from hypothesis import given
from hypothesis import strategies as st

from lcp_gateway.upstreams.lcpd.http2_events import (
    DataReceived,
    ErrorCode,
    Event,
    GoingAway,
    HeadersReceived,
    Http2Error,
    PingAnswered,
    SettingsChanged,
    StreamReset,
)
from lcp_gateway.upstreams.lcpd.http2_header_blocks import header_block
from lcp_gateway.upstreams.lcpd.http2_protocol import PREFACE, WINDOW_BYTES, Http2Connection
from tests.support import raw_http2 as raw

BLOCK = header_block([(b":method", b"POST"), (b":path", b"/s/m"), (b"x-long", b"v" * 300)])


def opened(count=1, body=b"body", **limits):
    """Return a connection with open streams, and nothing left to send."""
    made = Http2Connection()
    made.receive(raw.settings(**limits))
    for _ in range(count):
        made.open(BLOCK, body)
    made.take_output()
    return made


def frames(output):
    """Return what the connection sent, frame by frame."""
    output = output.removeprefix(PREFACE)
    found = []
    while output:
        size = int.from_bytes(output[:3], "big")
        found.append((output[3], output[4], int.from_bytes(output[5:9], "big"), output[9 : 9 + size]))
        output = output[9 + size :]
    return found


def test_the_connection_begins_with_the_preface_and_settings_that_refuse_pushes():
    output = Http2Connection().take_output()
    assert output.startswith(PREFACE)
    (kind, flags, stream_id, payload), update = frames(output)
    assert (kind, flags, stream_id, payload) == (raw.SETTINGS, 0, 0, b"\0\x02\0\0\0\0")
    assert update[0] == raw.WINDOW_UPDATE and update[2] == 0


def test_a_request_is_one_header_block_and_its_body():
    made = Http2Connection()
    made.take_output()
    assert made.open(BLOCK, b"hello") == 1
    assert made.open(BLOCK, b"") == 3
    head, body, _, empty = frames(made.take_output())
    decoded = hpack.Decoder().decode(head[3])
    assert (":path", "/s/m") in decoded and ("x-long", "v" * 300) in decoded
    assert head[:3] == (raw.HEADERS, raw.END_HEADERS, 1)
    assert body == (raw.DATA, raw.END_STREAM, 1, b"hello")
    assert empty == (raw.DATA, raw.END_STREAM, 3, b"")


ANSWER = (
    raw.settings(streams=50)
    + raw.frame(raw.PING, 0, 0, b"12345678")
    + raw.frame(raw.HEADERS, 0, 1, raw.block(*raw.HEAD)[:3])
    + raw.frame(raw.CONTINUATION, 0, 1, raw.block(*raw.HEAD)[3:7])
    + raw.frame(raw.CONTINUATION, raw.END_HEADERS, 1, raw.block(*raw.HEAD)[7:])
    + raw.frame(raw.PRIORITY, 0, 1, bytes(5))
    + raw.padded(raw.DATA, 0, 1, b"abc", 7)
    + raw.frame(0x77, 0xFF, 9, b"a kind that is unknown")
    + raw.frame(raw.DATA, 0, 1, b"def")
    + raw.window(1, 10)
    + raw.window(0, 10)
    + raw.trailers(1, "0")
    + raw.frame(raw.PING, raw.ACK, 0, b"lcpalive")
    + raw.goaway(1)
)
EXPECTED = [
    SettingsChanged(),
    HeadersReceived(1, ((b":status", b"200"), (b"content-type", b"application/grpc")), False),
    DataReceived(1, b"abc", False),
    DataReceived(1, b"def", False),
    HeadersReceived(1, ((b"grpc-status", b"0"),), True),
    PingAnswered(b"lcpalive"),
    GoingAway(1, 0),
]


@given(st.lists(st.integers(0, len(ANSWER)), max_size=30))
def test_events_do_not_depend_on_where_the_bytes_are_cut(cuts):
    made = Http2Connection()
    made.open(BLOCK, b"")
    made.take_output()
    events, before = [], 0
    for cut in [*sorted(cuts), len(ANSWER)]:
        events += made.receive(ANSWER[before:cut])
        before = cut
    assert events == EXPECTED
    sent = frames(made.take_output())
    assert (raw.SETTINGS, raw.ACK, 0, b"") in sent
    assert (raw.PING, raw.ACK, 0, b"12345678") in sent
    assert len(made._streams) == 0 and made.is_leaving and not made.can_open


BROKEN = {
    "no settings first": (b"", raw.frame(raw.PING, 0, 0, bytes(8)), ErrorCode.PROTOCOL_ERROR),
    "an HTTP/1 answer": (b"", b"HTTP/1.1 400 Bad Request\r\n", ErrorCode.FRAME_SIZE_ERROR),
    "a large frame": (None, raw.frame(raw.DATA, 0, 1, bytes(16_385)), ErrorCode.FRAME_SIZE_ERROR),
    "data on an idle stream": (None, raw.data(5, b"x"), ErrorCode.PROTOCOL_ERROR),
    "data on an even stream": (None, raw.data(2, b"x"), ErrorCode.PROTOCOL_ERROR),
    "data on stream 0": (None, raw.data(0, b"x"), ErrorCode.PROTOCOL_ERROR),
    "a reset of an idle stream": (None, raw.reset(5, 0), ErrorCode.PROTOCOL_ERROR),
    "a short reset": (None, raw.frame(raw.RST_STREAM, 0, 1, b"x"), ErrorCode.FRAME_SIZE_ERROR),
    "a push": (None, raw.frame(raw.PUSH_PROMISE, 4, 1, bytes(9)), ErrorCode.PROTOCOL_ERROR),
    "push enabled": (None, raw.settings(push=1), ErrorCode.PROTOCOL_ERROR),
    "a huge window": (None, raw.settings(window=2**31), ErrorCode.FLOW_CONTROL_ERROR),
    "a small frame size": (None, raw.settings(frame=100), ErrorCode.PROTOCOL_ERROR),
    "settings on a stream": (None, raw.frame(raw.SETTINGS, 0, 1), ErrorCode.PROTOCOL_ERROR),
    "odd settings": (None, raw.frame(raw.SETTINGS, 0, 0, b"123"), ErrorCode.FRAME_SIZE_ERROR),
    "a full ack": (None, raw.frame(raw.SETTINGS, 1, 0, bytes(6)), ErrorCode.FRAME_SIZE_ERROR),
    "a short ping": (None, raw.frame(raw.PING, 0, 0, b"123"), ErrorCode.FRAME_SIZE_ERROR),
    "a ping on a stream": (None, raw.frame(raw.PING, 0, 1, bytes(8)), ErrorCode.PROTOCOL_ERROR),
    "a short goaway": (None, raw.frame(raw.GOAWAY, 0, 0, b"123"), ErrorCode.FRAME_SIZE_ERROR),
    "an empty window update": (None, raw.window(0, 0), ErrorCode.PROTOCOL_ERROR),
    "a window above all": (None, raw.window(0, 2**31 - 1), ErrorCode.FLOW_CONTROL_ERROR),
    "a broken block": (None, raw.frame(raw.HEADERS, 4, 1, b"\xff\xff\xff\xff\xff\xff"), ErrorCode.COMPRESSION_ERROR),
    "an interrupted block": (None, raw.frame(raw.HEADERS, 0, 1, b"") + raw.data(1, b"x"), ErrorCode.PROTOCOL_ERROR),
    "a stray continuation": (None, raw.frame(raw.CONTINUATION, 4, 1, b""), ErrorCode.PROTOCOL_ERROR),
    "another stream's continuation": (None, raw.frame(raw.HEADERS, 0, 1) + raw.frame(raw.CONTINUATION, 4, 3), ErrorCode.PROTOCOL_ERROR),
    "padding above the frame": (None, raw.frame(raw.DATA, raw.PADDED, 1, b"\x05abc"), ErrorCode.PROTOCOL_ERROR),
    "headers without end": (None, raw.frame(raw.HEADERS, 0, 1) + raw.frame(raw.CONTINUATION, 0, 1, b"x") * 20, ErrorCode.ENHANCE_YOUR_CALM),
    "more than the window": (None, raw.head(1) + raw.frame(raw.DATA, 0, 1, bytes(16_000)) * 5, ErrorCode.FLOW_CONTROL_ERROR),
    "a flood of pings": (None, raw.frame(raw.PING, 0, 0, bytes(8)) * 2_000, ErrorCode.ENHANCE_YOUR_CALM),
    "a flood of settings": (None, raw.settings() * 2_000, ErrorCode.ENHANCE_YOUR_CALM),
}  # fmt: skip


def test_protocol_errors_end_the_connection_with_the_right_code():
    wrong = {}
    for name, (greeting, sent, code) in BROKEN.items():
        made = Http2Connection()
        made.receive(raw.settings() if greeting is None else greeting)
        made.open(BLOCK, b"")
        made.take_output()
        try:
            made.receive(sent)
        except Http2Error as error:
            (last,) = [f for f in frames(made.take_output()) if f[0] == raw.GOAWAY]
            if error.code != code or int.from_bytes(last[3][4:8], "big") != code:
                wrong[name] = error.code
        else:
            wrong[name] = "no error"
        assert made.receive(raw.settings()) == [] and not made.can_open
    assert wrong == {}


MALFORMED = {
    "data before the head": raw.data(1, b"x"),
    "no status": raw.head(1, ("content-type", "application/grpc")),
    "an odd status": raw.head(1, (":status", "2x0")),
    "a second head": raw.head(1) + raw.head(1),
    "trailers that do not end": raw.head(1) + raw.head(1, ("grpc-status", "0")),
    "an empty window update of a stream": raw.window(1, 0),
    "a stream's window above all": raw.window(1, 2**31 - 1),
}


def test_a_malformed_answer_ends_its_stream_and_no_other():
    wrong = []
    for name, sent in MALFORMED.items():
        made = opened(2)
        events = made.receive(sent + raw.head(3))
        ended = [e for e in events if isinstance(e, StreamReset)]
        heads = [e for e in events if isinstance(e, HeadersReceived) and e.stream_id == 3]
        resets = [f for f in frames(made.take_output()) if f[0] == raw.RST_STREAM and f[2] == 1]
        if [e.stream_id for e in ended] != [1] or len(heads) != 1 or len(resets) != 1:
            wrong.append(name)
    assert wrong == []


def test_interim_heads_are_skipped():
    made = opened()
    events = made.receive(raw.head(1, (":status", "103")) + raw.head(1))
    assert [type(event) for event in events] == [HeadersReceived]


def test_a_body_goes_out_as_the_windows_allow():
    made = Http2Connection()
    made.receive(raw.settings(window=10_000, frame=20_000))
    made.take_output()
    body = bytes(range(256)) * 400  # 102,400 bytes
    made.open(BLOCK, body)
    sent = b"".join(f[3] for f in frames(made.take_output()) if f[0] == raw.DATA)
    assert sent == body[:10_000]
    made.receive(raw.settings(window=30_000))
    sent += b"".join(f[3] for f in frames(made.take_output()) if f[0] == raw.DATA)
    assert sent == body[:30_000]
    made.receive(raw.window(1, 100_000))
    sent += b"".join(f[3] for f in frames(made.take_output()) if f[0] == raw.DATA)
    assert sent == body[:65_535]  # the connection's window
    made.receive(raw.window(0, 1_000_000))
    last = [f for f in frames(made.take_output()) if f[0] == raw.DATA]
    assert sent + b"".join(f[3] for f in last) == body
    assert [bool(f[1] & raw.END_STREAM) for f in last] == [False, True]


def test_a_window_that_shrinks_below_zero_has_to_grow_first():
    made = Http2Connection()
    made.receive(raw.settings())
    made.open(BLOCK, bytes(70_000))
    made.take_output()
    made.receive(raw.settings(window=0) + raw.window(0, 100_000) + raw.window(1, 65_535))
    assert [f for f in frames(made.take_output()) if f[0] == raw.DATA] == []
    made.receive(raw.window(1, 1))
    assert [len(f[3]) for f in frames(made.take_output()) if f[0] == raw.DATA] == [1]


def test_a_stream_opens_its_window_for_what_was_taken_only():
    made = opened()
    made.receive(raw.head(1) + raw.frame(raw.DATA, 0, 1, bytes(16_000)) * 4)
    assert [f for f in frames(made.take_output()) if f[0] == raw.WINDOW_UPDATE] == []
    made.acknowledge(1, 40_000)
    (update,) = frames(made.take_output())
    assert update == (raw.WINDOW_UPDATE, 0, 1, (40_000).to_bytes(4, "big"))


def test_the_connections_window_opens_by_itself_also_for_streams_that_stand_or_are_over():
    made = opened(40)
    made.receive(b"".join(raw.head(number) for number in range(1, 80, 2)))
    made.reset(1)
    made.take_output()
    for number in range(1, 80, 2):
        made.receive(raw.frame(raw.DATA, 0, number, bytes(16_000)) * 4)
    refills = [f for f in frames(made.take_output()) if f[:3] == (raw.WINDOW_UPDATE, 0, 0)]
    assert sum(int.from_bytes(f[3], "big") for f in refills) >= 2**20


def test_padding_opens_the_window_by_itself():
    made = opened()
    made.receive(raw.head(1))
    for _ in range(300):
        made.receive(raw.padded(raw.DATA, 0, 1, b"", 250))
        made.take_output()
    assert len(made._streams) == 1


def test_a_goaway_ends_what_was_not_processed_and_may_only_go_down():
    made = opened(3)
    assert made.receive(raw.goaway(2**31 - 1)) == [GoingAway(2**31 - 1, 0)]
    assert len(made._streams) == 3 and not made.can_open
    assert made.receive(raw.goaway(3, 2)) == [GoingAway(3, 2)]
    assert len(made._streams) == 2
    assert made.receive(raw.goaway(5)) == [GoingAway(3, 0)]
    # Later frames of the stream that was not processed are ignored; their headers are still decoded.
    assert made.receive(raw.head(5) + raw.data(5, b"x")) == []
    assert made.receive(raw.head(3)) != []


def test_the_limit_of_streams_is_kept():
    made = opened(2, streams=2)
    assert not made.can_open
    assert made.open(BLOCK, b"") is None
    made.receive(raw.reset(1, ErrorCode.CANCEL))
    assert made.can_open


def test_an_answer_before_the_end_of_the_request_stops_the_request():
    made = opened(1, bytes(100_000))
    made.receive(raw.head(1, *raw.HEAD, ("grpc-status", "8"), flags=raw.END_HEADERS | raw.END_STREAM))
    (stop,) = frames(made.take_output())
    assert stop[:3] == (raw.RST_STREAM, 0, 1)
    made.receive(raw.window(0, 100_000) + raw.window(1, 100_000))
    assert frames(made.take_output()) == []


valid = st.sampled_from(
    [raw.settings(), raw.head(1), raw.head(3), raw.data(1, b"abc"), raw.trailers(1),
     raw.frame(raw.PING, 0, 0, bytes(8)), raw.window(1, 5), raw.goaway(1), raw.reset(3, 8)]
)  # fmt: skip
noise = st.builds(raw.frame, st.integers(0, 12), st.integers(0, 255), st.integers(0, 9), st.binary(max_size=40))


@given(st.lists(valid | noise | st.binary(max_size=60), max_size=30))
def test_any_input_gives_events_or_one_error_and_takes_little_memory(parts):
    made = opened(2)
    try:
        for part in parts:
            for event in made.receive(part):
                assert isinstance(event, Event)
            made.take_output()
            assert len(made._tail) < 16_384 + 9
    except Http2Error:
        assert not made.can_open
    assert len(made._streams) <= 2


@given(st.lists(st.integers(1, WINDOW_BYTES // 3), min_size=1, max_size=20))
def test_a_reader_that_keeps_reading_is_never_blocked(sizes):
    """Both sides agree on the stream's window for any sizes."""
    made = opened()
    made.receive(raw.head(1))
    left = WINDOW_BYTES
    for size in sizes:
        assert left >= size, "the window closed before a reader that takes all"
        for at in range(0, size, 16_384):
            made.receive(raw.frame(raw.DATA, 0, 1, bytes(min(16_384, size - at))))
        left -= size
        made.acknowledge(1, size)
        for kind, _, stream_id, payload in frames(made.take_output()):
            if kind == raw.WINDOW_UPDATE and stream_id == 1:
                left += int.from_bytes(payload, "big")
