"""Helpers of the routing tests: gateways over HTTP nodes, nodes as processes, and the routing info of an answer."""

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Self

from tests.support.forked import ForkedProcess, start_module
from tests.support.gateway import RunningGateway, gateway
from tests.support.http_node import HttpNodeThread
from tests.support.wire import CHAT, RESPONSES, Answer, get, post

COMPLETIONS = "/v1/completions"
EMBEDDINGS = "/v1/embeddings"
ROUTE = "/api/models/route"
PEERS_SAY = "This is the echo node. You said: "
ANY_WORK = ("chat", "responses", "completions", "embeddings")
# Nodes are checked often, so that tests of their changes need not wait.
_REFRESH_S = "0.5"


def row(node, **more: object) -> dict[str, object]:
    """A node as in the operator's configuration."""
    name = node.server.name if isinstance(node, HttpNodeThread) else node.name
    return {"name": name, "base_url": node.base_url, **more}


def settings_of(rows: list[dict], **settings: object) -> dict[str, str]:
    """The environment for nodes, and settings by their lower-case names; other values than strings are written as JSON."""
    found = {"nodes": rows, "nodes_refresh_s": _REFRESH_S, **settings}
    return {
        f"LCP_GATEWAY_{name.upper()}": value if isinstance(value, str) else json.dumps(value)
        for name, value in found.items()
    }


@contextmanager
def served_by(*rows: dict, embedded: bool = False, **settings: object) -> Iterator[RunningGateway]:
    """Run a gateway over nodes, alone or beside the three embedded peers, once all nodes are up."""
    environment = settings_of(list(rows), **settings)
    args = []
    if not embedded:
        # No server listens there, and no test need wait until that is sure.
        environment.setdefault("LCP_GATEWAY_LCPD_GRPC_ADDR", "127.0.0.1:1")
        args.append("--no-preflight")
    with gateway(embedded=embedded, env=environment, args=args) as running:
        until(lambda: all(node["up"] for node in nodes_of(running).values()))
        yield running


def nodes_of(served: RunningGateway) -> Mapping[str, Mapping[str, object]]:
    return get(served.port, "/readyz").json.get("nodes", {})


def models_of(served: RunningGateway) -> dict[str, dict]:
    """The list of models by their ids, which must be unique."""
    listed = get(served.port, "/v1/models").json["data"]
    found = {model["id"]: model for model in listed}
    assert len(found) == len(listed)
    return found


def until(done: Callable[[], object], timeout_s: float = 120.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not done():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.02)


def body_of(path: str, model: str, text: str = "hello", /, **more: object) -> dict[str, object]:
    """A request for any of the four routes."""
    subject = {
        CHAT: {"messages": [{"role": "user", "content": text}]},
        RESPONSES: {"input": text},
        COMPLETIONS: {"prompt": text},
        EMBEDDINGS: {"input": text},
    }[path]
    return {"model": model, **subject, **more}


def ask(
    served: RunningGateway,
    model: str = "auto",
    text: str = "hello",
    /,
    *,
    path: str = CHAT,
    headers: Mapping[str, str] | None = None,
    **more: object,
) -> Answer:
    return post(served.port, path, body_of(path, model, text, **more), headers, 120)


def info_of(answer: Answer) -> dict[str, object]:
    """The routing info of an answer, which must be the same in header and body."""
    reported = json.loads(answer.headers["x-lcp-routing"])
    if answer.headers["content-type"].startswith("text/event-stream"):
        documents = [json.loads(data) for _, data in answer.blocks if data != "[DONE]"]
        assert all("routing_info" not in document for document in documents[1:])
        first = documents[0]
    else:
        first = answer.json
    assert first["routing_info"] == reported
    return reported


def agrees(info: Mapping[str, object], headers: Mapping[str, str], text: str) -> str:
    """Check that the routing info is true; return the provider that answered."""
    assert set(info) - {"node", "peer"} == {*("source", "model", "score", "reason", "candidates", "price_msat")}
    if info["source"] == "node":
        provider = f"node:{info['node']}"
        assert text.startswith(f"{info['node']} says: "), text
    else:
        provider = str(info["peer"])
        assert info["source"] == "lcp" and len(bytes.fromhex(provider)) == 33
        assert text.startswith(PEERS_SAY), text
    assert headers["x-lcp-peer-id"] == provider
    assert headers["x-lcp-price-msat"] == str(info["price_msat"])
    assert headers["x-lcp-payment"] == ("settled" if info["price_msat"] else "none")
    assert 0 < info["score"] <= 1 and info["candidates"] >= 1 and info["reason"]
    return provider


class NodeProcess:
    """A node in a process of its own, which can be killed and started again at its port."""

    def __init__(self, name: str, models: str, *options: str) -> None:
        self.name = name
        self.port = 0
        self._options = ("--name", name, "--models", models, *options)
        self._process: ForkedProcess | subprocess.Popen[str] | None = None

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def start(self) -> None:
        self._process = start_module(
            "tests.support.http_node",
            *("--port", str(self.port), *self._options),
            env=os.environ,
            stdout=subprocess.PIPE,
            text=True,
        )
        line = self._process.stdout.readline()
        self.port = int(line.removeprefix("listening "))

    def kill(self) -> None:
        """End it as kill -9 does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(60)
            self._process.stdout.close()
            self._process = None

    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def behave(self, **changes: object) -> None:
        assert post(self.port, "/_behave", changes).status == 200

    def calls(self) -> list[dict]:
        reported = get(self.port, "/_requests").json
        return [seen for seen in reported if seen["method"] == "POST"]

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.kill()
