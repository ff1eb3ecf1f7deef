"""The log in a terminal: one short line for each request."""

import io

import pytest

from lcp_gateway.telemetry.logs import MOST_CHARACTERS, brief_line, configure_logging, get_logger

JOB = {
    "status": 200,
    "model": "echo-1",
    "stream": True,
    "payment": "settled",
    "request_bytes": 84,
    "total_ms": 1_234,
    "state": "delivered",
    "peer_id": "02" + "ab" * 32,
    "job_id": "cd" * 32,
    "price_msat": 2_839,
    "terms_hash": "ef" * 32,
    "request_id": "req_" + "0123456789abcdef" * 2,
}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def lines():
    """Log to a terminal at a level; return the lines."""
    streams = []

    def at(level="info", stream=None, fmt="auto"):
        stream = stream or Terminal()
        streams.append(stream)
        configure_logging(level, fmt, stream=stream)
        return lambda: stream.getvalue().replace("\x1b[2m", "").replace("\x1b[0m", "").splitlines()

    return at


def test_a_request_is_one_short_line(lines):
    seen = lines()
    get_logger("gateway").info("routing decision", considered=["x" * 500], weights="0.15")
    get_logger("request").info("chat completion", **JOB)
    (line,) = seen()
    assert len(line) <= MOST_CHARACTERS
    assert line[8:] == (" 200 chat completion echo-1 streamed settled 2.839 sat in 1.2 s from 02ababab… req_01234567…")


def test_a_request_that_failed_says_why_and_in_colour(lines):
    seen = lines()
    failed = {**JOB, "status": 502, "payment": "unknown", "problem": "payment_unknown"}
    get_logger("request").warning("response", **failed)
    (line,) = seen()
    assert "\x1b[33m502 response" in line and "problem: payment_unknown" in line


def test_however_long_the_names_are_the_line_is_not(lines):
    seen = lines()
    get_logger("request").info("chat completion", **{**JOB, "model": "m" * 500})
    assert len(seen()[0]) == MOST_CHARACTERS


def test_a_warning_is_whole(lines):
    seen = lines()
    get_logger("gateway").warning("something is wrong " * 20, node="n")
    assert seen()[0].endswith("node=n")


def test_a_clients_text_moves_no_cursor(lines):
    seen = lines()
    get_logger("request").info("chat completion", **{**JOB, "model": "a\x1b[2Jb\nc"})
    (line,) = seen()
    assert "\x1b" not in line and r"a\x1b[2Jb\nc" in line


@pytest.mark.parametrize(
    ("level", "stream", "fmt"),
    [("debug", Terminal(), "auto"), ("info", io.StringIO(), "auto"), ("info", Terminal(), "json")],
)
def test_debug_and_json_show_every_field(lines, level, stream, fmt):
    seen = lines(level, stream, fmt)
    get_logger("gateway").info("routing decision", offered=5)
    get_logger("request").info("chat completion", **JOB)
    decision, request = seen()
    assert "offered" in decision
    assert JOB["job_id"] in request and JOB["peer_id"] in request


def test_nothing_paid_is_said_so():
    line = brief_line({**JOB, "event": "response", "logger": "request", "payment": "none"}, colors=False)
    assert "nothing paid" in line
