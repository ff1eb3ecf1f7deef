"""``python -m bench.transports``: what a request and a token cost over each transport to the daemon, in turn, as ratios."""

import argparse
import contextlib
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench import processes, standin
from bench.processes import Gateway
from bench.workload import Load, Workload

_PROMPT = "word " * 90
_MICRO, _MILLI = 1e6, 1e3
_TRANSPORTS = ("grpcio", "direct")


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the table: how the stand-in paces its chunks, and how many clients there are."""

    title: str
    stream: bool
    pause_s: float
    clients: int


LINES = (
    Line("whole answers, 1 client", False, 0.0, 1),
    Line("whole answers, 16 clients", False, 0.0, 16),
    Line("chunks as fast as they go, 8 streams", True, 0.0, 8),
    Line("a chunk each 20 ms, 16 streams", True, 0.02, 16),
    Line("a chunk each 50 ms, 64 streams", True, 0.05, 64),
)


@dataclass(frozen=True, slots=True)
class Turn:
    """The load generator's result, and the CPU seconds of the gateway for one request or chunk."""

    load: Load
    cpu_s: float


def _turn(gateway: Gateway, line: Line, seconds: float) -> Turn:
    # A paced stream has to end while it is measured.
    longest_s = max(seconds, 1.5 * standin.CHUNKS * line.pause_s)
    workload = Workload(standin.MODEL, _PROMPT, line.stream, line.clients, longest_s, 0.5)
    load, used = processes.load("http", gateway.address, workload, gateway)
    count = load.chunks if line.stream else load.requests
    if load.errors or not count:
        raise SystemExit(f"{line.title}: {load.errors} requests failed")
    return Turn(load, used.cpu_s / count)


def _median(turns: list[Turn], of: Callable[[Turn], float]) -> float:
    return statistics.median(of(turn) for turn in turns)


def _print(line: Line, turns: dict[str, list[Turn]]) -> None:
    ratio = statistics.median(
        mine.cpu_s / theirs.cpu_s for mine, theirs in zip(turns["direct"], turns["grpcio"], strict=True)
    )
    print(f"\n{line.title}: direct / grpcio {ratio:.2f} (CPU, median of pairs)")
    print(f"  {'transport':10} {'CPU us':>8} {'first p50 ms':>13} {'first p99 ms':>13}")
    for name, found in turns.items():
        cpu = _median(found, lambda turn: turn.cpu_s) * _MICRO
        p50 = _median(found, lambda turn: turn.load.first_p50) * _MILLI
        p99 = _median(found, lambda turn: turn.load.first_p99) * _MILLI
        print(f"  {name:10} {cpu:8.1f} {p50:13.2f} {p99:13.2f}")


def _measure(pause_s: float, lines: list[Line], seconds: float, rounds: int) -> None:
    with tempfile.TemporaryDirectory(prefix="lcp-gateway-bench-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        daemon = stack.enter_context(processes.stand_in(folder, pause_s))
        gateways = {}
        for transport in _TRANSPORTS:
            place = folder / transport
            place.mkdir()
            gateways[transport] = stack.enter_context(
                processes.gateway(place, daemon, LCP_GATEWAY_LCPD_TRANSPORT=transport)
            )
        for line in lines:
            turns: dict[str, list[Turn]] = {transport: [] for transport in _TRANSPORTS}
            for _ in range(rounds):
                for transport, gateway in gateways.items():
                    turns[transport].append(_turn(gateway, line, seconds))
            _print(line, turns)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.transports", description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="how long each turn measures")
    parser.add_argument("--rounds", type=int, default=5, help="pairs of turns")
    parser.add_argument("--quick", action="store_true", help="1 s a turn, 3 pairs")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.seconds, arguments.rounds = 1.0, 3
    for pause_s in sorted({line.pause_s for line in LINES}):
        of_pace = [line for line in LINES if line.pause_s == pause_s]
        _measure(pause_s, of_pace, arguments.seconds, arguments.rounds)


if __name__ == "__main__":
    main()
