"""Logs: one line for each event, in JSON for machines, in colour or in brief for a terminal, never slow and never fatal."""

import logging
import re
import sys
import time
from collections.abc import Callable, Mapping, MutableMapping
from functools import lru_cache
from typing import Any, BinaryIO, Literal, TextIO, cast

import orjson
import structlog
from structlog import DropEvent
from structlog.contextvars import merge_contextvars
from structlog.typing import FilteringBoundLogger, Processor

from lcp_gateway.constants import MSAT_PER_SAT
from lcp_gateway.telemetry.log_redaction import cut, describe_error, redact

MOST_CHARACTERS = 160
"""The longest line of a request, and of level info."""

_REQUESTS = "request"
# Details of decisions are for machines, and for ``verbose``.
_NOT_SHOWN = frozenset({"routing decision", "quotes compared"})
_LONG_ID = re.compile(r"\b((?:req_|key_|node:)?[0-9a-f]{8})[0-9a-f]{12,}\b")
_COMMON_FIELDS = frozenset({"timestamp", "level", "event", "logger", "request_id", "exception"})
_COLOURS = {"warning": "\x1b[33m", "error": "\x1b[31m", "critical": "\x1b[31m"}
_DIM, _RESET = "\x1b[2m", "\x1b[0m"
_SECOND_MS = 1_000
_Render = Callable[[MutableMapping[str, Any]], bytes]
_LEVEL_OF_METHOD = {"warn": "warning", "exception": "error"}


def brief_line(event: MutableMapping[str, Any], *, colors: bool) -> str:
    """Write an event as one short line.

    Raises:
        DropEvent: it is not for a terminal.
    """
    if event["event"] in _NOT_SHOWN:
        raise DropEvent
    is_request = event.get("logger") == _REQUESTS and "payment" in event
    words = _request_words(event) if is_request else _event_words(event)
    at = str(event.get("timestamp", ""))[11:19]
    line = _LONG_ID.sub(r"\1…", " ".join(word for word in words if word))
    if is_request or event.get("level") == "info":
        line = _cut_line(line, MOST_CHARACTERS - len(at) - 1)
    colour = _COLOURS.get(str(event.get("level")))
    if colors:
        at = f"{_DIM}{at}{_RESET}"
        line = f"{colour}{line}{_RESET}" if colour else line
    shown = f"{at} {line}"
    trace = event.get("exception")
    return f"{shown}\n{trace}" if trace else shown


def _request_words(event: Mapping[str, Any]) -> list[str]:
    model, bought = str(event.get("model") or "-"), event.get("bought_model")
    provider = str(event.get("peer_id") or "")
    return [
        str(event.get("status")),
        str(event["event"]),
        f"{model} → {bought}" if bought else model,
        "streamed" if event.get("stream") else "",
        _payment_text(event),
        f"in {_duration_text(event.get('total_ms'))}",
        f"from {provider}" if provider else "",
        "(joined)" if event.get("joined") else "",
        f"problem: {event['problem']}" if event.get("problem") else "",
        str(event.get("request_id") or ""),
    ]


def _payment_text(event: Mapping[str, Any]) -> str:
    price = event.get("price_msat")
    if event["payment"] == "none" or not isinstance(price, int):
        return "nothing paid" if event["payment"] == "none" else str(event["payment"])
    return f"{event['payment']} {price / MSAT_PER_SAT:,.3f} sat"


def _duration_text(ms: object) -> str:
    if not isinstance(ms, int | float):
        return "?"
    return f"{ms / _SECOND_MS:.1f} s" if ms >= _SECOND_MS else f"{ms} ms"


def _event_words(event: Mapping[str, Any]) -> list[str]:
    level = str(event.get("level"))
    fields = (f"{name}={value}" for name, value in event.items() if name not in _COMMON_FIELDS)
    return [f"{level}:" if level != "info" else "", str(event["event"]), *fields]


def _cut_line(line: str, most: int) -> str:
    return line if len(line) <= most else f"{line[: most - 1]}…"


