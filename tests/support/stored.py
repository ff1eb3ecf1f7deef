"""Helpers of the black-box tests of stored responses: raw HTTP, so that every received byte is visible."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from tests.support.gateway import RunningGateway
from tests.support.http_node import HttpNodeThread
from tests.support.node_thread import eventually
from tests.support.wire import CHAT, RESPONSES, Answer, document, get, post, request_bytes, send_raw
from tests.system.routing.providers import row, served_by

ENDED = {"completed", "failed", "cancelled", "incomplete"}
MODEL = "m"


def slow_peers(quote_latency_s: float) -> str:
    """Describe three peers: Alice is quick; Bob's quotes are slow; Carol streams ten words a second."""
    return f"""
[[peers]]
alias = "Alice"
[[peers.models]]
name = "echo-1"

[[peers]]
alias = "Bob"
quote_latency_s = {quote_latency_s}
[[peers.models]]
name = "slow-quote"

[[peers]]
alias = "Carol"
[[peers.models]]
name = "echo-slow"
tokens_per_second = 10.0
"""


def respond(port: int, text: str = "hello", *, headers=None, model="echo-1", **more) -> Answer:
    """Request a response."""
    return post(port, RESPONSES, document(RESPONSES, model, text, **more), headers, 120)


def chat(port: int, text: str = "hello", *, headers=None, model="echo-1", **more) -> Answer:
    """Request a chat completion that is stored."""
    more = {"store": True, **more}
    return post(port, CHAT, document(CHAT, model, text, **more), headers, 120)


def retrieve(port: int, response_id: str, query: str = "", *, headers=None) -> Answer:
    return get(port, f"{RESPONSES}/{response_id}{query}", headers)


def delete(port: int, path: str, *, headers=None) -> Answer:
    return send_raw(port, request_bytes("DELETE", path, None, headers))


def cancel(port: int, response_id: str, *, headers=None) -> Answer:
    return send_raw(port, request_bytes("POST", f"{RESPONSES}/{response_id}/cancel", b"", headers))


def input_items(port: int, response_id: str, query: str = "?order=asc", *, headers=None) -> list:
    answer = get(port, f"{RESPONSES}/{response_id}/input_items{query}", headers)
    assert answer.status == 200, answer.body
    return answer.json["data"]


def begun(port: int, text: str = "hello", *, headers=None, **more) -> str:
    """Start a background response; return its id."""
    answer = respond(port, text, headers=headers, background=True, **more)
    assert answer.status == 200, answer.body
    assert answer.json["id"].startswith("resp_bg_")
    return answer.json["id"]


def wait_for(
    port: int,
    response_id: str,
    wanted: Callable[[dict[str, Any]], object],
    *,
    headers: Mapping[str, str] | None = None,
    timeout_s: float = 60.0,
) -> Answer:
    """Poll a response until the condition holds; return the last answer."""
    last: list[Answer] = []

    def is_there() -> object:
        last[:] = [retrieve(port, response_id, headers=headers)]
        assert last[0].status == 200, last[0].body
        return wanted(last[0].json)

    eventually(is_there, timeout_s)
    return last[0]


def ended(port: int, response_id: str, *, headers=None, timeout_s: float = 60.0) -> Answer:
    """Wait until a background response has ended with any status."""
    return wait_for(port, response_id, lambda found: found["status"] in ENDED, headers=headers, timeout_s=timeout_s)


def numbers(answer: Answer) -> list[int]:
    """The numbers of a stream's events."""
    return [json.loads(data)["sequence_number"] for _, data in answer.blocks]


def last_response(answer: Answer) -> dict[str, Any]:
    """The response in a stream's last event."""
    return json.loads(answer.blocks[-1][1])["response"]


@contextmanager
def on_http_node(
    node: HttpNodeThread, *, endpoints=("chat", "responses"), **settings: object
) -> Iterator[RunningGateway]:
    """Run a gateway on a stand-in of a node that records the received requests."""
    with served_by(row(node, endpoints=list(endpoints)), **settings) as running:
        yield running
