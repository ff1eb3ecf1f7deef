"""A stand-in for an OpenTelemetry collector: receives traces over HTTP, decodes them, and fails on demand."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

SERVER, CLIENT, INTERNAL = 2, 3, 1
ERROR = 2


@dataclass(frozen=True)
class SeenSpan:
    """One span, with ids in hex; ``parent`` is empty for a trace's first."""

    name: str
    trace_id: str
    span_id: str
    parent: str
    kind: int
    attributes: dict[str, object]
    links: tuple[tuple[str, str], ...]
    is_error: bool
    status_text: str
    events: tuple[str, ...]
    resource: dict[str, object]
    trace_state: str
    start_ns: int
    end_ns: int


@dataclass
class Collector:
    """The received spans. ``status`` is the answer to the next batches; while ``held`` is cleared none is answered."""

    port: int = 0
    status: int = 200
    spans: list[SeenSpan] = field(default_factory=list)
    raw: list[bytes] = field(default_factory=list)
    held: threading.Event = field(default_factory=threading.Event)
    headers: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def traces(self) -> dict[str, list[SeenSpan]]:
        found: dict[str, list[SeenSpan]] = {}
        for span in list(self.spans):
            found.setdefault(span.trace_id, []).append(span)
        return found

    def wait_for(self, names: Sequence[str], timeout_s: float = 60.0) -> "Trace":
        """Wait for a trace of exactly these spans, in any order; return it."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            for spans in self.traces().values():
                if sorted(span.name for span in spans) == sorted(names):
                    return Trace(spans)
            time.sleep(0.05)
        seen = [sorted(span.name for span in spans) for spans in self.traces().values()]
        raise AssertionError(f"no trace of {sorted(names)} came: {seen}")


@dataclass(frozen=True)
class Trace:
    spans: list[SeenSpan]

    def __getitem__(self, name: str) -> SeenSpan:
        (found,) = self.named(name)
        return found

    def named(self, name: str) -> list[SeenSpan]:
        return [span for span in self.spans if span.name == name]

    @property
    def root(self) -> SeenSpan:
        ids = {span.span_id for span in self.spans}
        (found,) = [span for span in self.spans if span.parent not in ids]
        return found

    @property
    def is_whole(self) -> bool:
        """Whether the trace has one root, and all other spans are its children."""
        root = self.root
        return len({span.trace_id for span in self.spans}) == 1 and all(
            span is root or span.parent == root.span_id for span in self.spans
        )


@contextmanager
def collector() -> Iterator[Collector]:
    """Run one on a free port."""
    seen = Collector()
    seen.held.set()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            status = seen.status
            seen.held.wait()
            seen.paths.append(self.path)
            seen.headers.append({name.lower(): value for name, value in self.headers.items()})
            if status == 200:
                seen.raw.append(body)
                seen.spans.extend(decoded(body))
            answer = ExportTraceServiceResponse().SerializeToString()
            self.send_response(status)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.block_on_close = False
    seen.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        seen.held.set()
        server.shutdown()
        server.server_close()
        thread.join(60)


def decoded(body: bytes) -> Iterator[SeenSpan]:
    for group in ExportTraceServiceRequest.FromString(body).resource_spans:
        resource = _attributes(group.resource.attributes)
        for scope in group.scope_spans:
            for span in scope.spans:
                yield SeenSpan(
                    name=span.name,
                    trace_id=span.trace_id.hex(),
                    span_id=span.span_id.hex(),
                    parent=span.parent_span_id.hex(),
                    kind=span.kind,
                    attributes=_attributes(span.attributes),
                    links=tuple((link.trace_id.hex(), link.span_id.hex()) for link in span.links),
                    is_error=span.status.code == ERROR,
                    status_text=span.status.message,
                    events=tuple(event.name for event in span.events),
                    resource=resource,
                    trace_state=span.trace_state,
                    start_ns=span.start_time_unix_nano,
                    end_ns=span.end_time_unix_nano,
                )


def _attributes(pairs) -> dict[str, object]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}
