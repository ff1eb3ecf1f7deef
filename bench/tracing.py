"""``python -m bench.tracing``: what traces cost a request, in CPU of the gateway's process and in time, off and on in turn."""

import argparse
import contextlib
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from bench import processes, standin
from bench.processes import Server
from bench.workload import Load, Workload
from lcp_gateway.purchase.tracing import NO_TRACING, TraceStep, Tracing

_PROMPT = "word " * 90
_MICRO, _MILLI = 1e6, 1e3
# No server listens there.
_NOWHERE = "http://127.0.0.1:9"
_EMPTY = "empty"


class _Sink(BaseHTTPRequestHandler):
    """A collector that accepts everything and decodes nothing."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_arguments: object) -> None:
        pass


@contextlib.contextmanager
def _collector() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Sink)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


# The calls alone.


def _facts() -> dict[str, str | int]:
    return {f"{_EMPTY}.{number}": "0123456789abcdef" * 4 for number in range(8)}


def _one_request(tracing: Tracing) -> None:
    """Make only the tracing calls of a streamed request."""
    with tracing.request((), ()) as root:
        for step in (TraceStep.ROUTE, TraceStep.QUOTE, TraceStep.PAY, TraceStep.STREAM):
            with tracing.span(step) as span:
                span.note(_facts)
                tracing.headers()
        tracing.origin()
        if root.trace_id:
            root.name("chat bench")
            root.note(_facts)


def _cost(work: Callable[[], object], calls: int, rounds: int) -> float:
    """Return the CPU of one call, in the least disturbed round."""
    found = []
    for _ in range(rounds):
        started = time.thread_time()
        for _ in range(calls):
            work()
        found.append((time.thread_time() - started) / calls)
    return min(found)


def _measure_calls(rounds: int) -> None:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

    from lcp_gateway.telemetry.tracing import OtelTracing

    def tracing_of(provider: TracerProvider) -> Tracing:
        return OtelTracing(provider.get_tracer("bench"), lambda error: type(error).__name__)

    recorded = tracing_of(TracerProvider(shutdown_on_exit=False))
    unsampled = tracing_of(TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False))
    print("the calls of a streamed request by themselves       us")
    for what, tracing in (("off", NO_TRACING), ("not sampled", unsampled), ("recorded", recorded)):
        used = _cost(lambda tracing=tracing: _one_request(tracing), 2_000, rounds)
        print(f"  {what:46} {used * _MICRO:7.2f}")


# The program.


@dataclass(frozen=True, slots=True)
class Measured:
    """One turn: the load generator's result, and CPU seconds of the gateway for a request."""

    load: Load
    cpu_s: float


def _turn(gateway: Server, workload: Workload) -> Measured:
    load, used = processes.load("http", gateway.address, workload, gateway)
    if load.errors or not load.requests:
        raise SystemExit(f"{load.errors} requests failed")
    return Measured(load, used.cpu_s / load.requests)


def _median(turns: list[Measured], of: Callable[[Measured], float]) -> float:
    return statistics.median(of(turn) for turn in turns)


def _print(what: str, turns: list[Measured], off: list[Measured]) -> None:
    cpu, base = _median(turns, lambda t: t.cpu_s), _median(off, lambda t: t.cpu_s)
    rate = _median(turns, lambda t: t.load.requests / t.load.seconds)
    p50 = _median(turns, lambda t: t.load.total_p50) * _MILLI
    p99 = _median(turns, lambda t: t.load.total_p99) * _MILLI
    print(
        f"  {what:18} {cpu * _MICRO:9.0f} {(cpu - base) * _MICRO:+9.0f} {cpu / base:8.2f} {rate:9.0f} "
        f"{p50:8.2f} {p99:8.2f}"
    )


def _measure_program(arguments: argparse.Namespace) -> None:
    with (
        tempfile.TemporaryDirectory(prefix="lcp-gateway-bench-") as name,
        _collector() as collector,
        contextlib.ExitStack() as stack,
    ):
        folder = Path(name)
        daemon = stack.enter_context(processes.stand_in(folder, 0.0))
        settings = {
            "off": {},
            "on": {"LCP_GATEWAY_OTLP_ENDPOINT": collector},
            "on, a tenth": {"LCP_GATEWAY_OTLP_ENDPOINT": collector, "LCP_GATEWAY_TRACE_RATIO": "0.1"},
            "on, no collector": {"LCP_GATEWAY_OTLP_ENDPOINT": _NOWHERE},
        }
        gateways = {}
        for what, more in settings.items():
            place = folder / f"gateway-{len(gateways)}"
            place.mkdir()
            gateways[what] = stack.enter_context(processes.gateway(place, daemon, **more))
        for stream in (False, True):
            for clients in arguments.clients:
                workload = Workload(
                    model=standin.MODEL,
                    prompt=_PROMPT,
                    stream=stream,
                    clients=clients,
                    seconds=arguments.seconds,
                    warm_up_s=0.5,
                )
                turns: dict[str, list[Measured]] = {what: [] for what in gateways}
                # In turn, so that other load on the machine affects all of them alike.
                for _ in range(arguments.rounds):
                    for what, gateway in gateways.items():
                        turns[what].append(_turn(gateway, workload))
                kind = f"streams of {standin.CHUNKS} chunks" if stream else "whole answers"
                print(f"\n{kind}, {clients} at once")
                print(f"  {'traces':18} {'CPU us':>9} {'more':>9} {'of off':>8} {'req/s':>9} {'p50 ms':>8} {'p99 ms':>8}")  # fmt: skip
                for what, found in turns.items():
                    _print(what, found, turns["off"])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.tracing", description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="how long each turn measures")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--quick", action="store_true", help="1 s a turn, 2 rounds, 16 clients")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.seconds, arguments.rounds, arguments.clients = 1.0, 2, [16]
    _measure_calls(rounds=5)
    _measure_program(arguments)


if __name__ == "__main__":
    main()
