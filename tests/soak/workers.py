"""``python -m tests.soak.workers --kills 100``: kill -9 of random workers under load; then the payments are compared with the orders.

Clients buy with a key of their own for each order, on a connection of its own each time, and ask again until they have an answer.
Ends with 1 where a key was paid twice, a counter fell, a worker did not come back, or a process was left.
"""

import argparse
import json
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import psutil

from tests.support.gateway import gateway
from tests.support.journaled import query
from tests.support.wire import CHAT, document, post
from tests.support.workers import metric, running, until, worker_processes

GIVE_UP_S = 90.0
PAUSE_S = 0.2


class Client(threading.Thread):
    """Places orders one after the other until it is told to stop."""

    def __init__(self, port: int, number: int) -> None:
        super().__init__(daemon=True)
        self.port, self.number = port, number
        self.stopping = threading.Event()
        self.answers: Counter = Counter()
        self.orders = 0
        self.unanswered: list[str] = []

    def run(self) -> None:
        while not self.stopping.is_set():
            self.orders += 1
            self.buy(f"client-{self.number}-order-{self.orders}")

    def buy(self, key: str) -> None:
        body = document(CHAT, model="echo-1", metadata={"key": key}, stream=self.orders % 2 == 0)
        until_s = time.monotonic() + GIVE_UP_S
        while time.monotonic() < until_s:
            try:
                answer = post(self.port, CHAT, body, {"Idempotency-Key": key}, timeout_s=30.0)
            except (OSError, EOFError):
                self.answers["cut"] += 1
            else:
                self.answers[answer.status if answer.whole else "cut"] += 1
                if answer.whole and (answer.status == 200 or answer.headers.get("x-should-retry") == "false"):
                    return
            time.sleep(PAUSE_S)
        self.unanswered.append(key)


def run(kills: int, workers: int, clients: int, every_s: float, seed: str) -> list[str]:
    """Return the problems."""
    dice, problems = random.Random(seed), []
    with tempfile.TemporaryDirectory() as folder:
        journal = Path(folder) / "journal.db"
        env = {"LCP_GATEWAY_JOURNAL_URL": str(journal), "LCP_GATEWAY_LOG_LEVEL": "warning"}
        with gateway(args=["--workers", str(workers)], env=env) as it:
            load = [Client(it.port, number) for number in range(clients)]
            for client in load:
                client.start()
            counted, killed = 0.0, 0
            while killed < kills:
                time.sleep(every_s * dice.uniform(0.5, 1.5))
                alive = worker_processes(it)
                if len(alive) < 2:
                    continue
                with suppress(psutil.NoSuchProcess):
                    dice.choice(alive).send_signal(signal.SIGKILL)
                    killed += 1
                if killed % 10 == 0:
                    with suppress(OSError, EOFError, AssertionError):
                        now = metric(it, "lcpgateway_requests_total", endpoint=CHAT)
                        if now < counted:
                            problems.append(f"a counter fell from {counted} to {now}")
                        counted = now
                    print(f"{killed} kills, {sum(client.orders for client in load)} orders", flush=True)
            until(lambda: running(it) == workers, "not all workers came back")
            for client in load:
                client.stopping.set()
            for client in load:
                client.join(GIVE_UP_S + 30)
            answers = sum((client.answers for client in load), Counter())
            problems += [f"never answered: {key}" for client in load for key in client.unanswered]
            orders = sum(client.orders for client in load)
            paid = Counter(str(event.get("job_id")) for event in it.events("accept"))
            problems += [f"job {job} was accepted {count} times" for job, count in paid.items() if count > 1]
            rows = query(journal, "SELECT state, count(*) FROM purchases GROUP BY state")
            states = dict(rows)
            twice = query(
                journal,
                "SELECT hex(request_sha256), count(*) FROM purchases WHERE state != 'not_paid' "
                "GROUP BY request_sha256 HAVING count(*) > 1",
            )
            problems += [f"order {key} was bought {count} times" for key, count in twice]
            if sum(paid.values()) > orders:
                problems.append(f"{sum(paid.values())} payments for {orders} orders")
            left = psutil.Process(it.pid).children(recursive=True)
            if it.stop() != 0:
                problems.append("it did not end in order")
            gone, alive = psutil.wait_procs(left, 30)
            problems += [f"left behind: {process}" for process in alive]
            print(f"kills: {killed}\norders: {orders}\nanswers: {dict(answers)}\npayments: {sum(paid.values())}")
            print(f"journal: {states}\nno order bought twice: {not twice}\nprocesses ended: {len(gone)}")
            restarts = sum("a worker ended and is started again" in line for line in it.log_lines)
            print(f"restarts logged: {restarts}")
            unexpected = [line for line in it.log_lines if '"level":"error"' in line and "a worker ended" not in line]
            print(f"other errors logged: {Counter(json.loads(line)['event'] for line in unexpected)}")
    return problems


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--every", type=float, default=1.5, help="seconds between two kills")
    parser.add_argument("--seed", default=str(time.time_ns()))
    chosen = parser.parse_args()
    print(f"seed {chosen.seed}", flush=True)
    problems = run(chosen.kills, chosen.workers, chosen.clients, chosen.every, chosen.seed)
    for problem in problems:
        print(f"PROBLEM: {problem}")
    print(f"problems: {len(problems)}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