LogFormat = Literal["auto", "console", "json"]

_LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}

# The largest integer of orjson, and of nearly every reader of JSON.
_MAX_JSON_INTEGER_BITS = 63
# Longer numbers are replaced by their size: Python itself refuses to write out the longest.
_MAX_TEXT_INTEGER_BITS = 1024


def configure_logging(level: str, fmt: LogFormat, *, stream: TextIO | None = None) -> None:
    """Set up the logs of this process; to be called once, at its start.

    ``stream`` is standard error by default. ``auto`` is the console when the stream is a terminal, else JSON. On a
    terminal the lines are short, unless the level is debug. Records of the standard library's ``logging`` come out the
    same way, from warnings upward.

    Raises:
        ValueError: the level or the format has an unknown name.
    """
    threshold = _threshold(level)
    if fmt not in {"auto", "console", "json"}:
        raise ValueError(f"unknown log format {fmt!r}: auto, console, json")
    target = stream if stream is not None else sys.stderr
    is_terminal = target.isatty()
    as_console = fmt == "console" or (fmt == "auto" and is_terminal)
    if not as_console:
        render: _Render = _render_json
    elif is_terminal and threshold > logging.DEBUG:
        render = _printable(lambda event: brief_line(event, colors=True))
    else:
        render = _console(colors=is_terminal)
    file = _binary_of(target)
    structlog.configure(
        processors=[_processor(render)],
        wrapper_class=_at_level(type("Logger", (_filtering(threshold),), {}), threshold),
        logger_factory=lambda *names: _LineWriter(file, *names),
        cache_logger_on_first_use=True,
    )
    _route_standard_library(max(threshold, logging.WARNING))


def set_log_level(level: str) -> None:
    """Change the level of every logger that was made since ``configure_logging``.

    Raises:
        ValueError: the level has an unknown name.
    """
    threshold = _threshold(level)
    _at_level(structlog.get_config()["wrapper_class"], threshold)
    _route_standard_library(max(threshold, logging.WARNING))


def get_logger(name: str) -> FilteringBoundLogger:
    """Return a logger whose name is on its lines; it may be made before ``configure_logging`` is called."""
    return cast("FilteringBoundLogger", structlog.get_logger(name))


def log_always(log: FilteringBoundLogger, event: str, **fields: object) -> None:
    """Write a line of level info at any level in force: the operator has just requested it, and waits for it."""
    log_fields(log, "info", event, fields)


def log_fields(log: FilteringBoundLogger, method: str, event: str, fields: Mapping[str, object]) -> None:
    """Write a line by the method of that name, at any level in force: the caller has checked it.

    structlog's own methods pass many fields on from call to call, and copy them each time.
    """
    bound = cast("Any", log.bind())
    try:
        positional, named = bound._process_event(method, event, fields)  # noqa: SLF001 - what its own methods call
    except DropEvent:
        return
    getattr(bound._logger, method)(*positional, **named)  # noqa: SLF001 - as above


def _threshold(level: str) -> int:
    try:
        return _LEVELS[level.lower()]
    except KeyError:
        raise ValueError(f"unknown log level {level!r}: {', '.join(_LEVELS)}") from None


def _filtering(threshold: int) -> "type[FilteringBoundLogger]":
    return structlog.make_filtering_bound_logger(threshold)


def _at_level(loggers: type[Any], threshold: int) -> type[Any]:
    """Set the methods of a class of loggers to those of a level, for all its loggers at once: below it they do nothing.

    structlog makes a class for each level and every logger keeps the one that it was first used with, so that a request
    does not check the level for each line that is not written.
    """
    for name, method in vars(_filtering(threshold)).items():
        if not name.startswith("__"):
            setattr(loggers, name, method)
    return loggers


