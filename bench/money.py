"""``python -m bench.money``: what the journal and the checks of a quote cost a unary request, in CPU of the gateway."""

import argparse
import statistics
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import coincurve

from bench import processes, standin
from bench.workload import Workload
from lcp_gateway.lightning import bolt11
from lcp_gateway.lightning.checks import check_quote
from lcp_gateway.lightning.terms import terms_hash
from lcp_gateway.purchase.money import Msat
from lcp_gateway.purchase.order import Task, TaskKind
from lcp_gateway.purchase.quote import Quote

_MICRO = 1_000_000


def _check_us(rounds: int = 30, calls: int = 200) -> float:
    """CPU of one whole check, best of some rounds: the least disturbed says most."""
    key = coincurve.PrivateKey(b"\x01" * 32)
    peer_id = key.public_key.format().hex()
    task = Task(TaskKind.CHAT_COMPLETIONS, "m", b'{"model":"m","messages":[{"role":"user"}]}', stream=False)
    now = datetime.now(UTC)
    expires_at = (now + timedelta(seconds=300)).replace(microsecond=0)
    job_id, price = b"\x11" * 32, 57_372
    digest = terms_hash(
        protocol_version=2,
        job_id=job_id,
        price_msat=price,
        quote_expiry=int(expires_at.timestamp()),
        task_kind=task.kind.value,
        request=task.body,
        model=task.model,
    )
    invoice = bolt11.encode(
        key,
        network="bcrt",
        timestamp=int(now.timestamp()),
        payment_hash=b"\x22" * 32,
        payment_secret=b"\x33" * 32,
        amount_msat=price,
        description_hash=digest,
        expiry_s=295,
    )
    quote = Quote(peer_id, job_id, Msat(price), expires_at, digest, invoice, 2)
    best = float("inf")
    for _ in range(rounds):
        started = time.process_time()
        for _ in range(calls):
            check_quote(task, quote, now)
        best = min(best, (time.process_time() - started) / calls)
    return best * _MICRO


def _request_us(folder: Path, daemon: str, clients: int, seconds: float, journal: str) -> float:
    """CPU of the gateway's process for one request."""
    workload = Workload(
        model=standin.MODEL,
        prompt="hello",
        stream=False,
        clients=clients,
        seconds=seconds,
        warm_up_s=min(1.0, seconds / 2),
    )
    with processes.gateway(folder, daemon, LCP_GATEWAY_JOURNAL_URL=journal) as gateway:
        load, used = processes.load("http", gateway.address, workload, gateway)
    return used.cpu_s / max(load.requests, 1) * _MICRO


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.money", description=__doc__)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--clients", default="1,16,64")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    print(f"one check of a quote: {_check_us():.0f} us of CPU (it cannot be turned off)")
    print("\nclients  journal off us  on us  difference   (medians, taken in turn)")
    with tempfile.TemporaryDirectory(prefix="lcp-gateway-bench-") as name:
        folder = Path(name)
        with processes.stand_in(folder, 0.0) as daemon:
            for clients in [int(number) for number in arguments.clients.split(",")]:
                off, on = [], []
                for _ in range(arguments.rounds):
                    off.append(_request_us(folder, daemon, clients, arguments.seconds, "off"))
                    on.append(_request_us(folder, daemon, clients, arguments.seconds, ""))
                middle = statistics.median(off), statistics.median(on)
                print(f"{clients:7}  {middle[0]:14.0f}  {middle[1]:5.0f}  {middle[1] - middle[0]:+10.0f}")


if __name__ == "__main__":
    main()
