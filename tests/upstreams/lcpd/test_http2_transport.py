"""Both transports report the same outcome of a call for any bytes of the server."""

import asyncio
import contextlib
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lcp_gateway.config.addresses import parse_grpc_target
from lcp_gateway.upstreams.lcpd import http2_transport
from lcp_gateway.upstreams.lcpd.adapter import open_transport
from lcp_gateway.upstreams.lcpd.endpoint import Endpoint
from lcp_gateway.upstreams.lcpd.http2_transport import _Connection
from lcp_gateway.upstreams.lcpd.transport import LcpdAddress, RpcError, TransportKind
from tests.support import raw_http2 as raw
from tests.support.raw_http2 import CLOSE, raw_server

PATH = "/lcpd.v1.LCPDService/AcceptAndExecuteStream"
KINDS = [TransportKind.GRPCIO, TransportKind.DIRECT]


def transport_to(server, kind):
    return open_transport(LcpdAddress(server.address, transport=kind))


async def outcome(transport, timeout_s=30.0, request=b"request"):
    """Return the messages of a stream, then how it ended: ``OK`` or a status."""
    call = transport.stream(PATH, request, timeout_s, ())
    told = []
    try:
        while messages := await call.read():
            told += messages
    except RpcError as error:
        return [*told, error.status]
    finally:
        call.cancel()
    return [*told, "OK"]


async def outcomes(script, timeout_s=30.0, **how):
    """Return what each transport reports for one script."""
    found = []
    for kind in KINDS:
        async with raw_server(script, **how) as server:
            transport = transport_to(server, kind)
            try:
                found.append(await outcome(transport, timeout_s))
            finally:
                await transport.close()
    return found


def whole(stream_id):
    return [
        raw.head(stream_id),
        raw.data(stream_id, b"one", b"two"),
        raw.data(stream_id, b"", b"x" * 40_000),
        raw.trailers(stream_id),
    ]


SCRIPTS = {
    "a whole answer": (whole, [b"one", b"two", b"", b"x" * 40_000, "OK"]),
    "no message": (lambda s: [raw.head(s), raw.trailers(s)], ["OK"]),
    "trailers only": (lambda s: [raw.head(s, *raw.HEAD, ("grpc-status", "5"), flags=5)], ["NOT_FOUND"]),
    "an unknown status": (lambda s: [raw.head(s), raw.trailers(s, "99")], ["UNKNOWN"]),
    "a status that is no number": (lambda s: [raw.head(s), raw.trailers(s, "x")], ["UNKNOWN"]),
    "a message, then a failure": (
        lambda s: [raw.head(s), raw.data(s, b"one"), raw.trailers(s, "9", "no%20way")],
        [b"one", "FAILED_PRECONDITION"],
    ),
    "padded frames": (
        lambda s: [
            raw.head(s),
            raw.padded(raw.DATA, 0, s, raw.message(b"one"), 0),
            raw.padded(raw.DATA, 0, s, raw.message(b"two"), 200),
            raw.trailers(s),
        ],
        [b"one", b"two", "OK"],
    ),
    "a message a byte a frame": (
        lambda s: [raw.head(s), *(raw.frame(raw.DATA, 0, s, bytes((b,))) for b in raw.message(b"hello")), raw.trailers(s)],
        [b"hello", "OK"],
    ),
    "headers in pieces": (
        lambda s: [
            raw.frame(raw.HEADERS, 0, s, raw.block(*raw.HEAD)[:2]),
            raw.frame(raw.CONTINUATION, 4, s, raw.block(*raw.HEAD)[2:]),
            raw.trailers(s),
        ],
        ["OK"],
    ),
    "503 from a proxy": (lambda s: [raw.head(s, (":status", "503"), flags=5)], ["UNAVAILABLE"]),
    "a page of a web server": (
        lambda s: [raw.head(s, (":status", "200"), ("content-type", "text/html")), raw.frame(raw.DATA, 1, s, b"<html>")],
        ["UNKNOWN"],
    ),
    "404 from a web server": (lambda s: [raw.head(s, (":status", "404"), flags=5)], ["UNIMPLEMENTED"]),
    "goaway above, then the answer": (
        lambda s: [raw.head(s), raw.goaway(2**31 - 1), raw.data(s, b"one"), raw.goaway(s), raw.trailers(s)],
        [b"one", "OK"],
    ),
    "closed before anything": (lambda _: [CLOSE], ["UNAVAILABLE"]),
    "closed after the head": (lambda s: [raw.head(s), CLOSE], ["UNAVAILABLE"]),
    "closed after a message": (lambda s: [raw.head(s), raw.data(s, b"one"), CLOSE], [b"one", "UNAVAILABLE"]),
    "a compressed message": (
        lambda s: [raw.head(s), raw.frame(raw.DATA, 0, s, b"\1\0\0\0\1x"), raw.trailers(s)],
        ["INTERNAL"],
    ),
    "a message without end": (
        lambda s: [raw.head(s), raw.frame(raw.DATA, 0, s, b"\0\0\0\0\5abc"), raw.trailers(s)],
        ["INTERNAL"],
    ),
    "a message above the limit": (
        lambda s: [raw.head(s), raw.frame(raw.DATA, 0, s, b"\0\x02\x20\0\0abc")],
        ["RESOURCE_EXHAUSTED"],
    ),
}  # fmt: skip


