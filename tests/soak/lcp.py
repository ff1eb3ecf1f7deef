"""A buyer and a seller over two small lnds, ended at random moments under load: ``python -m tests.soak.lcp [--minutes N]``.

Clients buy all the time. Meanwhile nodes are killed and stopped, lnds stopped and killed, their connection dropped; payments are held, fail,
are refused, or succeed with an answer that is lost; the backend waits and fails. In the end the clients' records are compared with
those of the lnds: a payment is begun once a job, each that succeeded has its result or an end that says so, none that did not has
a result, and what the buyer said of a payment is what its lnd says.
"""

import argparse
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from tests.support.daemon import Daemon
from tests.support.lcp_jobs import end_and_start, let_everything_go
from tests.support.lcp_processes import MODEL, LcpWorld, Purchase, lcp_world
from tests.support.lnd_standin import IN_FLIGHT, SUCCEEDED

CLIENTS = 6
PAYMENTS = ["settle"] * 12 + ["hold"] * 3 + ["no_route", "answer_lost", "refuse"]
ENDED = [["buyer"], ["seller"], ["buyer", "seller"], ["buyer_lnd"], ["seller_lnd"], ["buyer_lnd", "seller_lnd"]]


@dataclass
class Record:
    """A job of a client: what it was told at each try, the last of which counts."""

    purchase: Purchase
    stream: bool
    tries: int = 1
    said: list[str] = field(default_factory=list)


class Soak:
    def __init__(self, world: LcpWorld, seed: int) -> None:
        self.world = world
        self.dice = random.Random(seed)
        self.records: list[Record] = []
        self.actions: Counter[str] = Counter()
        self.unquoted = 0
        self.stopping = threading.Event()
        self._lock = threading.Lock()

    def buy(self, seed: int) -> None:
        """Be a client until the end."""
        dice = random.Random(seed)
        while not self.stopping.is_set():
            stream = dice.random() < 0.7
            try:
                terms = self.world.ask(stream=stream)
            except grpc.RpcError:
                self.unquoted += 1
                self.stopping.wait(0.2)
                continue
            if dice.random() < 0.1:
                continue
            record = Record(self.world.accept(terms), stream)
            with self._lock:
                self.records.append(record)
            self._finish(record)

    def _finish(self, record: Record) -> None:
        """Ask for the result again while the connection with the buyer breaks."""
        while record.purchase.wait().is_cut_off and record.tries < 40:
            record.said.append(record.purchase.error.details())
            if "already paid" in record.purchase.error.details():
                return
            time.sleep(0.5)
            record.tries += 1
            record.purchase = self.world.accept(record.purchase.terms)

    def disturb(self, seconds: float) -> None:
        """Do harm until the time is over."""
        lnd = self.world.buyer_lnd
        lnd.payments_go = lambda _hash: self.dice.choice(PAYMENTS)
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            time.sleep(self.dice.uniform(0.2, 4.0))
            action = self.dice.choice(
                ["end"] * 5 + ["stop"] * 2 + ["link"] * 2 + ["backend", "fail", "release", "release"]
            )
            self.actions[action] += 1
            match action:
                case "end":
                    victims = self.dice.choice(ENDED)
                    self.actions["+".join(victims)] += 1
                    end_and_start(self.world, victims, lambda: time.sleep(self.dice.choice([0, 0, 1.0])))
                case "stop":
                    _stop(self.dice.choice([self.world.buyer, self.world.seller]))
                case "link":
                    self.world.network.run(self._drop_link())
                case "backend":
                    place = self.dice.choice(["begun", "halfway"])
                    self.world.backend.hold(place)
                    threading.Timer(self.dice.uniform(0.2, 3.0), self.world.backend.release, [place]).start()
                case "fail":
                    self.world.backend.fail_next()
                case "release":
                    self.world.network.run(self._release())

    async def _drop_link(self) -> None:
        self.world.network.disconnect(self.world.buyer_lnd, self.world.seller_lnd)
        self.world.network.connect(self.world.buyer_lnd, self.world.seller_lnd)

    async def _release(self) -> None:
        for released in self.world.buyer_lnd.released.values():
            if not released.done():
                released.set_result(self.dice.random() < 0.7)

    def settle(self) -> None:
        """Let all that waits end, and wait for the clients."""
        self.stopping.set()
        deadline = time.monotonic() + 240
        while True:
            self.world.network.run(let_everything_go(self.world))
            under_way = any(it.status == IN_FLIGHT for it in self.world.buyer_lnd.payments.values())
            if time.monotonic() > deadline or not (
                under_way or any(it.purchase.thread.is_alive() for it in self.records)
            ):
                return
            time.sleep(0.5)


