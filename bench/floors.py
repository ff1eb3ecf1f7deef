"""The gateway against forty lines without a check, and against other programs, in one run.

The ruler is ``bench/floor.py``. Every program has a state directory of its own and the same stand-in daemon.
"""

import argparse
import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from bench import processes
from bench.paired import Line, compare
from bench.processes import Server

LINES = {
    "unary": Line("Whole answers, 16 clients", stream=False, clients=16),
    "one": Line("Whole answers, 1 client", stream=False, clients=1),
    "paced": Line("Whole answers, 1 client, one each 50 ms", stream=False, clients=1, every_s=0.05),
    "fast": Line("Tokens as fast as they go, 16 streams", stream=True, clients=16, chunks=500),
    "tokens": Line("A token each 20 ms, 16 streams", stream=True, clients=16, chunks=500, pause_s=0.02),
    "slow": Line("A token each 50 ms, 64 streams", stream=True, clients=64, chunks=500, pause_s=0.05),
}
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1", "PYTHONMALLOC": "malloc"}


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this comparison."""
    parser.add_argument("--rounds", type=int, default=5, help="turns of each program beside the floor")
    parser.add_argument("--lines", default=",".join(LINES), help=f"which to compare: {', '.join(LINES)}")
    parser.add_argument("--openai-serve", metavar="PROGRAM", help="the Go program, to be compared as well")
    parser.add_argument("--workers", type=int, metavar="N", help="the gateway with N workers as well")
    parser.add_argument("--huge-pages", action="store_true", help="the gateway on huge pages as well")
    parser.add_argument("--transport", action="append", default=[], help="the gateway with this transport as well")


def check(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    if unknown := set(arguments.lines.split(",")) - set(LINES):
        parser.error(f"no such line: {', '.join(sorted(unknown))}")


def _variants(arguments: argparse.Namespace) -> Mapping[str, Mapping[str, str]]:
    """The gateways to measure, by their names: their environments."""
    found: dict[str, Mapping[str, str]] = {"gateway": {}}
    if arguments.workers:
        found[f"{arguments.workers} workers"] = {"LCP_GATEWAY_WORKERS": str(arguments.workers)}
    if arguments.huge_pages:
        found["huge pages"] = HUGE_PAGES
    for transport in arguments.transport:
        found[transport] = {"LCP_GATEWAY_LCPD_TRANSPORT": transport}
    return found


@contextlib.contextmanager
def _running(arguments: argparse.Namespace) -> Iterator[dict[str, Server]]:
    with tempfile.TemporaryDirectory(prefix="lcp-gateway-bench-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        daemon = stack.enter_context(processes.stand_in_on_port())
        servers = {"floor": stack.enter_context(processes.floor(daemon))}
        if arguments.openai_serve:
            serve = processes.openai_serve(arguments.openai_serve, daemon)
            servers["openai-serve"] = stack.enter_context(serve)
        for variant, environment in _variants(arguments).items():
            place = folder / variant
            place.mkdir()
            servers[variant] = stack.enter_context(processes.gateway(place, daemon, **environment))
        yield servers


def run(arguments: argparse.Namespace) -> None:
    """Measure and print."""
    with _running(arguments) as servers:
        lines = [LINES[name] for name in arguments.lines.split(",")]
        compare(servers, lines, ruler="floor", seconds=arguments.seconds, rounds=arguments.rounds)
        print()
        for name, server in servers.items():
            print(f"resident after the load: {server.rss_bytes() / 2**20:4.0f} MiB, {name}")
