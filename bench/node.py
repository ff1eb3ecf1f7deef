"""``python -m bench.node``: what a job costs two nodes, buyer and seller in one process, against the embedded node.

All simulate Lightning, answer by the echo, are called over gRPC, and send their jobs as messages of the protocol. The embedded
node keeps no books, and adds its wallet, its events and its scripts of failures; the pair has books, in memory or on a disk.
"""

import argparse
import contextlib
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import psutil

from bench import processes
from bench.node_pair import MODEL
from bench.paired import Line, Turn
from bench.processes import Server
from bench.table import print_table
from bench.workload import Workload

_EMBEDDED = "embedded"
_PROMPTS = {"short": "word " * 90, "64 KiB": "x" * 65_536}
_MICRO, _MILLI = 1e6, 1e3


@contextlib.contextmanager
def _server(folder: Path, name: str, *arguments: str) -> Iterator[Server]:
    socket = folder / f"{name}.sock"
    place = [one.replace("ADDRESS", f"unix:{socket}") for one in arguments]
    with processes.running(*place, XDG_CONFIG_HOME=str(folder), XDG_STATE_HOME=str(folder)) as process:
        processes.wait_for_socket(socket)
        yield Server(f"unix:{socket}", 0.0, psutil.Process(process.pid))


def _turn(server: Server, line: Line, prompt: str, seconds: float) -> Turn:
    workload = Workload(MODEL, prompt, line.stream, line.clients, seconds, 1.0)
    load, used = processes.load("grpc", server.address, workload, server)
    if load.errors or not load.requests:
        raise SystemExit(f"{line.title}, {server.address}: {load.errors} jobs failed, {load.requests} ended")
    return Turn(load, used.cpu_s / load.requests)


def _print(line: Line, turns: Mapping[str, Sequence[Turn]]) -> None:
    def ratio(name: str) -> float:
        pairs = zip(turns[name], turns[_EMBEDDED], strict=True)
        return statistics.median(mine.cpu_s / theirs.cpu_s for mine, theirs in pairs)

    columns = [
        ("", lambda name: name),
        ("CPU us/job", lambda name: f"{statistics.median(one.cpu_s for one in turns[name]) * _MICRO:,.0f}"),
        (f"to {_EMBEDDED}", lambda name: f"{ratio(name):.2f}"),
        ("jobs/s", lambda name: f"{statistics.median(one.load.requests / one.load.seconds for one in turns[name]):,.0f}"),
        ("p50 ms", lambda name: f"{statistics.median(one.load.total_p50 for one in turns[name]) * _MILLI:.1f}"),
        ("p99 ms", lambda name: f"{statistics.median(one.load.total_p99 for one in turns[name]) * _MILLI:.1f}"),
    ]  # fmt: skip
    print_table(line.title, columns, list(turns))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.node", description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0, help="how long each turn measures")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", type=int, default=16)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lcp-gateway-bench-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        pair = ("-m", "bench.node_pair", "ADDRESS")
        programs = {
            _EMBEDDED: ("-m", "lcp_gateway", "node", "--listen", "ADDRESS", "--exit-with-stdin"),
            "pair in memory": pair,
            "pair on a disk": (*pair, name),
        }
        servers = {one: stack.enter_context(_server(folder, one.replace(" ", "-"), *programs[one])) for one in programs}
        for stream in (False, True):
            for size, prompt in _PROMPTS.items():
                if stream and size != "short":
                    continue
                title = f"{'streams' if stream else 'whole answers'}, {size} prompts, {arguments.clients} clients"
                line = Line(title, stream, arguments.clients)
                turns: dict[str, list[Turn]] = {one: [] for one in servers}
                for number in range(arguments.rounds):
                    names = list(servers)
                    for one in names[number % len(names) :] + names[: number % len(names)]:
                        turns[one].append(_turn(servers[one], line, prompt, arguments.seconds))
                _print(line, turns)


if __name__ == "__main__":
    main()
