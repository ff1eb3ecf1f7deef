"""``python -m bench``: what the gateway adds to a daemon, in time, CPU and memory, from 1 to 256 clients."""

import argparse
import contextlib
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

from bench import processes, standin
from bench.processes import Gateway
from bench.table import Row, print_start, print_streams, print_unary
from bench.workload import Workload

_MODEL_OF_NODE = "echo-1"
# The echo answers with seven words of its own and these, one token each: about a hundred chunks.
_PROMPT = " ".join(["word"] * 90)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--over", choices=["standin", "node"], default="standin")
    parser.add_argument("--daemon", metavar="ADDRESS", help="a daemon that runs already")
    parser.add_argument("--i-pay", action="store_true", help="with --daemon: each request is paid")
    parser.add_argument("--model", help="a model that the daemon's peers sell")
    parser.add_argument("--seconds", type=float, default=5.0, help="how long each line measures")
    parser.add_argument("--clients", default="1,4,16,64,256", help="numbers of clients")
    parser.add_argument("--pause", type=float, default=0.0, metavar="S", help="between chunks")
    parser.add_argument("--starts", type=int, default=5, help="how many starts to time")
    parser.add_argument("--quick", action="store_true", help="1 s a line, 1 and 16 clients, 1 start")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.seconds, arguments.clients, arguments.starts = 1.0, "1,16", 1
    if arguments.daemon and not (arguments.i_pay and arguments.model):
        parser.error("--daemon needs --model, and --i-pay: every request of a run is paid for")
    return arguments


def _daemon(arguments: argparse.Namespace, folder: Path) -> contextlib.AbstractContextManager[str]:
    if arguments.daemon:
        return contextlib.nullcontext(arguments.daemon)
    start: Callable[[Path, float], contextlib.AbstractContextManager[str]] = {
        "standin": processes.stand_in,
        "node": processes.embedded_node,
    }[arguments.over]
    return start(folder, arguments.pause)


def _measure(daemon: str, gateway: Gateway, arguments: argparse.Namespace, model: str, *, stream: bool) -> list[Row]:
    rows = []
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
        rows.append(Row(clients, direct, ours, used))
    return rows


def main() -> None:
    arguments = _arguments()
    model = arguments.model or (_MODEL_OF_NODE if arguments.over == "node" else standin.MODEL)
    with tempfile.TemporaryDirectory(prefix="lcp-gateway-bench-") as name:
        folder = Path(name)
        with _daemon(arguments, folder) as daemon:
            starts = []
            for _ in range(arguments.starts):
                with processes.gateway(folder, daemon) as gateway:
                    starts.append(gateway.start_s)
            with processes.gateway(folder, daemon) as gateway:
                before = gateway.rss_bytes()
                print_start(statistics.median(starts), before)
                print_unary(_measure(daemon, gateway, arguments, model, stream=False))
                print_streams(_measure(daemon, gateway, arguments, model, stream=True))
                print(f"\nresident after the load: {gateway.rss_bytes() / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