# Where grpcio reports something else, and why the direct transport does not follow it.
GRPCIO_DIFFERS = {
    "padded frames": "INTERNAL",  # grpcio does not support padding
    "a message without end": "OK",  # grpcio accepts a response that is cut inside a message as complete
    "a status that is no number": "INTERNAL",  # the specification says UNKNOWN
}


async def test_every_kind_of_answer_is_reported_alike():
    wrong = {}
    for name, (script, expected) in SCRIPTS.items():
        by_grpcio, by_direct = await outcomes(script)
        # When the connection breaks, grpcio may drop messages that it had received.
        kept = by_grpcio[:-1] == expected[: len(by_grpcio) - 1]
        ended = by_grpcio[-1] == GRPCIO_DIFFERS.get(name, expected[-1])
        if by_direct != expected or not kept or not ended:
            wrong[name] = (by_grpcio, by_direct)
    assert wrong == {}


async def test_every_reset_is_reported_alike():
    """A stream reset with REFUSED_STREAM was not processed; grpcio does not report that."""
    told = {}
    for code in (*range(14), 99):
        told[code] = await outcomes(lambda s, code=code: [raw.head(s), raw.reset(s, code)])
    assert {code: found for code, found in told.items() if found[0] != found[1]} == {}


async def test_an_answer_that_is_cut_at_any_byte_is_never_whole():
    """The direct transport at each byte; grpcio, which is slower, at each seventeenth."""
    sent = b"".join([raw.head(1), raw.data(1, b"one"), raw.data(1, b"two"), raw.trailers(1)])
    cut = 0
    async with raw_server(lambda _: [sent[:cut], CLOSE]) as server:
        for cut in range(len(sent) + 1):
            told = []
            for kind in KINDS if cut % 17 == 0 else KINDS[1:]:
                transport = transport_to(server, kind)
                told.append(await outcome(transport))
                await transport.close()
            expected = "OK" if cut == len(sent) else "UNAVAILABLE"
            assert {found[-1] for found in told} == {expected}, cut
            # grpcio may drop messages received before the break.
            assert all(found[:-1] == told[-1][: len(found) - 1] for found in told), cut


async def test_only_a_call_that_was_not_processed_is_reported_as_such():
    """A GOAWAY below the stream, or REFUSED_STREAM: HTTP/2's two proofs that a call was not processed."""
    told = {}
    scripts = {
        "goaway below": lambda s: [raw.goaway(s - 2 if s > 1 else 0)],
        "refused": lambda s: [raw.reset(s, 7)],
        "refused after its head": lambda s: [raw.head(s), raw.reset(s, 7)],
        "goaway below after its head": lambda s: [raw.head(s), raw.goaway(0)],
        "goaway at": lambda s: [raw.goaway(s), CLOSE],
        "cancelled": lambda s: [raw.reset(s, 8)],
        "closed": lambda _: [CLOSE],
        "broken": lambda _: [raw.frame(raw.DATA, 0, 0, b"x")],
    }
    for name, script in scripts.items():
        async with raw_server(script) as server:
            transport = transport_to(server, TransportKind.DIRECT)
            with pytest.raises(RpcError) as caught:
                await transport.unary(PATH, b"", 30, ())
            told[name] = caught.value.not_processed
            await transport.close()
    assert [name for name, proof in told.items() if proof] == ["goaway below", "refused"]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_call_without_an_answer_ends_with_its_time(kind):
    async with raw_server(lambda s: [raw.head(s)]) as server:
        transport = transport_to(server, kind)
        assert await outcome(transport, 0.2) == ["DEADLINE_EXCEEDED"]
        await transport.close()


