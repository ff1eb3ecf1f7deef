"""Short lines for a person who watches a terminal: one for a request, and the few that tell of something else."""

import re
from collections.abc import Mapping, MutableMapping
from typing import Any

from structlog import DropEvent

MOST_CHARACTERS = 160
"""No line of a request, and none that only informs, is longer."""

_REQUESTS = "request"
# What a request was decided by is for machines, and for those who ask for more by ``verbose``.
_NOT_SHOWN = frozenset({"routing decision", "quotes compared"})
_LONG_ID = re.compile(r"\b((?:req_|key_|node:)?[0-9a-f]{8})[0-9a-f]{12,}\b")
_OWN = frozenset({"timestamp", "level", "event", "logger", "request_id", "exception"})
_COLOURS = {"warning": "\x1b[33m", "error": "\x1b[31m", "critical": "\x1b[31m"}
_DIM, _RESET = "\x1b[2m", "\x1b[0m"
_SECOND_MS = 1_000
_SAT_MSAT = 1_000


def brief(event: MutableMapping[str, Any], *, colors: bool) -> str:
    """Write an event as one short line.

    Raises:
        DropEvent: it is nothing for a terminal.
    """
    if event["event"] in _NOT_SHOWN:
        raise DropEvent
    is_request = event.get("logger") == _REQUESTS and "payment" in event
    words = _request(event) if is_request else _other(event)
    at = str(event.get("timestamp", ""))[11:19]
    line = _LONG_ID.sub(r"\1…", " ".join(word for word in words if word))
    if is_request or event.get("level") == "info":
        line = _cut(line, MOST_CHARACTERS - len(at) - 1)
    colour = _COLOURS.get(str(event.get("level")))
    if colors:
        at = f"{_DIM}{at}{_RESET}"
        line = f"{colour}{line}{_RESET}" if colour else line
    shown = f"{at} {line}"
    trace = event.get("exception")
    return f"{shown}\n{trace}" if trace else shown


def _request(event: Mapping[str, Any]) -> list[str]:
    model, bought = str(event.get("model") or "-"), event.get("bought_model")
    provider = str(event.get("peer_id") or "")
    return [
        str(event.get("status")),
        str(event["event"]),
        f"{model} → {bought}" if bought else model,
        "streamed" if event.get("stream") else "",
        _money(event),
        f"in {_time(event.get('total_ms'))}",
        f"from {provider}" if provider else "",
        "(joined)" if event.get("joined") else "",
        f"problem: {event['problem']}" if event.get("problem") else "",
        str(event.get("request_id") or ""),
    ]


def _money(event: Mapping[str, Any]) -> str:
    price = event.get("price_msat")
    if event["payment"] == "none" or not isinstance(price, int):
        return "nothing paid" if event["payment"] == "none" else str(event["payment"])
    return f"{event['payment']} {price / _SAT_MSAT:,.3f} sat"


def _time(ms: object) -> str:
    if not isinstance(ms, int | float):
        return "?"
    return f"{ms / _SECOND_MS:.1f} s" if ms >= _SECOND_MS else f"{ms} ms"


def _other(event: Mapping[str, Any]) -> list[str]:
    level = str(event.get("level"))
    fields = (f"{name}={value}" for name, value in event.items() if name not in _OWN)
    return [f"{level}:" if level != "info" else "", str(event["event"]), *fields]


def _cut(line: str, most: int) -> str:
    return line if len(line) <= most else f"{line[: most - 1]}…"