class _LineWriter:
    """Writes whole lines and never raises: a full disk or a closed pipe must not stop a purchase half-way."""

    def __init__(self, file: BinaryIO, name: str = "") -> None:
        self.name = name
        self._write = file.write
        self._flush = file.flush

    def msg(self, line: bytes) -> None:
        """Write one line."""
        try:
            self._write(line + b"\n")
            self._flush()
        except (OSError, ValueError):  # ValueError is what a closed file raises
            return

    debug = info = warning = warn = error = critical = fatal = exception = log = msg


class _TextAsBinary:
    """Writes lines of bytes to a stream that takes text only, such as ``io.StringIO``."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, line: bytes) -> int:
        return self._stream.write(line.decode("utf-8", "replace"))

    def flush(self) -> None:
        self._stream.flush()


def _binary_of(stream: TextIO) -> BinaryIO:
    buffer = getattr(stream, "buffer", None)
    return cast("BinaryIO", buffer if buffer is not None else _TextAsBinary(stream))


def _processor(render: _Render) -> Processor:
    """Return the one processor of all lines: a line is written for each request, and a chain of processors costs twice as much."""

    def process(logger: _LineWriter, method: str, fields: MutableMapping[str, Any]) -> bytes:
        # The fields that a reader looks for come first.
        event = {
            "timestamp": _timestamp(),
            "level": _LEVEL_OF_METHOD.get(method, method),
            "event": fields["event"],
            **fields,
        }
        merge_contextvars(logger, method, event)
        event.setdefault("logger", logger.name)
        describe_error(event)
        redact(event)
        return render(event)

    return process


def _timestamp() -> str:
    seconds, micros = divmod(time.time_ns() // 1_000, 1_000_000)
    return f"{_to_the_second(seconds)}.{micros:06}Z"


# Many lines are of one second, and writing a whole date takes as long as the rest of a line's time.
@lru_cache(maxsize=1)
def _to_the_second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


def _render_json(event: MutableMapping[str, Any]) -> bytes:
    try:
        return orjson.dumps(event)
    except TypeError:
        # Lone surrogates, integers past 64 bits: rare, and no reason to lose the line.
        return orjson.dumps({_escape(name): _escape(value) for name, value in event.items()})


def _escape(value: Any) -> Any:
    if isinstance(value, bool | float | None):
        return value
    if isinstance(value, int):
        bits = value.bit_length()
        if bits <= _MAX_JSON_INTEGER_BITS:
            return value
        return str(value) if bits <= _MAX_TEXT_INTEGER_BITS else f"<integer of {bits} bits>"
    return str(value).encode("utf-8", "backslashreplace").decode("utf-8")


def _console(*, colors: bool) -> _Render:
    renderer = structlog.dev.ConsoleRenderer(colors=colors, pad_event_to=0, sort_keys=False)
    return _printable(lambda event: str(renderer(None, "", event)))


def _printable(write: Callable[[MutableMapping[str, Any]], str]) -> _Render:
    """Return a renderer whose lines hold no control characters but those of ``write``."""

    def render(event: MutableMapping[str, Any]) -> bytes:
        for name, value in event.items():
            # A model's name is a client's text: it must not move the cursor or forge a line.
            if type(value) is str and not value.isprintable():
                event[name] = value.encode("unicode_escape").decode("ascii")
        return write(event).encode("utf-8", "backslashreplace")

    return render


class _ToStructlog(logging.Handler):
    """Forwards records of the standard library, without their arguments, which may quote a client's text."""

    def __init__(self, level: int) -> None:
        super().__init__(level)
        self._logger = get_logger("stdlib")

    def emit(self, record: logging.LogRecord) -> None:
        template = cut(str(record.msg).partition("\n")[0], 200)
        log = self._logger.bind(logger=record.name)
        # A library's own levels become the nearest that structlog knows.
        write = log.error if record.levelno >= logging.ERROR else log.warning
        write(template, exc_info=record.exc_info or None)


def _route_standard_library(level: int) -> None:
    root = logging.getLogger()
    for handler in [h for h in root.handlers if isinstance(h, _ToStructlog)]:
        root.removeHandler(handler)
    root.addHandler(_ToStructlog(level))
    root.setLevel(level)