async def test_a_large_request_waits_for_the_servers_windows():
    async with raw_server(whole, greeting=raw.settings(window=1_000)) as server:
        transport = transport_to(server, TransportKind.DIRECT)
        assert (await outcome(transport))[-1] == "OK"  # the server's settings have arrived
        call = transport.stream(PATH, bytes(500_000), 20, ())
        async with asyncio.timeout(60):
            while not (sent := [f for f in server.frames if f[0] == raw.DATA and f[2] == 3]):
                await asyncio.sleep(0.01)
        assert [len(f[3]) for f in sent] == [1_000]
        call.cancel()
        await transport.close()


async def test_a_reader_that_stops_stops_the_server_and_no_other_call():
    """The window of the unread stream is closed; a second call over the same connection goes on."""
    async with raw_server(
        lambda s: [raw.head(s), *([raw.data(s, bytes(16_000))] * 4)] if s == 1 else whole(s)
    ) as server:
        transport = transport_to(server, TransportKind.DIRECT)
        standing = transport.stream(PATH, b"", 60, ())
        assert await standing.read()
        await asyncio.sleep(0.05)
        assert (await outcome(transport))[-1] == "OK"
        assert server.connections == 1
        standing.cancel()
        await transport.close()


async def test_available_bytes_come_as_one_block():
    count = 200
    async with raw_server(
        lambda s: [raw.head(s) + b"".join(raw.data(s, b"t%d" % n) for n in range(count)) + raw.trailers(s)]
    ) as server:
        transport = transport_to(server, TransportKind.DIRECT)
        call = transport.stream(PATH, b"", 30, ())
        blocks = []
        while messages := await call.read():
            blocks.append(messages)
        assert sum(map(len, blocks)) == count
        assert len(blocks) < count / 10
        await transport.close()


async def test_calls_above_the_servers_limit_wait_for_their_turn():
    async with raw_server(whole, greeting=raw.settings(streams=2)) as server:
        transport = transport_to(server, TransportKind.DIRECT)
        told = await asyncio.gather(*(outcome(transport) for _ in range(20)))
        assert {found[-1] for found in told} == {"OK"}
        assert server.connections == 1
        await transport.close()


async def test_a_connection_that_is_leaving_finishes_its_calls_while_new_ones_take_another():
    gates = {}

    def script(stream_id):
        if not gates:
            gates[stream_id] = True
            return [raw.head(stream_id), raw.goaway(stream_id), raw.data(stream_id, b"one")]
        return whole(stream_id)

    async with raw_server(script) as server:
        transport = transport_to(server, TransportKind.DIRECT)
        first = transport.stream(PATH, b"", 30, ())
        assert await first.read() == [b"one"]
        assert (await outcome(transport))[-1] == "OK"
        assert server.connections == 2
        first.cancel()
        await transport.close()


async def test_a_server_that_comes_back_is_found_and_one_that_is_away_costs_no_time():
    async with raw_server(lambda _: [CLOSE]) as server:
        port = server.port
        transport = transport_to(server, TransportKind.DIRECT)
        assert await outcome(transport) == ["UNAVAILABLE"]
    for _ in range(5):
        # Nothing listens: each call fails immediately, none waits for a back-off.
        assert await outcome(transport, 60) == ["UNAVAILABLE"]
    back = await asyncio.start_server(raw.RawServer(whole), "127.0.0.1", port)
    try:
        deadline = time.monotonic() + 30
        while (told := await outcome(transport))[-1] != "OK":
            assert time.monotonic() < deadline, told
            await asyncio.sleep(0.05)
    finally:
        back.close()
        await transport.close()


async def test_a_silent_connection_is_pinged(monkeypatch):
    monkeypatch.setattr(http2_transport, "_KEEPALIVE_S", 0.05)
    monkeypatch.setattr(http2_transport, "_KEEPALIVE_TIMEOUT_S", 60.0)
    async with raw_server(lambda s: [raw.head(s)]) as server:
        transport = transport_to(server, TransportKind.DIRECT)
        call = transport.stream(PATH, b"", 60, ())
        reading = asyncio.ensure_future(call.read())
        async with asyncio.timeout(60):
            while not [f for f in server.frames if f[0] == raw.PING]:
                await asyncio.sleep(0.01)
            while transport._connection._is_quiet:
                await asyncio.sleep(0.01)
            # As after the time for its answer.
            transport._connection._keepalive.cancel()
            transport._connection._give_up()
            while len([f for f in server.frames if f[0] == raw.PING]) < 2:
                await asyncio.sleep(0.01)
        assert not reading.done(), "it answered"
        call.cancel()
        with contextlib.suppress(RpcError):
            await reading
        await transport.close()


