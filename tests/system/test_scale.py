"""One gateway process under many clients, and under clients that do not read."""

import asyncio
import contextlib
import json
import os
import re
import resource
import socket
import struct
import time

import pytest

from tests.support.gated_node import gated_node
from tests.support.gateway import gateway
from tests.support.journaled import on_node
from tests.support.raw_streams import Memory, chunked_body, open_stream, request_bytes

pytestmark = pytest.mark.slow

MIB = 2**20
FLOOD_BYTES = 100 * MIB
# A minute is documented; three seconds show the same in every run.
STOP_S = float(os.environ.get("SCALE_STOP_S", "3"))
# More than the 1,024 descriptors of select(). docs/benchmarks.md says what two thousand take.
STREAMS = int(os.environ.get("SCALE_STREAMS", "1100"))
VANISHING = 200


def test_a_reader_that_stops_does_not_grow_the_gateway_and_gets_all_of_it_later():
    env = {"LCP_GATEWAY_NODE_FAULTS": "true", "LCP_GATEWAY_TIMEOUT_EXECUTE_S": "300"}
    with gateway(env=env) as running:
        _read_all(running.port, "echo-1")
        memory = Memory(running.pid)
        with memory.watched(), _connected(running.port, "fault/stream-floods") as client:
            head = client.recv(65_536)
            assert head.startswith(b"HTTP/1.1 200")
            # Nothing more is streamed once the kernel's buffers and ours are full.
            assert _settled(running.port, "streamed_bytes_total", STOP_S) < FLOOD_BYTES / 2
            stopped_peak = memory.growth_mib
            raw = head + _rest(client)
        body = chunked_body(raw)
    print(f"stopped for {STOP_S:g} s: {stopped_peak:+.1f} MiB, whole stream: {memory.growth_mib:+.1f}")
    assert len(body) >= FLOOD_BYTES
    assert memory.growth_mib < 32


def test_a_reader_that_stops_and_leaves_frees_what_it_held():
    env = {"LCP_GATEWAY_NODE_FAULTS": "true"}
    with gateway(env=env) as running:
        _read_all(running.port, "echo-1")
        memory = Memory(running.pid)
        for _ in range(3):
            with _connected(running.port, "fault/stream-floods") as client:
                assert client.recv(1024).startswith(b"HTTP/1.1 200")
                time.sleep(0.5)
        _wait_until(lambda: _metric(running.port, "jobs_in_flight") == 0)
        _wait_until(lambda: len(running.events("cancel")) == 3)
        assert memory.now_mib < 32


@contextlib.contextmanager
def _held(folder, **settings):
    """Run a gateway on a node whose streams wait after their first token; return both, and the file that releases them."""
    with gated_node(folder) as (node, gate):
        # So many at once exceed the trust in a peer that has not delivered yet.
        trust = {"exposure_base_msat": 0, "exposure_unproven_msat": 0}
        env = on_node(node, **trust, **settings)
        with gateway(embedded=False, env=env) as running:
            yield running, node, gate


async def test_a_thousand_streams_at_once_are_all_complete_and_never_mixed_up(tmp_path):
    _allow_open_files(3 * STREAMS)
    settings = {"max_concurrent_requests": 2 * STREAMS, "log_level": "warn", "timeout_execute_s": 280}
    with _held(tmp_path, **settings) as (running, node, gate):
        memory = Memory(running.pid)
        began = time.monotonic()
        with memory.watched():
            streams = [asyncio.create_task(_told(running.port, n)) for n in range(STREAMS)]
            most_at_once = 0
            while most_at_once < STREAMS:
                most_at_once = await _metric_soon(running.port, "jobs_in_flight")
                done, _ = await asyncio.wait(streams, timeout=0.2)
                assert not done
            gate.touch()
            await asyncio.wait(streams)
        took_s = time.monotonic() - began
        print(
            f"{STREAMS} streams in {took_s:.1f} s, {most_at_once:.0f} at once, resident "
            f"{memory.before_mib:.0f} MiB before, {memory.peak_mib:.0f} MiB at most"
        )
        wrong = [n for n, stream in enumerate(streams) if stream.result()[0] != _story(n)]
        assert wrong == []
        assert len({stream.result()[1] for stream in streams}) == STREAMS
        assert len(node.events("settled")) == STREAMS
        assert memory.growth_mib < 200


