"""A raw HTTP client: it sends bytes unchanged, and returns answers with how they ended."""

import json
import re
import socket
from collections.abc import Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

CHAT = "/v1/chat/completions"
RESPONSES = "/v1/responses"
ERROR_KEYS = {"message", "type", "param", "code"}
_READ = 65_536


@dataclass(frozen=True)
class Answer:
    """One answer. ``whole`` says whether its body ended as its head announced."""

    status: int
    fields: tuple[tuple[str, str], ...]
    body: bytes
    whole: bool

    @property
    def headers(self) -> dict[str, str]:
        return {name.lower(): value for name, value in self.fields}

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The error object, which has to have OpenAI's shape."""
        error = self.json["error"]
        assert set(error) - {"lcp"} == ERROR_KEYS, error
        assert isinstance(error["message"], str) and error["message"]
        return error

    @property
    def verdict(self) -> str:
        return self.headers["x-lcp-payment"]

    @property
    def blocks(self) -> list[tuple[str, str]]:
        """The server-sent events as (name, data); comments are left out."""
        found = []
        for block in re.split(r"\n{2,}", self.body.decode("utf-8", "replace")):
            lines = [line.partition(": ") for line in block.split("\n")]
            data = "\n".join(value for name, _, value in lines if name == "data")
            name = "".join(value for name, _, value in lines if name == "event")
            if name or data:
                found.append((name, data))
        return found


class Wire:
    """A connection."""

    def __init__(self, port: int, timeout_s: float = 60.0) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=timeout_s)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._held = b""
        self.was_reset = False

    def send(self, data: bytes) -> None:
        """Send bytes; it is no error if the other side has closed already, since its answer may still be read."""
        with suppress(BrokenPipeError, ConnectionResetError):
            self.socket.sendall(data)

    def await_bytes(self, mark: bytes, times: int = 1) -> None:
        """Wait until these bytes have come so many times; they stay to be read."""
        while self._held.count(mark) < times:
            if not self._more():
                raise EOFError(f"the connection ended before {mark!r}: {self._held[:500]!r}")

    def read_until(self, mark: bytes) -> bytes:
        self.await_bytes(mark)
        found, _, self._held = self._held.partition(mark)
        return found + mark

    def read_exactly(self, size: int) -> bytes:
        data, whole = self._exactly(size)
        assert whole, f"the connection ended {size - len(data)} bytes before"
        return data

    def answer(self, *, method: str = "POST") -> Answer:
        """Read one answer, interim ones included."""
        head = self.read_until(b"\r\n\r\n").decode("latin-1").split("\r\n")
        status = int(head[0].split(" ")[1])
        fields = tuple((name, value.strip()) for name, _, value in (line.partition(":") for line in head[1:] if line))
        names = {name.lower(): value for name, value in fields}
        if method == "HEAD" or status in {100, 204, 304}:
            return Answer(status, fields, b"", True)
        if names.get("transfer-encoding") == "chunked":
            return Answer(status, fields, *self._chunked())
        if "content-length" in names:
            return Answer(status, fields, *self._exactly(int(names["content-length"])))
        while self._more():
            pass
        body, self._held = self._held, b""
        return Answer(status, fields, body, True)

    def ended(self) -> bool:
        """Wait for the other side to close; False if it sends bytes instead."""
        try:
            return not self._held and not self._more()
        except TimeoutError:
            return False

    def close(self) -> None:
        self.socket.close()

    def _more(self) -> bool:
        try:
            data = self.socket.recv(_READ)
        except ConnectionResetError:
            self.was_reset = True
            data = b""
        self._held += data
        return bool(data)

    def _exactly(self, size: int) -> tuple[bytes, bool]:
        parts, missing = [self._held[:size]], size - len(self._held)
        self._held = self._held[size:]
        while missing > 0:
            if not self._more():
                return b"".join(parts), False
            parts.append(self._held[:missing])
            self._held, missing = self._held[missing:], missing - len(parts[-1])
        return b"".join(parts), True

    def _chunked(self) -> tuple[bytes, bool]:
        body = bytearray()
        try:
            while size := int(self.read_until(b"\r\n"), 16):
                data, whole = self._exactly(size)
                body += data
                if not whole:
                    return bytes(body), False
                self.read_until(b"\r\n")
            self.read_until(b"\r\n")
        except EOFError:
            return bytes(body), False
        return bytes(body), True


@contextmanager
def wire(port: int, timeout_s: float = 60.0):
    connection = Wire(port, timeout_s)
    try:
        yield connection
    finally:
        connection.close()


def request_bytes(method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None) -> bytes:
    """Write a request; a body gets its Content-Length."""
    fields = {"Host": "localhost", **(headers or {})}
    if body is not None:
        fields.setdefault("Content-Type", "application/json")
        fields.setdefault("Content-Length", str(len(body)))
    lines = [f"{method} {path} HTTP/1.1", *(f"{k}: {v}" for k, v in fields.items())]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + (body or b"")


def document(path: str = CHAT, model: str = "echo-1", text: str = "hello", **more) -> dict:
    """A request for one of the two routes that buy something."""
    subject = {"messages": [{"role": "user", "content": text}]} if path == CHAT else {"input": text}
    return {"model": model, **subject, **more}


def send_raw(port: int, raw: bytes, *, method: str = "POST", timeout_s: float = 60.0) -> Answer:
    """Send bytes on a connection of their own and read one answer."""
    with wire(port, timeout_s) as connection:
        connection.send(raw)
        return connection.answer(method=method)


def get(port: int, path: str, headers: Mapping[str, str] | None = None, method: str = "GET"):
    return send_raw(port, request_bytes(method, path, headers=headers), method=method)


def post(
    port: int, path: str, body: bytes | dict, headers: Mapping[str, str] | None = None, timeout_s: float = 60.0
) -> Answer:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return send_raw(port, request_bytes("POST", path, raw, headers), timeout_s=timeout_s)


def is_refused(answer: Answer, *statuses: int) -> None:
    """Check that a request was refused as invalid, in OpenAI's error format."""
    assert answer.status in statuses and answer.whole
    assert answer.headers["content-type"].startswith("application/json")
    assert answer.error["type"] == "invalid_request_error"
    assert answer.verdict == "none"
    assert answer.headers["x-should-retry"] in {"true", "false"}
    assert answer.headers["x-request-id"].startswith("req_")
