"""``python -m bench.lnd``: what an lnd beside the gateway costs a purchase, in time and in CPU of the gateway: without and with, in turn."""

import argparse
import contextlib
import sqlite3
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bench import processes, standin
from bench.processes import Server
from bench.workload import Load, Workload

_MICRO, _MILLI = 1e6, 1e3
_ALL_KNOWN_WITHIN_S = 60.0


@dataclass(frozen=True, slots=True)
class Measured:
    """One turn: the load generator's result, and CPU seconds of the gateway for a purchase."""

    load: Load
    cpu_s: float


@contextlib.contextmanager
def _lnd(folder: Path, paid: Path) -> Iterator[dict[str, str]]:
    """Run lnd's stand-in; yield the settings of a gateway that uses it."""
    certificate, key, macaroon = folder / "tls.cert", folder / "tls.key", folder / "m.macaroon"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-days", "2", "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"),
            *("-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    macaroon.write_bytes(b"any")
    with processes.lnd_stand_in(certificate, key, paid) as address:
        yield {
            "LCP_GATEWAY_LND_GRPC_ADDR": address,
            "LCP_GATEWAY_LND_TLS_CERT": str(certificate),
            "LCP_GATEWAY_LND_MACAROON_FILE": str(macaroon),
        }


def _turn(gateway: Server, workload: Workload) -> Measured:
    load, used = processes.load("http", gateway.address, workload, gateway)
    if load.errors or not load.requests:
        raise SystemExit(f"{load.errors} requests failed")
    return Measured(load, used.cpu_s / load.requests)


def _without_fee(folder: Path) -> tuple[int, int]:
    """Count the paid purchases in a gateway's journal, and those of them without a fee."""
    (journal,) = folder.rglob("journal.db")
    with contextlib.closing(sqlite3.connect(f"file:{journal}?mode=ro", uri=True)) as opened:
        return opened.execute(
            "SELECT count(*), coalesce(sum(fee_msat IS NULL), 0) FROM purchases"
            " WHERE state IN ('settled', 'delivered', 'undelivered')"
        ).fetchone()


def _all_known(folder: Path) -> str:
    deadline = time.monotonic() + _ALL_KNOWN_WITHIN_S
    while True:
        bought, without_fee = _without_fee(folder)
        if not without_fee or time.monotonic() > deadline:
            return f"fees recorded: {bought - without_fee} of {bought}"
        time.sleep(0.2)


def _median(turns: list[Measured], of: Callable[[Measured], float]) -> float:
    return statistics.median(of(turn) for turn in turns)


def _print(clients: int, without: list[Measured], beside: list[Measured]) -> None:
    found = []
    for of, unit in (
        (lambda turn: turn.load.total_p50, _MILLI),
        (lambda turn: turn.load.total_p99, _MILLI),
        (lambda turn: turn.cpu_s, _MICRO),
    ):
        before, after = _median(without, of), _median(beside, of)
        found.append(f"{before * unit:9.2f} {after * unit:9.2f} {after / before:6.3f}")
    print(f"{clients:7}  " + "  ".join(found))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.lnd", description=__doc__)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--clients", default="1,16")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lcp-gateway-bench-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        paid = folder / "paid"
        daemon = stack.enter_context(processes.stand_in(folder, 0.0, paid))
        lnd = stack.enter_context(_lnd(folder, paid))
        gateways = {}
        for what, settings in (("without", {}), ("beside", lnd)):
            place = folder / what
            place.mkdir()
            gateways[what] = stack.enter_context(processes.gateway(place, daemon, **settings))
        print("medians, without lnd and with it in turn, and the second as a share of the first")
        print("clients  p50 ms    with lnd  ratio  p99 ms    with lnd  ratio  CPU us    with lnd  ratio")
        for clients in [int(number) for number in arguments.clients.split(",")]:
            workload = Workload(
                model=standin.MODEL,
                prompt="hello",
                stream=False,
                clients=clients,
                seconds=arguments.seconds,
                warm_up_s=min(1.0, arguments.seconds / 2),
            )
            turns: dict[str, list[Measured]] = {what: [] for what in gateways}
            for number in range(arguments.rounds):
                # Each goes first as often as second.
                order = list(gateways) if number % 2 else list(reversed(gateways))
                for what in order:
                    turns[what].append(_turn(gateways[what], workload))
            _print(clients, turns["without"], turns["beside"])
        print(_all_known(folder / "beside"))


if __name__ == "__main__":
    main()
