"""Programs compared in pairs: one load, in turn to each, over and over; what is printed are medians of ratios.

On a machine that others use as well, a ratio of two turns that followed each other says far more than a figure.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from bench import processes, standin
from bench.processes import Server
from bench.table import print_table
from bench.workload import Load, Workload

_PROMPT = "word " * 90
_WARM_UP_S = 1.0
_MICRO, _MILLI = 1e6, 1e3


@dataclass(frozen=True, slots=True)
class Line:
    """One comparison: whole answers or streams, the number of clients, and their pace."""

    title: str
    stream: bool
    clients: int
    chunks: int | None = None
    pause_s: float = 0.0
    every_s: float = 0.0

    @property
    def unit(self) -> str:
        return "token" if self.stream else "request"


@dataclass(frozen=True, slots=True)
class Turn:
    """The load generator's result, and the CPU seconds of the program for one request or token."""

    load: Load
    cpu_s: float


def take_turn(server: Server, line: Line, seconds: float) -> Turn:
    """Put one load to one program."""
    workload = Workload(
        model=standin.MODEL,
        prompt=_PROMPT,
        stream=line.stream,
        clients=line.clients,
        seconds=seconds,
        warm_up_s=_WARM_UP_S,
        every_s=line.every_s,
        chunks=line.chunks,
        pause_s=line.pause_s,
    )
    load, used = processes.load("http", server.address, workload, server)
    count = load.chunks if line.stream else load.requests
    if load.errors or not count:
        raise SystemExit(f"{line.title}: {load.errors} requests failed")
    return Turn(load, used.cpu_s / count)


def compare(servers: Mapping[str, Server], lines: Sequence[Line], *, ruler: str, seconds: float, rounds: int) -> None:
    """Measure and print each line; ``ruler`` names the program that the others are compared with."""
    for line in lines:
        turns: dict[str, list[Turn]] = {name: [] for name in servers}
        for number in range(rounds):
            # Each is first in some rounds: what an earlier turn left behind meets all alike.
            names = list(servers)
            for name in names[number % len(names) :] + names[: number % len(names)]:
                turns[name].append(take_turn(servers[name], line, seconds))
        _print(line, turns, ruler)


def _print(line: Line, turns: Mapping[str, Sequence[Turn]], ruler: str) -> None:
    def median(name: str, of: Callable[[Turn], float]) -> float:
        return statistics.median(of(turn) for turn in turns[name])

    def ratio(name: str) -> float:
        pairs = zip(turns[name], turns[ruler], strict=True)
        return statistics.median(mine.cpu_s / theirs.cpu_s for mine, theirs in pairs)

    columns = [
        ("", lambda name: name),
        (f"CPU us/{line.unit}", lambda name: f"{median(name, lambda turn: turn.cpu_s) * _MICRO:.1f}"),
        (f"to {ruler}", lambda name: f"{ratio(name):.2f}"),
        (f"{line.unit}s/s", lambda name: f"{median(name, lambda turn: _rate(turn.load, line)):,.0f}"),
        ("first p50 ms", lambda name: f"{median(name, lambda turn: turn.load.first_p50) * _MILLI:.2f}"),
        ("p99", lambda name: f"{median(name, lambda turn: turn.load.first_p99) * _MILLI:.2f}"),
    ]
    if line.pause_s:
        columns += [
            ("between p50 ms", lambda name: f"{median(name, lambda turn: turn.load.gap_p50) * _MILLI:.2f}"),
            ("p99", lambda name: f"{median(name, lambda turn: turn.load.gap_p99) * _MILLI:.2f}"),
        ]
    print_table(line.title, columns, list(turns))


def _rate(load: Load, line: Line) -> float:
    return (load.chunks if line.stream else load.requests) / load.seconds
