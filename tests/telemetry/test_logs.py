"""Log lines have a maximum length, contain no secret, and never interrupt the code that logs."""

import asyncio
import io
import json
import logging
import subprocess
import sys

import pytest
import structlog
from structlog.contextvars import bound_contextvars

from lcp_gateway.telemetry import log_redaction
from lcp_gateway.telemetry.logs import configure_logging, get_logger, log_always, set_log_level
from tests.support.operations import lines_executed

SECRET = "the quick brown fox"


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def stream():
    return io.StringIO()


@pytest.fixture
def lines(stream):
    configure_logging("info", "json", stream=stream)
    return lambda: [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_is_one_json_object_with_time_level_and_origin(lines):
    get_logger("lcp_gateway.http").info("request", model="echo-1", price_msat=57_372, stream=True)
    (line,) = lines()
    assert list(line)[:3] == ["timestamp", "level", "event"]
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "request",
        "level": "info",
        "logger": "lcp_gateway.http",
        "model": "echo-1",
        "price_msat": 57_372,
        "stream": True,
    }


def test_a_logger_may_be_made_before_logging_is_set_up(stream):
    log = get_logger("early")
    configure_logging("info", "json", stream=stream)
    log.info("hello")
    assert json.loads(stream.getvalue())["logger"] == "early"


@pytest.mark.parametrize(
    ("level", "shown"),
    [
        ("debug", ["debug", "info", "warning", "error"]),
        ("info", ["info", "warning", "error"]),
        ("warn", ["warning", "error"]),
        ("warning", ["warning", "error"]),
        ("ERROR", ["error"]),
    ],
)
def test_lines_below_the_level_are_left_out(stream, level, shown):
    configure_logging(level, "json", stream=stream)
    log = get_logger("x")
    for name in ("debug", "info", "warning", "error"):
        getattr(log, name)("something")
    assert [json.loads(line)["level"] for line in stream.getvalue().splitlines()] == shown


@pytest.mark.parametrize(
    ("fmt", "make_stream", "is_json"),
    [("auto", io.StringIO, True), ("auto", Terminal, False), ("json", Terminal, True), ("console", io.StringIO, False)],
)
def test_auto_is_the_console_on_a_terminal_and_json_elsewhere(fmt, make_stream, is_json):
    stream = make_stream()
    configure_logging("info", fmt, stream=stream)
    get_logger("x").info("hello", a=1)
    assert stream.getvalue().startswith("{") == is_json
    assert "hello" in stream.getvalue()


def test_colours_are_for_terminals_only():
    plain, terminal = io.StringIO(), Terminal()
    for stream in (plain, terminal):
        structlog.reset_defaults()
        configure_logging("info", "console", stream=stream)
        get_logger("x").info("hello")
    assert "\x1b[" not in plain.getvalue()
    assert "\x1b[" in terminal.getvalue()


@pytest.mark.parametrize(("level", "fmt"), [("loud", "json"), ("info", "xml")])
def test_an_unknown_level_or_format_is_refused(level, fmt):
    with pytest.raises(ValueError, match=r"unknown log"):
        configure_logging(level, fmt)


# -- request ids --------------------------------------------------------------------------------


async def test_a_request_id_is_on_every_line_of_its_request_and_on_no_other(lines):
    log = get_logger("x")

    async def serve(request_id):
        with bound_contextvars(request_id=request_id):
            log.info("begin", of=request_id)
            await asyncio.sleep(0)
            await asyncio.create_task(later(request_id))

    async def later(request_id):
        log.info("end", of=request_id)

    await asyncio.gather(*(serve(f"req-{number}") for number in range(20)))
    log.info("outside")
    *inside, outside = lines()
    assert len(inside) == 40
    assert all(line["request_id"] == line["of"] for line in inside)
    assert "request_id" not in outside


# -- secrets ---------------------------------------------------------------------


SECRET_FIELDS = [
        "prompt", "messages", "input", "content", "authorization", "Authorization", "api_key",
        "API_KEY", "payment_request", "preimage", "macaroon", "system_prompt", "response_body",
        "request_json", "lcpd_macaroon", "tools", "output", "password", "node_backend_api_key",
]  # fmt: skip


@pytest.mark.parametrize("fmt", ["json", "console"])
def test_fields_that_hold_words_of_clients_or_secrets_are_dropped(stream, fmt):
    configure_logging("debug", fmt, stream=stream)
    for name in SECRET_FIELDS:
        get_logger("x").info("request", **{name: f"{SECRET} {name}"}, model=f"echo {name}")
    lines = stream.getvalue()
    assert [name for name in SECRET_FIELDS if f"{SECRET} {name}" in lines] == []
    assert [name for name in SECRET_FIELDS if f"echo {name}" not in lines] == []