async def test_clients_that_vanish_leave_nothing_behind(tmp_path):
    settings = {"log_level": "error", "join_grace_s": 0.2, "breaker_failures": 0, "cancel_timeout_s": 60}
    with _held(tmp_path, **settings) as (running, node, _):
        # The first round makes what stays: arenas, caches, label values.
        await _vanish(running, node, VANISHING)
        memory = Memory(running.pid)
        await _vanish(running, node, VANISHING)
        accepted = {event["job_id"] for event in node.events("accept")}
        cancelled = [event["job_id"] for event in node.events("cancel")]
        print(f"after {VANISHING} more clients that vanished: {memory.now_mib:+.1f} MiB")
        assert len(cancelled) == len(set(cancelled)) == 2 * VANISHING
        assert set(cancelled) == accepted
        assert memory.now_mib < 8


async def _vanish(running, node, count):
    """Let clients start a stream, and disconnect when it has begun: every other one with a reset."""
    before = len(node.events("cancel"))
    clients = await asyncio.gather(*(open_stream(running.port, "echo-1", _words(n)) for n in range(count)))
    assert await _metric_soon(running.port, "jobs_in_flight") == count
    for number, (first, _, writer) in enumerate(clients):
        assert first.startswith(b"HTTP/1.1 200")
        if number % 2:
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        writer.close()
    deadline = time.monotonic() + 60
    while await _metric_soon(running.port, "jobs_in_flight") or len(node.events("cancel")) < before + count:
        assert time.monotonic() < deadline, "jobs or cancellations are missing"
        await asyncio.sleep(0.1)


async def _told(port, number):
    """Read one stream to its clean end; return its text and its job's id."""
    first, reader, writer = await open_stream(port, "echo-1", _words(number))
    raw = first + await reader.read()
    writer.close()
    assert raw.startswith(b"HTTP/1.1 200"), raw[:2_000]
    body = chunked_body(raw)
    events = [block.removeprefix(b"data: ") for block in body.split(b"\n\n")]
    assert events[-2:] == [b"[DONE]", b""]
    deltas = [json.loads(event)["choices"][0]["delta"] for event in events[:-2]]
    job_id = re.search(rb"(?i)\r\nx-lcp-job-id: (\w+)", raw)[1]
    return "".join(delta.get("content", "") for delta in deltas), job_id


def _words(number):
    return f"story {number} " + " ".join(f"w{number}n{at}" for at in range(10)) + f" end {number}"


def _story(number):
    return f"This is the echo node. You said: {_words(number)}"


@contextlib.contextmanager
def _connected(port, model):
    with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
        client.sendall(request_bytes(model, "hello"))
        yield client


def _rest(client):
    return b"".join(iter(lambda: client.recv(1 << 20), b""))


def _read_all(port, model):
    with _connected(port, model) as client:
        assert chunked_body(_rest(client)).endswith(b"[DONE]\n\n")


def _metric(port, name):
    with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
        client.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        return _value(_rest(client), name)


async def _metric_soon(port, name):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    answer = await reader.read()
    writer.close()
    return _value(answer, name)


def _settled(port, name, for_s):
    """Wait until a metric has stayed the same for so long; return its value."""
    before = None
    while (found := _metric(port, name)) != before:
        before = found
        time.sleep(for_s)
    return found


def _value(metrics, name):
    return float(re.search(rb"(?m)^lcpgateway_" + name.encode() + rb" (\S+)", metrics)[1])


def _wait_until(happened, timeout_s=60.0):
    deadline = time.monotonic() + timeout_s
    while not happened():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.1)


def _allow_open_files(wanted):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        if hard != resource.RLIM_INFINITY and hard < wanted:
            pytest.skip(f"this machine allows {hard} open files, {wanted} are needed")
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