def _stop(daemon: Daemon) -> None:
    """Tell a node to stop, once more if it still waits for its jobs, and start it again."""
    daemon.process.terminate()
    try:
        daemon.process.wait(3)
    except subprocess.TimeoutExpired:
        daemon.process.terminate()
    daemon.process.wait(60)
    daemon.kill()
    daemon.start()


def check(soak: Soak) -> list[str]:
    """Compare the records; return what is wrong."""
    world, wrong, outcomes = soak.world, [], Counter()
    begun = Counter(world.buyer_lnd.sent)
    for payment_hash, times in begun.items():
        if times > 1:
            wrong.append(f"{payment_hash.hex()}: begun {times} times")
    paid = {it for it, payment in world.buyer_lnd.payments.items() if payment.status == SUCCEEDED}
    for record in soak.records:
        purchase = record.purchase
        is_paid = purchase.payment_hash in paid
        told = "delivered" if purchase.delivered else purchase.error.details() if purchase.error else "failed"
        state = purchase.payment_state
        outcomes[("paid" if is_paid else "unpaid", record.stream, told[:70], state)] += 1
        if purchase.delivered and not is_paid:
            wrong.append(f"{purchase.payment_hash.hex()}: delivered, and not paid")
        if purchase.delivered and bytes(purchase.body) != world.backend.result(MODEL, stream=record.stream):
            wrong.append(f"{purchase.payment_hash.hex()}: delivered {len(purchase.body)} wrong bytes")
        if state == "NONE" and is_paid:
            wrong.append(f"{purchase.payment_hash.hex()}: said to be unpaid ({told}), and paid; earlier: {record.said}")
        if state == "SETTLED" and not is_paid:
            wrong.append(f"{purchase.payment_hash.hex()}: said to be paid ({told}), and not paid")
        # A client whose deadline passed has left: its seller was told.
        has_left = purchase.error is not None and purchase.error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        if is_paid and not purchase.delivered and state != "SETTLED" and not has_left:
            wrong.append(
                f"{purchase.payment_hash.hex()}: paid, and neither delivered nor said to be: {told}; {record.said}"
            )
    for (money, stream, told, state), count in sorted(outcomes.items(), key=str):
        print(f"{count:6} {money:7} {'stream' if stream else 'whole ':6} {state:8} {told}")
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.soak.lcp", description=__doc__)
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--hold", action="store_true", help="the seller makes hold invoices")
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    with tempfile.TemporaryDirectory() as folder, lcp_world(Path(folder), hold=arguments.hold) as world:
        world.until_ready()
        soak = Soak(world, arguments.seed)
        clients = [
            threading.Thread(target=soak.buy, args=(arguments.seed + number,), daemon=True) for number in range(CLIENTS)
        ]
        for client in clients:
            client.start()
        soak.disturb(arguments.minutes * 60)
        soak.settle()
        for client in clients:
            client.join(240)
        with suppress(grpc.RpcError):
            world.until_ready()
        wrong = check(soak)
        print(
            f"{len(soak.records)} jobs, {len(world.buyer_lnd.sent)} payments, {soak.unquoted} requests without a quote"
        )
        print(", ".join(f"{name} {count}" for name, count in sorted(soak.actions.items())))
    for line in wrong:
        print("WRONG:", line)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