def test_forbidden_fields_of_the_context_are_dropped_too(lines, stream):
    with structlog.contextvars.bound_contextvars(prompt=SECRET):
        get_logger("x").info("request")
    assert SECRET not in stream.getvalue()


def test_fields_that_only_sound_alike_stay(lines):
    kept = {
        "tokens": 5,
        "approx_tokens": 6,
        "bytes_in": 7,
        "payment": "settled",
        "payment_hash": "ab",
        "terms_hash": "cd",
        "job_id": "ef",
        "peer_id": "02aa",
        "content_type": "application/json",
    }
    get_logger("x").info("request", **kept)
    (line,) = lines()
    assert {name: line.get(name) for name in kept} == kept


def test_nested_values_and_bytes_are_named_and_not_shown(lines, stream):
    get_logger("x").info("odd", nested={"prompt": SECRET}, raw=SECRET.encode(), thing=object())
    (line,) = lines()
    assert SECRET not in stream.getvalue()
    assert line["nested"] == "<dict>"
    assert line["raw"] == f"<{len(SECRET)} bytes>"
    assert line["thing"] == "<object>"


def test_an_error_is_told_by_type_and_place_without_its_message_or_locals(lines, stream):
    def fail(prompt):
        raise ValueError(f"cannot parse {prompt}")

    try:
        try:
            fail(SECRET)
        except ValueError as error:
            raise RuntimeError(SECRET) from error
    except RuntimeError:
        get_logger("x").exception("it broke")
    (line,) = lines()
    assert SECRET not in stream.getvalue()
    assert line["error_type"] == "RuntimeError"
    assert line["error_cause"] == "ValueError"
    assert "telemetry/test_logs.py:" in line["error_at"]
    assert line["level"] == "error"


@pytest.mark.parametrize("as_tuple", [False, True])
def test_an_error_may_be_handed_over_in_each_of_the_usual_ways(lines, as_tuple):
    try:
        {}["x"]
    except KeyError as error:
        found = error
    given = (type(found), found, found.__traceback__) if as_tuple else found
    get_logger("x").warning("it broke", exc_info=given)
    assert lines()[0]["error_type"] == "KeyError"


def test_exc_info_without_an_error_adds_nothing(lines):
    get_logger("x").warning("fine", exc_info=True)
    assert "error_type" not in lines()[0]


def test_a_line_is_bounded_whatever_it_is_given(lines, stream):
    def deep(level):
        if level == 0:
            raise ValueError
        deep(level - 1)

    try:
        deep(200)
    except ValueError:
        get_logger("x").error(
            "e" * 10**6,
            exc_info=True,
            many=list(range(10**5)),
            texts=["t" * 10**5] * 100,
            **{f"field{number}": "v" * 10**5 for number in range(100)},
        )
    assert len(stream.getvalue()) < (log_redaction.MAX_FIELDS + 8) * (log_redaction.MAX_TEXT + 64)
    (line,) = lines()
    assert "more)" in line["event"]
    assert line["error_type"] == "ValueError"
    assert line["level"] == "error" and line["timestamp"]


@pytest.mark.parametrize("fmt", ["json", "console"])
def test_a_client_cannot_forge_a_line_or_move_the_cursor(stream, fmt):
    configure_logging("info", fmt, stream=stream)
    get_logger("x").info("request", model='a"\n{"event":"forged"}\x1b[2J\r\u2028')
    text = stream.getvalue()
    assert text.count("\n") == 1
    assert "\x1b" not in text and "\r" not in text


# -- failures of logging that must not stop a purchase --------------------------------------------------------------


def test_values_that_json_cannot_hold_do_not_lose_the_line(lines):
    get_logger("x").info(
        "odd", model="a\ud800b", big=2**70, huge=10**9999, price_msat=5, ratio=float("nan"), ok=True, none=None
    )
    (line,) = lines()
    assert line["model"] == "a\\ud800b"
    assert line["big"] == str(2**70)
    assert line["huge"].startswith("<integer of ")
    assert (line["price_msat"], line["ok"], line["none"]) == (5, True, None)


@pytest.mark.parametrize("error", [BrokenPipeError(), OSError(28, "No space left"), ValueError()])
def test_a_stream_that_cannot_be_written_to_is_ignored(error):
    class Broken(io.StringIO):
        failures = 0

        def write(self, text):
            if self.failures == 0:
                self.failures += 1
                raise error
            return super().write(text)

    stream = Broken()
    configure_logging("info", "json", stream=stream)
    get_logger("x").info("lost")
    get_logger("x").info("hello")

    assert stream.failures == 1
    assert [json.loads(line)["event"] for line in stream.getvalue().splitlines()] == ["hello"]


