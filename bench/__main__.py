"""``python -m bench``: what the gateway adds to a daemon, in time, CPU and memory, from 1 to 256 clients and 512 streams."""

import argparse
import contextlib
import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from bench import floors, processes, standin
from bench.processes import Server
from bench.table import PacedRow, Row, print_paced, print_start, print_streams, print_unary
from bench.workload import Workload

_MODEL_OF_NODE = "echo-1"
# The echo answers with seven words of its own and these, one token each: about a hundred chunks.
_PROMPT = " ".join(["word"] * 90)
_SECTIONS = ("start", "unary", "streams", "paced", "floor")
# Milliseconds a token, and streams at once. A stream has 500 tokens, and some begin and end while it is measured.
_PACES = "20:16,20:64,50:64,50:256,50:512"
_TOKENS = 500


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--only", default=",".join(_SECTIONS), help=f"some of {', '.join(_SECTIONS)}")
    parser.add_argument("--over", choices=["standin", "node"], default="standin")
    parser.add_argument("--daemon", metavar="ADDRESS", help="a daemon that runs already")
    parser.add_argument("--i-pay", action="store_true", help="with --daemon: each request is paid")
    parser.add_argument("--model", help="a model that the daemon's peers sell")
    parser.add_argument("--seconds", type=float, default=5.0, help="how long each line measures")
    parser.add_argument("--clients", default="1,4,16,64,256", help="numbers of clients")
    parser.add_argument("--pause", type=float, default=0.0, metavar="S", help="between chunks")
    parser.add_argument("--paces", default=_PACES, help="of the paced streams: milliseconds a token, and streams")
    parser.add_argument("--starts", type=int, default=5, help="how many starts to time")
    parser.add_argument("--quick", action="store_true", help="1 s a line, few lines, 1 start, 1 round")
    floors.add_options(parser)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.seconds, arguments.clients, arguments.starts, arguments.rounds = 1.0, "1,16", 1, 1
        arguments.paces = "20:16"
    if arguments.daemon and not (arguments.i_pay and arguments.model):
        parser.error("--daemon needs --model, and --i-pay: every request of a run is paid for")
    if unknown := set(arguments.only.split(",")) - set(_SECTIONS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    floors.check(parser, arguments)
    return arguments


def _daemon(arguments: argparse.Namespace, folder: Path) -> contextlib.AbstractContextManager[str]:
    if arguments.daemon:
        return contextlib.nullcontext(arguments.daemon)
    start: Callable[[Path, float], contextlib.AbstractContextManager[str]] = {
        "standin": processes.stand_in,
        "node": processes.embedded_node,
    }[arguments.over]
    return start(folder, arguments.pause)


def _measure(daemon: str, gateway: Server, arguments: argparse.Namespace, model: str, *, stream: bool) -> Iterator[Row]:
    for clients in [int(number) for number in arguments.clients.split(",")]:
        workload = Workload(
            model=model,
            prompt=_PROMPT,
            stream=stream,
            clients=clients,
            seconds=arguments.seconds,
            warm_up_s=min(1.0, arguments.seconds / 2),
        )
        direct, _ = processes.load("grpc", daemon, workload, None)
        ours, used = processes.load("http", gateway.address, workload, gateway)
        yield Row(clients, direct, ours, used)


def _measure_paced(daemon: str, gateway: Server, arguments: argparse.Namespace) -> Iterator[PacedRow]:
    for pace in arguments.paces.split(","):
        pause_ms, _, streams = pace.partition(":")
        workload = Workload(
            model=standin.MODEL,
            prompt=_PROMPT,
            stream=True,
            clients=int(streams),
            seconds=arguments.seconds,
            warm_up_s=2.0,
            chunks=_TOKENS,
            pause_s=int(pause_ms) / 1000,
        )
        direct, _ = processes.load("grpc", daemon, workload, None)
        ours, used = processes.load("http", gateway.address, workload, gateway)
        yield PacedRow(workload.clients, direct, ours, used, workload.pause_s)


def _against_daemon(arguments: argparse.Namespace, wanted: set[str]) -> None:
    """Measure the gateway against the same calls to the daemon itself."""
    model = arguments.model or (_MODEL_OF_NODE if arguments.over == "node" else standin.MODEL)
    with tempfile.TemporaryDirectory(prefix="lcp-gateway-bench-") as name:
        folder = Path(name)
        with _daemon(arguments, folder) as daemon:
            starts = []
            for _ in range(arguments.starts if "start" in wanted else 0):
                with processes.gateway(folder, daemon) as gateway:
                    starts.append(gateway.start_s)
            with processes.gateway(folder, daemon) as gateway:
                if starts:
                    print_start(statistics.median(starts), gateway.rss_bytes())
                if "unary" in wanted:
                    print_unary(list(_measure(daemon, gateway, arguments, model, stream=False)))
                if "streams" in wanted:
                    print_streams(list(_measure(daemon, gateway, arguments, model, stream=True)))
                if "paced" in wanted and arguments.over == "standin" and not arguments.daemon:
                    print_paced(list(_measure_paced(daemon, gateway, arguments)))
                print(f"\nresident after the load: {gateway.rss_bytes() / 2**20:.0f} MiB")


def main() -> None:
    arguments = _arguments()
    wanted = set(arguments.only.split(","))
    if wanted - {"floor"}:
        _against_daemon(arguments, wanted)
    if "floor" in wanted and not arguments.daemon:
        floors.run(arguments)


if __name__ == "__main__":
    main()
