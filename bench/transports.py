"""``python -m bench.transports``: what a request and a token cost over each transport to the daemon, in turn, as ratios."""

import argparse
import contextlib
import tempfile
from pathlib import Path

from bench import processes
from bench.paired import Line, compare

LINES = (
    Line("Whole answers, 1 client", stream=False, clients=1),
    Line("Whole answers, 16 clients", stream=False, clients=16),
    Line("Tokens as fast as they go, 8 streams", stream=True, clients=8),
    Line("A token each 20 ms, 16 streams", stream=True, clients=16, chunks=500, pause_s=0.02),
    Line("A token each 50 ms, 64 streams", stream=True, clients=64, chunks=500, pause_s=0.05),
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.transports", description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="how long each turn measures")
    parser.add_argument("--rounds", type=int, default=5, help="pairs of turns")
    parser.add_argument("--quick", action="store_true", help="1 s a turn, 3 pairs")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.seconds, arguments.rounds = 1.0, 3
    with tempfile.TemporaryDirectory(prefix="lcp-gateway-bench-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        daemon = stack.enter_context(processes.stand_in(folder, 0.0))
        gateways = {}
        for transport in ("grpcio", "direct"):
            place = folder / transport
            place.mkdir()
            gateways[transport] = stack.enter_context(
                processes.gateway(place, daemon, LCP_GATEWAY_LCPD_TRANSPORT=transport)
            )
        compare(gateways, LINES, ruler="grpcio", seconds=arguments.seconds, rounds=arguments.rounds)


if __name__ == "__main__":
    main()