async def test_a_call_that_is_left_is_reset():
    async with raw_server(lambda s: [raw.head(s)]) as server:
        transport = transport_to(server, TransportKind.DIRECT)
        task = asyncio.create_task(transport.unary(PATH, b"", 60, ()))
        async with asyncio.timeout(60):
            while not server.requests:
                await asyncio.sleep(0.01)
            task.cancel()
            while not [f for f in server.frames if f[0] == raw.RST_STREAM]:
                await asyncio.sleep(0.01)
        with pytest.raises(asyncio.CancelledError):
            await task
        await transport.close()


@settings(max_examples=10)
@given(st.lists(st.binary(max_size=3_000), max_size=8), st.integers(1, 16_384), st.sampled_from(["0", "3", "14"]))
async def test_any_messages_in_any_frames_are_told_alike(messages, size, status):
    body = b"".join(map(raw.message, messages))

    def script(stream_id):
        pieces = [raw.frame(raw.DATA, 0, stream_id, body[at : at + size]) for at in range(0, len(body), size)]
        return [raw.head(stream_id), *pieces, raw.trailers(stream_id, status)]

    # Less than a window: the scripted server ignores them.
    first, second = await outcomes(script)
    assert first == second


TARGETS = {
    "127.0.0.1:50051": ("127.0.0.1", 50051, "", True),
    "localhost:1": ("localhost", 1, "", True),
    "[::1]:50051": ("::1", 50051, "", True),
    "ipv4:127.0.0.1:50051": ("127.0.0.1", 50051, "", True),
    "ipv6:[::1]:50051": ("::1", 50051, "", True),
    "dns:///lcpd.lan:50051": ("lcpd.lan", 50051, "", False),
    "dns:lcpd.lan:50051": ("lcpd.lan", 50051, "", False),
    "dns:50051": ("dns", 50051, "", False),
    "10.0.0.7:50051": ("10.0.0.7", 50051, "", False),
    "unix:/run/lcpd.sock": ("", 0, "/run/lcpd.sock", True),
    "unix:///run/lcpd.sock": ("", 0, "/run/lcpd.sock", True),
}


def test_every_target_that_settings_accept_is_understood():
    """``ipv4:`` was taken for a part of the host's name, and never found."""
    wrong = {}
    for target, expected in TARGETS.items():
        assert parse_grpc_target(target) == target
        found = Endpoint.of(LcpdAddress(target))
        if (found.host, found.port, found.path, found.is_local) != expected:
            wrong[target] = found
    assert wrong == {}


async def test_a_daemon_on_this_machine_is_reached_directly_and_any_other_by_grpcio():
    found = {target: open_transport(LcpdAddress(target)).name for target in TARGETS}
    assert found == {target: "direct" if local else "grpcio" for target, (_, _, _, local) in TARGETS.items()}


async def test_metadata_longer_than_a_frame_arrives():
    """It ended the task that starts a call, and the call hung until its time was over."""
    value = "m" * 40_000
    async with raw_server(whole) as server:
        transport = transport_to(server, TransportKind.DIRECT)
        for _ in range(2):  # with and without a connection
            call = transport.stream(PATH, b"", 30, (("macaroon", value),))
            while await call.read():
                pass
        await transport.close()
    blocks = [payload for kind, _, stream_id, payload in server.frames if kind in {raw.HEADERS, raw.CONTINUATION}]
    assert b"".join(blocks).count(value.encode()) == 2


async def test_a_call_that_cannot_be_started_has_an_end():
    async with raw_server(whole) as server:
        transport = transport_to(server, TransportKind.DIRECT)
        call = transport.stream(PATH, b"", 30, (("x", "not ASCII: \u20ac"),))
        with pytest.raises(RpcError):
            await call.read()
        await transport.close()


class Unread:
    """A socket that takes nothing: what is written stays in its buffer."""

    def __init__(self):
        self.written = 0
        self.ended = False

    def write(self, data):
        self.written += len(data)

    def is_closing(self):
        return self.ended

    def abort(self):
        self.ended = True

    close = abort


async def test_a_daemon_that_asks_without_end_and_reads_nothing_is_left():
    """Its PINGs were answered into a buffer without a bound."""
    connection, socket = _Connection(asyncio.get_running_loop()), Unread()
    connection.connection_made(socket)
    connection.data_received(raw.settings())
    connection.pause_writing()
    before = socket.written
    for _ in range(2_000):
        connection.data_received(raw.frame(raw.PING, 0, 0, bytes(8)))
    assert socket.written == before
    assert socket.ended and connection.is_closed