def test_a_closed_pipe_at_standard_error_does_not_stop_the_process():
    program = (
        "import os\n"
        "from lcp_gateway.telemetry.logs import configure_logging, get_logger\n"
        "os.close(2); read, write = os.pipe(); os.close(read); assert write == 2 or os.dup2(write, 2)\n"
        "configure_logging('info', 'auto')\n"
        "for _ in range(3): get_logger('x').info('hello')\n"
        "print('still here')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, timeout=120, check=False)
    assert done.stdout == b"still here\n"


# -- the standard library -----------------------------------------------------------------------


def test_warnings_of_other_libraries_come_out_the_same_way_without_their_arguments(lines, stream):
    logging.getLogger("aiohttp.server").warning("bad request: %s", SECRET)
    logging.getLogger("aiohttp.server").info("not shown")
    (line,) = lines()
    assert SECRET not in stream.getvalue()
    assert line["logger"] == "aiohttp.server"
    assert line["level"] == "warning"
    assert line["event"] == "bad request: %s"


def test_errors_of_other_libraries_are_told_by_type(lines, stream):
    try:
        int(SECRET)
    except ValueError:
        logging.getLogger("asyncio").exception("Task exception was never retrieved\nfuture: %s", SECRET)
    (line,) = lines()
    assert SECRET not in stream.getvalue()
    assert line["event"] == "Task exception was never retrieved"
    assert line["error_type"] == "ValueError"


def test_a_level_of_a_library_s_own_making_is_no_error(lines):
    logging.getLogger("odd").log(35, "hello %d%%")
    assert lines()[0]["event"] == "hello %d%%"
    assert lines()[0]["level"] == "warning"


def test_setting_up_twice_does_not_double_the_lines_of_other_libraries(stream):
    for _ in range(2):
        structlog.reset_defaults()
        configure_logging("info", "json", stream=stream)
    logging.getLogger("aiohttp").warning("once")
    assert stream.getvalue().count("once") == 1


def test_a_line_is_cheap(tmp_path):
    """``python -m bench.growth`` measures its time."""
    with (tmp_path / "log").open("w") as file:
        configure_logging("info", "json", stream=file)
        log = get_logger("lcp_gateway.http.chat")

        def one():
            log.info(
                "request", endpoint="/v1/chat/completions", model="echo-1", peer_id="a" * 66,
                job_id="b" * 64, price_msat=57_372, terms_hash="c" * 64, status=200, payment="settled",
                stream=True, bytes_in=1200, bytes_out=4000, quote_ms=8.1, execute_ms=75.3, total_ms=84.1,
            )  # fmt: skip

        with bound_contextvars(request_id="req-1"):
            one()
            assert lines_executed(one) < 250


def test_the_level_changes_for_loggers_that_were_used_before(lines):
    log, other = get_logger("used"), get_logger("not used yet")
    log.debug("no")
    log.info("yes")
    set_log_level("debug")
    log.debug("yes")
    other.debug("yes")
    set_log_level("error")
    for write in (log.debug, log.info, log.warning, log.warn, log.msg, other.info):
        write("no")
    log.error("yes")
    bound = log.bind(a=1)
    set_log_level("warn")
    bound.info("no")
    bound.warning("yes")
    assert [line["event"] for line in lines()] == ["yes"] * 5


def test_messages_for_the_operator_are_logged_at_any_level(lines):
    set_log_level("error")
    log = get_logger("x")
    log.info("no")
    log_always(log, "yes", names=["a"])
    (line,) = lines()
    assert (line["event"], line["level"], line["names"], line["logger"]) == ("yes", "info", ["a"], "x")


def test_the_level_of_other_libraries_changes_too(lines):
    foreign = logging.getLogger("another.library")
    foreign.warning("yes")
    set_log_level("error")
    foreign.warning("no")
    foreign.error("yes")
    assert [line["event"] for line in lines()] == ["yes", "yes"]


def test_an_unknown_level_changes_nothing(lines):
    with pytest.raises(ValueError, match="unknown log level"):
        set_log_level("loud")
    get_logger("x").info("still")
    assert len(lines()) == 1


def test_a_line_below_the_level_costs_as_little_after_a_change(lines):
    log = get_logger("x")
    set_log_level("debug")
    set_log_level("info")
    log.debug("no")
    assert type(log.bind()).debug.__name__ == "_nop"
